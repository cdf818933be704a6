"""Shared layers: dense layers, pooling, resizing, attention, stochastic depth, parameter kinds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax import nnx
from helpers.arrays import assert_close, draw

from bocb_jax.errors import UserError
from bocb_jax.models import layers, resampling
from bocb_jax.models.parameters import count_params, parameter_kinds


@pytest.mark.parametrize("axes", [(), (7,), (2, 7), (2, 3, 7)])
def test_linear_over_any_number_of_axes_is_one_product(axes):
    layer = layers.Linear(4, 5, rngs=nnx.Rngs(0))
    kernel, bias = np.float64(layer.kernel[...]), np.float64(layer.bias[...])
    x, weights = draw(0, *axes, 4), draw(1, *axes, 5)

    def loss(layer, x):
        return jnp.sum(layer(x) * weights)

    by_layer, by_input = nnx.grad(loss, argnums=(0, 1))(layer, x)
    np.testing.assert_allclose(layer(x), x @ kernel + bias, rtol=1e-5, atol=1e-5)
    rows, grads = x.reshape(-1, 4).astype(np.float64), weights.reshape(-1, 5)
    for found, expected in (
        (by_layer.kernel[...], rows.T @ grads),
        (by_layer.bias[...], grads.sum(0)),
        (by_input, weights @ kernel.T),
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_gelu_and_its_derivative_are_accurate_in_the_tails(dtype):
    x = jnp.linspace(-6, 6, 1201).astype(dtype)
    exact, unit = np.float64(x), float(jnp.finfo(dtype).eps)
    cdf, density = scipy.stats.norm.cdf(exact), scipy.stats.norm.pdf(exact)
    slope = jax.grad(lambda x: layers.gelu(x).sum())(x)
    # 1 + erf has an absolute error. bfloat16 uses erfc, whose error is relative; the relative
    # rounding of x changes it by x squared.
    size = 4 if dtype == jnp.float32 else (4 + exact**2) * cdf
    assert (np.abs(np.float64(layers.gelu(x)) - exact * cdf) <= unit * size * np.abs(exact)).all()
    np.testing.assert_allclose(np.float64(slope), cdf + exact * density, atol=8 * unit)


@pytest.mark.parametrize("size", [1.0, 100.0])
def test_attention_and_its_gradients_equal_a_softmaxs(size):
    """Includes scores of several thousand, whose exponentials would overflow."""
    q, k, v = (draw(seed, 2, 5, 3, 4) for seed in range(3))
    bias, weights = size * draw(3, 1, 3, 5, 5), draw(4, 2, 5, 12)
    q = size * q

    def exact(q, k, v, bias):
        scores = np.einsum("bihc,bjhc->bhij", q, k) / 2 + bias
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        chances = scores / scores.sum(-1, keepdims=True)
        return np.einsum("bhij,bjhc->bihc", chances, v).reshape(2, 5, 12)

    ours = lambda q, k, v, bias: layers.attention(q, k, v, bias=bias)  # noqa: E731
    arguments = [np.float64(x) for x in (q, k, v, bias)]
    expected = exact(*arguments)
    # The rounding of a score, of up to 16 times `size`, changes the weights by as much; a gradient
    # sums some tens of such errors.
    unit = 2**-24 * 16 * size
    np.testing.assert_allclose(ours(q, k, v, bias), expected, atol=unit * np.abs(v).max())
    grads = jax.grad(lambda *x: jnp.sum(ours(*x) * weights), argnums=range(4))(q, k, v, bias)
    step = 1e-6
    for number, (argument, gradient) in enumerate(zip(arguments, grads, strict=True)):
        direction = np.float64(draw(5 + number, *argument.shape))
        sides = []
        for sign in (1, -1):
            moved = [x + sign * step * direction if x is argument else x for x in arguments]
            sides.append(np.sum(exact(*moved) * weights))
        slope = (sides[0] - sides[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(gradient * direction), slope, rtol=50 * unit)


@pytest.mark.parametrize("tokens", [pytest.param(6, marks=pytest.mark.slow), 7])
def test_the_fused_form_of_attention_equals_the_plain_one(tokens):
    # In XLA's implementation: cuDNN's needs a GPU, where `bocb bench --gpu` compares them.
    q, k, v = (draw(seed, 2, 3, tokens, 2, 8) for seed in range(3))
    weights = draw(3, 2, 3, tokens, 16)

    def passed(attention):
        loss = lambda *qkv: jnp.sum(attention(*qkv) * weights)  # noqa: E731
        return attention(q, k, v), *jax.grad(loss, argnums=(0, 1, 2))(q, k, v)

    fused = functools.partial(layers._fused_attention, form="xla")
    for found, expected in zip(passed(fused), passed(layers.attention), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_cudnn_takes_long_sequences_in_half_precision_on_a_gpu_alone(monkeypatch):
    long, short = (jnp.zeros((2, tokens, 3, 64), jnp.bfloat16) for tokens in (196, 49))
    assert not layers._is_for_cudnn(long)
    monkeypatch.setattr(layers.platform, "has_cudnn", lambda: True)
    assert layers._is_for_cudnn(long)
    assert not layers._is_for_cudnn(short)
    assert not layers._is_for_cudnn(long.astype(jnp.float32))
    assert not layers._is_for_cudnn(long[..., :60])


def test_dropout_of_attention_drops_weights_and_keeps_their_sum():
    q, k, v = (draw(seed, 1, 5, 1, 4) for seed in range(3))
    kept = jnp.asarray(np.random.default_rng(0).random((1, 1, 5, 5)) < 0.6)
    scores = np.einsum("bihc,bjhc->bhij", q, k) / 2
    chances = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    expected = np.einsum("bhij,bjhc->bihc", chances * kept / 0.6, v).reshape(1, 5, 4)
    found = layers.attention(q, k, v, dropout=lambda weights: weights * kept / 0.6)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def windows(x, k, stride, padding, fill):
    """Return a window's pixels (k * k, channels) for each (row, column), by plain loops."""
    p = padding
    padded = np.pad(x[0], ((p, p), (p, p), (0, 0)), constant_values=fill)
    starts = [range(0, n - k + 1, stride) for n in padded.shape[:2]]
    return [[padded[i : i + k, j : j + k].reshape(k * k, -1) for j in starts[1]] for i in starts[0]]


