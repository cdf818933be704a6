"""Probes against losses whose answers are known."""

import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.engine.probes import gradient_noise_scale, sharpness, top_hessian_eigenvalue


def quadratic(size=20):
    matrix = np.random.default_rng(0).normal(size=(size, size)).astype(np.float32)
    matrix = matrix + matrix.T
    params = {"a": jnp.ones(size // 2), "b": jnp.ones((size // 4, 2))}

    def loss(p):
        x = jnp.concatenate([p["a"], p["b"].ravel()])
        return 0.5 * x @ matrix @ x

    return loss, params, matrix


def test_hessian_of_a_quadratic():
    loss, params, matrix = quadratic()
    found = top_hessian_eigenvalue(loss, params)
    assert found == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-4)
    assert top_hessian_eigenvalue(lambda p: p["x"].sum(), {"x": jnp.ones(5)}) == 0


def test_sharpness_of_a_slope_and_a_bowl():
    slope = jnp.asarray([3.0, 4.0])
    assert sharpness(lambda x: slope @ x, jnp.zeros(2), rho=0.1) == pytest.approx(0.5)
    bowl = sharpness(lambda x: 0.5 * x @ x, jnp.asarray([2.0, 0.0]), rho=0.5)
    assert bowl == pytest.approx(0.5 * (2.5**2 - 2**2))


def test_noise_scale_of_planted_gradients():
    noise = np.random.default_rng(1).normal(size=(4000, 10)) / np.sqrt(8)
    found = gradient_noise_scale([{"x": jnp.asarray(1.0 + row)} for row in noise], 8)
    assert found == pytest.approx(1, rel=0.05)  # trace 10, square of the mean 10
    assert gradient_noise_scale([jnp.ones(2), -jnp.ones(2)], 8) == float("inf")
