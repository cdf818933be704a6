"""BatchNorm: PyTorch's statistics, in groups and over shards of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from helpers.arrays import draw

from bocb_jax.models import layers


def test_batch_norm_keeps_statistics_as_pytorch_does():
    norm = layers.BatchNorm(3, rngs=nnx.Rngs(0))
    norm.scale[...] = jnp.array([1.0, 2.0, 3.0])
    norm.bias[...] = jnp.array([0.0, 1.0, 2.0])
    x = 5 + 2 * draw(0, 4, 3, 3, 3)
    y = norm(jnp.asarray(x))
    flat = x.reshape(-1, 3)
    mean, var = flat.mean(0), flat.var(0)
    normal = (x - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(y, normal * [1, 2, 3] + [0, 1, 2], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    unbiased = flat.var(0, ddof=1)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * unbiased, rtol=1e-5)

    evaluating = nnx.view(norm, use_running_average=True)
    expected = (x - 0.1 * mean) / np.sqrt(0.9 + 0.1 * unbiased + 1e-5) * [1, 2, 3] + [0, 1, 2]
    np.testing.assert_allclose(evaluating(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)  # evaluation adds nothing


def test_batch_norm_computes_its_statistics_in_float32():
    norm = layers.BatchNorm(2, dtype=jnp.bfloat16, momentum=1.0, rngs=nnx.Rngs(0))
    x = (100 + draw(0, 64, 2)).astype(jnp.bfloat16)
    assert norm(jnp.asarray(x)).dtype == jnp.bfloat16
    exact = x.astype(np.float64)
    np.testing.assert_allclose(norm.mean[...], exact.mean(0), rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], exact.var(0, ddof=1), rtol=1e-3)


def test_batch_norm_in_groups_normalizes_each_part():
    x = jax.random.normal(jax.random.key(0), (6, 4, 5, 3)) * jnp.arange(1, 7)[:, None, None, None]
    whole = layers.BatchNorm(3, momentum=1.0, rngs=nnx.Rngs(0))
    whole.groups = 3
    parts = [layers.BatchNorm(3, momentum=1.0, rngs=nnx.Rngs(0)) for _ in range(3)]
    expected = jnp.concatenate([norm(x[2 * i : 2 * i + 2]) for i, norm in enumerate(parts)])
    np.testing.assert_allclose(whole(x), expected, atol=1e-6)
    for name in ("mean", "var"):
        mean = jnp.stack([getattr(norm, name)[...] for norm in parts]).mean(0)
        np.testing.assert_allclose(getattr(whole, name)[...], mean, rtol=1e-6)


@pytest.mark.parametrize("mean", [0.0, 1.0, 30.0])
def test_batch_norm_of_shards_is_that_of_the_whole_batch(mean):
    # Shards of different means and spreads; the running mean is that of earlier batches.
    x = mean + draw(0, 8, 3, 3, 5) * np.linspace(0.5, 2, 8)[:, None, None, None]
    weights = jnp.asarray(draw(1, 8, 3, 3, 5))

    def passed(shards):
        def loss(x):
            norm = layers.BatchNorm(5, rngs=nnx.Rngs(0))
            norm.shards = shards
            norm.mean[...] = jnp.full(5, 0.9 * mean, jnp.float32)
            return (weights * norm(x)).sum(), (norm.mean[...], norm.var[...])

        return jax.tree.leaves(jax.value_and_grad(loss, has_aux=True)(jnp.asarray(x)))

    for one, several in zip(passed(1), passed(4), strict=True):
        # Float32 values around `mean` carry their spread to mean * 2^-24; the loss sums them.
        unit = (1 + mean) * 2**-24
        np.testing.assert_allclose(several, one, rtol=2e-5, atol=x.size * unit)
