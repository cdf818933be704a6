"""Properties of TransNeXt alone; outputs of the reference are in test_golden.py."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.parameters import parameter_kinds
from bocb_jax.models.transnext import (
    AggregatedAttention,
    ConvGLU,
    TransNeXtConfig,
    inside_window,
    relative_positions,
)


@pytest.mark.slow
def test_parameter_counts_equal_the_references():
    assert filled.counts("transnext_micro") == (12_462_804, 12_809_304)
    assert filled.counts("transnext_t") == (27_739_660, 28_258_960)


def test_relative_positions_by_their_definition():
    table, rows = relative_positions((4, 6), (2, 3), 5)
    assert rows.shape == (24, 6)
    assert len(np.unique(table, axis=0)) == len(table)
    for query in range(24):
        for key in range(6):
            down = query // 6 - (2 * (key // 3) + 0.5)  # a key is the middle of 2x2 pixels
            right = query % 6 - (2 * (key % 3) + 0.5)
            scaled = np.array([down, right]) / 4 * 8
            expected = np.sign(scaled) * np.log2(np.abs(scaled) + 1) / np.log2(8)
            np.testing.assert_allclose(table[rows[query, key]], expected, rtol=1e-5)


def test_the_window_is_cut_at_the_border():
    inside = inside_window(3, 4).reshape(3, 4, 3, 3)
    np.testing.assert_array_equal(inside.sum((2, 3)), [[4, 6, 6, 4], [6, 9, 9, 6], [4, 6, 6, 4]])
    np.testing.assert_array_equal(inside[0, 0], [[0, 0, 0], [0, 1, 1], [0, 1, 1]])


def test_aggregated_attention_pixel_by_pixel():
    model = filled.build("transnext_mini")
    attention = model.block2[0].attn
    heads, width, side, grid = 4, 8, 8, 2
    x = jax.random.normal(jax.random.key(0), (1, side, side, 32))
    unit = lambda a: a / np.linalg.norm(a, axis=-1, keepdims=True)  # noqa: E731
    array = lambda p: np.asarray(p[...], np.float64)  # noqa: E731
    dense = lambda layer, a: a @ array(layer.kernel) + array(layer.bias)  # noqa: E731

    pixels = np.asarray(x[0], np.float64)
    query = unit(dense(attention.q, pixels).reshape(side, side, heads, width))
    key, value = np.split(dense(attention.kv, pixels), 2, axis=-1)
    pooled = np.asarray(layers.gelu(attention.sr(x))[0], np.float64)
    pooled = pooled.reshape(grid, 4, grid, 4, 32).mean((1, 3)).reshape(4, 32)
    pooled = np.asarray(attention.norm(jnp.asarray(pooled, jnp.float32)), np.float64)
    far_key, far_value = np.split(dense(attention.kv, pooled), 2, axis=-1)
    table, rows = relative_positions((side, side), (grid, grid), side)
    bias = dense(attention.cpb_fc2, np.maximum(dense(attention.cpb_fc1, table), 0))
    temperature = np.log1p(np.exp(array(attention.temperature)))[:, 0, 0]
    tokens, token_bias = array(attention.learnable_tokens), array(attention.learnable_bias)

    out = np.zeros((side, side, heads, width))
    for i, j, h in np.ndindex(side, side, heads):
        channels = slice(h * width, (h + 1) * width)
        near = [
            (3 * a + b, i + a - 1, j + b - 1)
            for a in range(3)
            for b in range(3)
            if 0 <= i + a - 1 < side and 0 <= j + b - 1 < side
        ]
        q = query[i, j, h]
        sharp = q + array(attention.query_embedding)[h, 0]
        sharp = sharp * temperature[h] * np.log(len(near) + grid**2)
        local = array(attention.relative_pos_bias_local)[h]
        scores = [sharp @ unit(key[r, c, channels]) + local[t] for t, r, c in near]
        scores += [
            sharp @ unit(far_key[p, channels]) + bias[rows[i * side + j, p], h] for p in range(4)
        ]
        weights = np.exp(scores - np.max(scores))
        weights /= weights.sum()
        for weight, (t, r, c) in zip(weights, near, strict=False):
            weight = weight + q @ tokens[h, :, t] + token_bias[h, 0, t]
            out[i, j, h] += weight * value[r, c, channels]
        out[i, j, h] += weights[len(near) :] @ far_value[:, channels]
    expected = dense(attention.proj, out.reshape(side, side, 32))
    np.testing.assert_allclose(attention(x)[0], expected, rtol=1e-4, atol=1e-4)


def test_image_sizes():
    with pytest.raises(UserError, match="multiple of 32 pixels, not 100"):
        filled.abstract("transnext_t", 10, 100)
    feature_shapes = functools.partial(
        filled.feature_shapes, "transnext_t", drop_path=0.0, depths=(1, 1, 1, 1)
    )
    shapes = [(2, 56, 56, 72), (2, 28, 28, 144), (2, 14, 14, 288), (2, 7, 7, 576)]
    assert feature_shapes(224) == shapes
    assert feature_shapes(32)[-1] == (2, 1, 1, 576)


@pytest.mark.slow
def test_pretrain_size_keeps_the_positions_of_the_training_size():
    small, large, stretched = (
        filled.build("transnext_mini", image_size=size, pretrain_size=pretrain, drop_path=0.0)
        for size, pretrain in ((32, None), (64, 32), (64, None))
    )
    x = images(size=64)
    np.testing.assert_array_equal(run(small, x), run(large, x))
    assert np.abs(run(large, x) - run(stretched, x)).max() > 1e-3


def test_bocb_has_a_larger_epsilon():
    model = filled.build("transnext_mini", variant="bocb")
    norms = [m for _, m in nnx.iter_modules(model) if isinstance(m, nnx.LayerNorm)]
    assert {norm.epsilon for norm in norms} == {1e-5}
    official = filled.build("transnext_mini")
    assert official.norm1.epsilon == official.block1[0].norm1.epsilon == 1e-6
    assert official.patch_embed1.norm.epsilon == official.block1[0].attn.norm.epsilon == 1e-5


def test_initial_weights():
    kwargs = {"dtype": None, "rngs": nnx.Rngs(0)}
    config = TransNeXtConfig()
    attention = AggregatedAttention(48, 4, 2, 8, config, **kwargs)
    temperature = nnx.softplus(attention.temperature[...])
    np.testing.assert_allclose(temperature, 1 / 0.24, rtol=1e-5)
    mlp = ConvGLU(48, 144, 0.0, **kwargs)
    for kernel in (attention.kv.kernel, attention.cpb_fc2.kernel, mlp.fc1.kernel):
        assert float(kernel[...].std()) == pytest.approx(0.02, rel=0.06)
    assert float(attention.sr.kernel[...].std()) == pytest.approx((2 / 48) ** 0.5, rel=0.06)
    assert float(mlp.dwconv.kernel[...].std()) == pytest.approx((2 / 9) ** 0.5, rel=0.1)
    assert float(attention.learnable_tokens[...].std()) == pytest.approx(0.02, rel=0.15)
    assert float(attention.relative_pos_bias_local[...].std()) == pytest.approx(4e-4, rel=0.4)


def test_other_parameters_declare_their_kind():
    kinds = parameter_kinds(filled.build("transnext_mini"))["block1"][0]["attn"]
    assert kinds["learnable_tokens"] == "token"
    assert kinds["query_embedding"] == kinds["relative_pos_bias_local"] == "embedding"
    assert kinds["temperature"] == "scale"
    assert kinds["learnable_bias"] == "bias"
