"""Probes of a loss around trained weights: curvature, sharpness and noise of the gradient.

Each takes the loss as a function of the parameters alone, on data of the caller's choice.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree


def top_hessian_eigenvalue(
    loss: Callable[[Any], jax.Array], params: Any, *, steps: int = 30, seed: int = 0
) -> float:
    """The largest eigenvalue of the Hessian, by Lanczos with full reorthogonalization.

    Args:
      loss: params -> scalar.
      params: pytree of floating arrays.
      steps: products of the Hessian and a vector; the answer grows with them, from below.
      seed: of the first vector.
    """
    flat, unravel = ravel_pytree(params)
    gradient = jax.grad(lambda x: loss(unravel(x)))
    product = jax.jit(lambda v: jax.jvp(gradient, (flat,), (v,))[1])
    vector = np.random.default_rng(seed).normal(size=flat.size)
    basis, diagonal, beside = [vector / np.linalg.norm(vector)], [], []
    for _ in range(min(steps, flat.size)):
        image = np.asarray(product(jnp.asarray(basis[-1], flat.dtype)), np.float64)
        diagonal.append(basis[-1] @ image)
        for _ in range(2):  # once is not enough in floating point
            image -= np.transpose(basis) @ (np.asarray(basis) @ image)
        beside.append(np.linalg.norm(image))
        if beside[-1] < 1e-6 * max(map(abs, diagonal)) or beside[-1] == 0:
            break
        basis.append(image / beside[-1])
    off = beside[: len(diagonal) - 1]
    return float(np.linalg.eigvalsh(np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1))[-1])


def sharpness(loss: Callable[[Any], jax.Array], params: Any, *, rho: float = 0.05) -> float:
    """How much the loss rises within a distance, by the one step of SAM (arXiv 2010.01412).

    Args:
      rho: distance in the Euclidean norm over all parameters.
    """
    value, gradient = jax.value_and_grad(loss)(params)
    norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(gradient)))
    scale = rho / jnp.maximum(norm, 1e-30)
    worst = jax.tree.map(lambda p, g: p + scale * g, params, gradient)
    return float(loss(worst) - value)


def gradient_noise_scale(gradients: Sequence[Any], batch_size: int) -> float:
    """The simple noise scale tr(S) / |G|^2 in examples (McCandlish et al., arXiv 1812.06162).

    Args:
      gradients: two or more gradients of batches that were drawn independently, as pytrees.
      batch_size: examples in each.

    Returns:
      The unbiased estimate of tr(S) by that of |G|^2; infinity where the latter is not positive.
    """
    flat = np.stack([np.asarray(ravel_pytree(g)[0], np.float64) for g in gradients])
    variance = flat.var(axis=0, ddof=1).sum()  # of the mean over one batch
    signal = np.sum(flat.mean(axis=0) ** 2) - variance / len(flat)
    return float(batch_size * variance / signal) if signal > 0 else float("inf")