@pytest.mark.parametrize(("k", "stride", "padding"), [(2, 2, 0), (3, 2, 1), (3, 1, 1)])
def test_pools(k, stride, padding):
    x = draw(0, 1, 7, 6, 2)

    def pooled(function, fill):
        cut = windows(x, k, stride, padding, fill)
        return [[[function(window, axis=0) for window in row] for row in cut]]

    maximum = layers.max_pool(jnp.asarray(x), k, stride, padding)
    np.testing.assert_array_equal(maximum, pooled(np.max, -np.inf))
    mean = layers.avg_pool(jnp.asarray(x), k, stride, padding)
    np.testing.assert_allclose(mean, pooled(np.mean, 0), atol=1e-6)
    inside = layers.avg_pool(jnp.asarray(x), k, stride, padding, count_include_pad=False)
    np.testing.assert_allclose(inside, pooled(np.nanmean, np.nan), atol=1e-6)


@pytest.mark.parametrize(
    ("size", "window", "strides", "padding"),
    [
        ((9, 11), 3, 2, 1),  # the stem of ResNet and DenseNet
        ((8, 8), 2, None, 0),  # VGG
        ((7, 10), 3, 2, 0),  # AlexNet
        ((9, 9), 2, 3, 1),  # pixels outside of all windows
        ((10, 9), 3, 1, 1),
        ((5, 6), (3, 2), (1, 2), (1, 1)),
    ],
)
@pytest.mark.parametrize(
    "levels",
    [pytest.param(3, id="ties"), pytest.param(None, id="no ties", marks=pytest.mark.slow)],
)
def test_the_gradient_of_max_pool_is_xlas(size, window, strides, padding, levels):
    x = draw(0, 2, *size, 3)
    x = jnp.asarray(x if levels is None else np.round(levels * x / 2))

    def ours(x):
        return layers.max_pool(x, window, strides, padding)

    def theirs(x):
        arguments = map(resampling.pair, (window, strides or window, padding))
        return resampling._xla_max_pool(x, *arguments)

    def gradient_and_curvature(pool):
        cotangent = draw(1, *jax.eval_shape(pool, x).shape)
        gradient = jax.grad(lambda x: (jnp.sin(pool(x)) * cotangent).sum())
        return gradient(x), jax.jvp(gradient, (x,), (draw(2, *x.shape),))[1]

    np.testing.assert_array_equal(ours(x), theirs(x))
    if levels is None:
        assert_close(gradient_and_curvature(ours), gradient_and_curvature(theirs))
    cotangent = draw(1, *ours(x).shape)
    assert_close(jax.vjp(ours, x)[1](cotangent), jax.vjp(theirs, x)[1](cotangent))
    low = jax.vjp(ours, x.astype(jnp.bfloat16))[1](jnp.asarray(cotangent, jnp.bfloat16))[0]
    assert low.dtype == jnp.bfloat16


