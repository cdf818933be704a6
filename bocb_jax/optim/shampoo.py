"""Shampoo: gradients multiplied along each axis by the inverse root of their second moment."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Steps
from bocb_jax.optim.context import Context
from bocb_jax.optim.kronecker import Matrices, along_axes, each, init_matrices, update_grams
from bocb_jax.optim.registry import add_row


class ScaleByShampooState(NamedTuple):
    """State of `scale_by_shampoo`."""

    count: Any  # updates done: int32, shape ()
    mu: optax.Updates  # mean gradient; shapes of the parameters
    nu: optax.Updates  # mean of its square, for the size of a step; shapes of the parameters
    statistics: Any  # mean grams: `Matrices` for each parameter, (size, size) for each axis
    roots: Any  # their inverse roots, likewise


def inverse_root(matrix: jax.Array, order: int, eps: float) -> jax.Array:
    """Return (M + eps * its largest eigenvalue)^(-1 / order) of a symmetric, positive (n, n) M."""
    values, vectors = jnp.linalg.eigh(matrix)
    values = jnp.maximum(values, 0) + eps * jnp.maximum(values[-1], 1e-30)
    return (vectors * values[None] ** (-1 / order)) @ vectors.T


def scale_by_shampoo(
    b1: float, b2: float, eps: float, root_eps: float, update_interval: int, max_axis: int
) -> optax.GradientTransformation:
    """Rescale updates according to Shampoo with Adam's step sizes; see `shampoo`."""

    def init_fn(params: optax.Params) -> ScaleByShampooState:
        zeros = optax.tree.zeros_like(params)
        statistics, roots = init_matrices(params, max_axis)
        return ScaleByShampooState(jnp.zeros((), jnp.int32), zeros, zeros, statistics, roots)

    def update_fn(
        updates: optax.Updates, state: ScaleByShampooState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByShampooState]:
        del params
        grads = updates
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        nu = optax.tree.update_moment(grads, state.nu, b2, 2)
        statistics = update_grams(grads, state.statistics, b2, max_axis)

        def recompute(g: jax.Array, matrices: Matrices) -> Matrices:
            order = 2 * sum(m is not None for m in matrices)
            unbiased = 1 - b2**count
            return each(lambda m: inverse_root(m / unbiased, order, root_eps), matrices)

        roots = jax.lax.cond(
            state.count % update_interval == 0,
            lambda: jax.tree.map(recompute, grads, statistics),
            lambda: state.roots,
        )

        def direction(m: jax.Array, v: jax.Array, roots: Matrices) -> jax.Array:
            m = m / (1 - b1**count)
            adam = m / (jnp.sqrt(v / (1 - b2**count)) + eps)
            if all(root is None for root in roots):
                return adam
            u = along_axes(m, roots)
            return u * (optax.tree.norm(adam) / jnp.maximum(optax.tree.norm(u), 1e-30))

        updates = jax.tree.map(direction, mu, nu, roots)
        return updates, ScaleByShampooState(count, mu, nu, statistics, roots)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=5e-4,
    default_weight_decay=0.05,
    reference="the papers, in NumPy",
    numeric_class="exact",
    state_per_parameter=2.9,
    cost="products along each axis, and their eigenvectors every update_interval steps",
    notes="The size of the state is for ViT-S: two matrices for each axis of up to max_axis.",
)
def shampoo(
    ctx: Context,
    *,
    b1: Beta = 0.9,
    b2: Beta = 0.999,
    eps: NonNegative = 1e-8,
    root_eps: NonNegative = 1e-6,
    update_interval: Steps = 10,
    max_axis: Steps = 1024,
) -> optax.GradientTransformation:
    """Precondition the gradient along each axis, with the step sizes of Adam (Shampoo, grafted).

    L_i <- b2 L_i + (1 - b2) (g gᵀ along axis i);  u = m̂ times L̂_i^(-1 / 2k) along each of k axes
    p <- p - lr * (u |adam| / |u| + wd p),  m̂ being Adam's mean of g
    Vectors get Adam's update.

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the matrices, and of the mean square in Adam's step size.
      eps: added to the root of that mean square.
      root_eps: added to the matrices, as a share of their largest eigenvalue.
      update_interval: steps between two computations of the inverse roots.
      max_axis: longest axis that gets a matrix.

    References:
      Gupta, Koren and Singer, 2018, arXiv 1802.09568; Shi et al., 2023, arXiv 2309.06497
    """
    return ctx.chain(scale_by_shampoo(b1, b2, eps, root_eps, update_interval, max_axis))
