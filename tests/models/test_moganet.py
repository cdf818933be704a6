"""Properties of MogaNet alone; outputs of the reference are in test_golden.py."""

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import filled
from helpers.filled import images, run

from bocb_jax.models.moganet import MogaBlock, MogaNetConfig
from bocb_jax.models.parameters import parameter_kinds


@pytest.mark.slow
@pytest.mark.parametrize("side", [32, 224])
def test_parameter_counts_equal_the_references(side):
    assert filled.counts("moganet_s", side) == (24_873_975, 25_335_675)


def test_stems():
    cifar, imagenet = (
        filled.feature_shapes("moganet_s", side, drop_path=0.0, depths=(1, 1, 1, 1))
        for side in (32, 224)
    )
    assert [shape[1] for shape in cifar] == [32, 16, 8, 4]
    assert [shape[1] for shape in imagenet] == [56, 28, 14, 7]
    assert [shape[-1] for shape in cifar] == [64, 128, 320, 512]


def test_receptive_fields_of_the_three_orders():
    value = filled.build("moganet_mini").blocks1[0].attn.value
    features = value.PW_conv.kernel.shape[-1]
    value.PW_conv.kernel[0, 0] = np.eye(features, dtype=np.float32)
    value.PW_conv.bias[...] = 0 * value.PW_conv.bias[...]
    x = jax.random.normal(jax.random.key(0), (1, 41, 41, features))
    nudged = x.at[0, 20, 20].add(1.0)
    seen = np.asarray(value(nudged) - value(x))[0] != 0
    # 5x5; then 5x5 of dilation 2 on top; or 7x7 of dilation 3 on top
    for channels, radius in ((slice(0, 2), 2), (slice(2, 8), 6), (slice(8, 16), 11)):
        rows = np.flatnonzero(seen[..., channels].any((1, 2)))
        assert (rows.min(), rows.max()) == (20 - radius, 20 + radius)


def test_bocb_applies_the_gates_activation_twice():
    official, bocb = (
        filled.build("moganet_mini", variant=variant) for variant in ("official", "bocb")
    )
    block = official.blocks1[0].attn
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 16))
    y = block.proj_1(x)
    sigma = block.sigma[...].reshape(1, 1, 1, -1)
    y = nnx.silu(y + sigma * (y - y.mean((1, 2), keepdims=True)))
    gate, value = nnx.silu(block.gate(y)), nnx.silu(block.value(y))
    once = x + block.proj_2(gate * value)
    twice = x + block.proj_2(nnx.silu(gate) * nnx.silu(value))
    np.testing.assert_allclose(block(x), once, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(bocb.blocks1[0].attn(x), twice, rtol=1e-4, atol=1e-4)
    assert np.abs(once - twice).max() > 0.05


def test_stochastic_depth_rises_linearly_over_all_stages():
    model = filled.abstract("moganet_mini", 10, 32, drop_path=0.4)
    blocks = [block for i in range(1, 5) for block in getattr(model, f"blocks{i}")]
    assert [block.drop_path.rate for block in blocks] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])


def test_stochastic_depth_draws_independently_per_sample():
    model = filled.build("moganet_mini", drop_path=0.5)
    # Statistics of the batch would mix the samples: only the draws are in training mode.
    model = nnx.view(model, use_running_average=True)
    same = np.repeat(images(1), 8, axis=0)
    assert len(np.unique(run(model, same, dropout=0).round(3), axis=0)) > 1


def test_initial_weights():
    block = MogaBlock(96, 3, MogaNetConfig(), 0.0, dtype=None, rngs=nnx.Rngs(0))
    for kernel, fan_out in (
        (block.attn.value.DW_conv0.kernel, 25),  # over groups
        (block.attn.value.DW_conv2.kernel, 49),
        (block.mlp.fc1.kernel, 288),
        (block.mlp.fc2.kernel, 96),
    ):
        assert float(kernel[...].std()) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        assert abs(float(kernel[...].mean())) < 0.05 * (2 / fan_out) ** 0.5
    for gain in (block.layer_scale_1, block.layer_scale_2, block.attn.sigma, block.mlp.sigma):
        np.testing.assert_allclose(gain[...], 1e-5, rtol=1e-6)


def test_gains_declare_their_kind():
    kinds = parameter_kinds(filled.build("moganet_mini"))["blocks1"][0]
    assert kinds["layer_scale_1"] == kinds["attn"]["sigma"] == kinds["mlp"]["sigma"] == "scale"