def test_adaptive_average_pool_overlaps_cells_as_pytorch_does():
    x = np.arange(5, dtype=np.float32).reshape(1, 5, 1, 1)
    pooled = layers.adaptive_avg_pool(jnp.asarray(x), (3, 1)).ravel()
    np.testing.assert_allclose(pooled, [0.5, 2.0, 3.5], rtol=1e-6)
    stretched = layers.adaptive_avg_pool(jnp.asarray(x[:, :1]), (4, 2))
    np.testing.assert_array_equal(stretched, np.zeros((1, 4, 2, 1)))


@pytest.mark.parametrize(
    ("antialias", "size", "expected"),  # by torch.nn.functional.interpolate
    [
        (True, 4, [0.158574, 2.977029, 10.886677, 22.27832]),
        (False, 4, [0.121094, 2.828125, 10.796875, 23.207031]),
        (False, 9, [-0.086806, 0.21875, 1.430555, 3.152778, 6.125, 10.282406, 14.300928, 21.15625]),
    ],
)
def test_bicubic_resize_equals_pytorchs(antialias, size, expected):
    squares = jnp.arange(6.0).reshape(1, 1, 6, 1) ** 2 * jnp.ones((1, 6, 1, 1))
    resized = layers.resize_bicubic(squares, (6, size), antialias=antialias)
    assert resized.shape == (1, 6, size, 1)
    np.testing.assert_allclose(resized[0, 0, : len(expected), 0], expected, atol=1e-5)
    turned = layers.resize_bicubic(squares.swapaxes(1, 2), (size, 6), antialias=antialias)
    np.testing.assert_allclose(turned.swapaxes(1, 2), resized, atol=1e-5)


def test_position_embedding_keeps_its_class_token():
    embedding = jnp.asarray(draw(0, 1, 1 + 16, 3))
    assert layers.resize_position_embedding(embedding, 4, prefix_tokens=1) is embedding
    resized = layers.resize_position_embedding(embedding, (6, 5), prefix_tokens=1)
    assert resized.shape == (1, 31, 3)
    np.testing.assert_array_equal(resized[:, 0], embedding[:, 0])


def test_stochastic_depth_drops_whole_samples_and_keeps_the_mean():
    drop = layers.DropPath(0.25)
    x = jnp.ones((4000, 2, 3))
    y = np.asarray(drop(x, rngs=nnx.Rngs(dropout=0)))
    assert {tuple(np.unique(sample)) for sample in y} == {(0.0,), (np.float32(4 / 3),)}
    np.testing.assert_allclose(y.mean(), 1, atol=0.03)
    with pytest.raises(UserError, match="rngs="):
        drop(x)
    assert nnx.view(drop, deterministic=True)(x) is x
    assert not layers.DropPath(1.0)(x, rngs=nnx.Rngs(dropout=0)).any()


def test_stochastic_depth_rises_linearly_over_all_blocks():
    rates = layers.drop_path_rates(0.3, (2, 1, 1))
    assert [len(stage) for stage in rates] == [2, 1, 1]
    np.testing.assert_allclose(np.concatenate(rates), [0, 0.1, 0.2, 0.3])
    assert layers.drop_path_rates(0.3, (1,)) == [[0.0]]


def test_stem_by_image_size():
    assert [layers.resolve_stem("auto", size) for size in (28, 32, 33)] == [
        "cifar",
        "cifar",
        "imagenet",
    ]
    assert layers.resolve_stem("cifar", 224) == "cifar"
    with pytest.raises(UserError, match="'deep'"):
        layers.resolve_stem("deep", 224)


def test_truncated_normal_and_uniform_have_the_moments_of_pytorchs():
    key = jax.random.key(0)
    drawn = layers.trunc_normal(0.02)(key, (400, 400))
    np.testing.assert_allclose(drawn.std(), 0.02, rtol=0.01)
    kernel = layers.torch_uniform(key, (100, 500))
    np.testing.assert_allclose(np.abs(kernel).max(), 0.1, rtol=0.01)
    np.testing.assert_allclose(kernel.std(), 0.1 / np.sqrt(3), rtol=0.01)
    bias = layers.symmetric_uniform(0.5)(key, (10_000,))
    np.testing.assert_allclose([bias.min(), bias.max()], [-0.5, 0.5], atol=0.01)


class Sample(nnx.Module):
    """A model with one parameter of every kind."""

    def __init__(self, rngs):
        self.conv = layers.Conv(4, 4, 3, rngs=rngs)
        self.depthwise = layers.Conv(4, 4, 3, groups=4, use_bias=False, rngs=rngs)
        self.norm = layers.BatchNorm(4, rngs=rngs)
        self.blocks = nnx.List([nnx.LayerNorm(4, rngs=rngs), layers.LayerScale(4)])
        self.mlp = layers.Mlp(4, 8, rngs=rngs)
        self.token = nnx.Param(jnp.zeros((1, 1, 4)), kind="token")
        self.own = nnx.Param(jnp.zeros((2, 3)))
        self.gain = nnx.Param(jnp.zeros(3))
        self.head = nnx.Linear(4, 2, kernel_metadata={"kind": "head"}, rngs=rngs)


def test_parameter_kinds_follow_the_metadata_and_the_layer():
    model = nnx.eval_shape(lambda: Sample(nnx.Rngs(0)))
    dense = {"kernel": "matrix", "bias": "bias"}
    kinds = {
        "conv": {"kernel": "conv", "bias": "bias"},
        "depthwise": {"kernel": "depthwise"},
        "norm": {"scale": "norm", "bias": "norm"},
        "blocks": {0: {"scale": "norm", "bias": "norm"}, 1: {"gamma": "scale"}},
        "mlp": {"fc1": dense, "fc2": dense},
        "token": "token",
        "own": "matrix",
        "gain": "vector",
        "head": {"kernel": "head", "bias": "bias"},
    }
    assert parameter_kinds(model) == kinds
    params = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    assert jax.tree.structure(params) == jax.tree.structure(kinds)
    leaves = (4 * 4 * 9 + 4) + 4 * 9 + 2 * 4 + 2 * 4 + 4 + (4 * 8 + 8 + 8 * 4 + 4)
    assert count_params(model) == leaves + 4 + 2 * 3 + 3 + (4 * 2 + 2)
