"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's matrices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Steps
from bocb_jax.optim.context import Context
from bocb_jax.optim.kronecker import Matrices, along_axes, each, init_matrices, update_grams
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.transforms import skip_first_update
from bocb_jax.optim.trees import map_leaves


class ScaleBySoapState(NamedTuple):
    """State of `scale_by_soap`."""

    count: Any  # updates done: int32, shape ()
    mu: optax.Updates  # mean gradient; shapes of the parameters
    nu: optax.Updates  # mean square in the eigenbasis; shapes of the parameters
    statistics: Any  # mean grams: `Matrices` for each parameter, (size, size) for each axis
    bases: Any  # their eigenvectors as columns, likewise


def first_bases(statistics: Matrices) -> Matrices:
    """Return the eigenvectors of each matrix as columns, the largest eigenvalue first."""
    return each(lambda s: jnp.linalg.eigh(s)[1][:, ::-1], statistics)


def turn(nu: jax.Array, statistics: Matrices, bases: Matrices) -> tuple[jax.Array, Matrices]:
    """Turn the bases by one power iteration and sort them, and `nu` with them, by eigenvalue."""
    turned: list[jax.Array | None] = []
    for axis, (s, q) in enumerate(zip(statistics, bases, strict=True)):
        if s is None or q is None:
            turned.append(None)
            continue
        power = s @ q
        order = jnp.argsort(-jnp.sum(q * power, axis=0))
        nu = jnp.take(nu, order, axis=axis)
        turned.append(jnp.linalg.qr(power[:, order])[0])
    return nu, tuple(turned)


def scale_by_soap(
    b1: float, b2: float, b3: float, eps: float, update_interval: int, max_axis: int
) -> optax.GradientTransformation:
    """Rescale updates according to SOAP; see `soap`. Skip its first update."""

    def init_fn(params: optax.Params) -> ScaleBySoapState:
        zeros = optax.tree.zeros_like(params)
        statistics, bases = init_matrices(params, max_axis)
        return ScaleBySoapState(jnp.zeros((), jnp.int32), zeros, zeros, statistics, bases)

    def update_fn(
        updates: optax.Updates, state: ScaleBySoapState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleBySoapState]:
        del params
        grads = updates
        first = state.count == 0
        step = jnp.maximum(state.count, 1)  # updates done, without the skipped one
        statistics = update_grams(grads, state.statistics, b3, max_axis)

        def direction(
            g: jax.Array, m: jax.Array, v: jax.Array, q: Matrices
        ) -> tuple[jax.Array, jax.Array, jax.Array]:
            to_basis = each(jnp.transpose, q)
            rotated = along_axes(g, to_basis)
            m = jnp.where(first, m, b1 * m + (1 - b1) * g)
            v = jnp.where(first, v, b2 * v + (1 - b2) * rotated * rotated)
            u = along_axes(m, to_basis) / (jnp.sqrt(v / (1 - b2**step)) + eps)
            return along_axes(u, q) / (1 - b1**step), m, v

        updates, mu, nu = map_leaves(direction, grads, state.mu, state.nu, state.bases)
        nu, bases = jax.lax.switch(
            jnp.where(first, 0, jnp.where(state.count % update_interval == 0, 1, 2)),
            [
                lambda: (nu, jax.tree.map(lambda g, s: first_bases(s), grads, statistics)),
                lambda: map_leaves(turn, nu, statistics, state.bases),
                lambda: (nu, state.bases),
            ],
        )
        count = optax.safe_increment(state.count)
        return updates, ScaleBySoapState(count, mu, nu, statistics, bases)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=1e-3,
    default_weight_decay=0.05,
    reference="the paper and its code, in NumPy",
    numeric_class="exact",
    state_per_parameter=9.6,
    cost="products along each axis, and a QR decomposition of each every update_interval steps",
    notes=(
        "The size of the state is for ViT-S: two matrices for each axis. "
        "The first gradient only sets the basis."
    ),
)
def soap(
    ctx: Context,
    *,
    b1: Beta = 0.95,
    b2: Beta = 0.95,
    b3: Beta = 0.95,
    eps: NonNegative = 1e-8,
    update_interval: Steps = 10,
    max_axis: Steps = 10000,
) -> optax.GradientTransformation:
    """Run Adam in the eigenbasis of Shampoo's matrices (SOAP); vectors get Adam's update.

    L_i <- b3 L_i + (1 - b3) (g gᵀ along axis i);  Q_i: its eigenvectors, turned now and then
    v <- b2 v + (1 - b2) (Qᵀ g)²;  p <- p - lr * (Q (Qᵀ m̂ / (sqrt(v̂) + eps)) + wd p)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient, which is kept outside the basis.
      b2: decay of the mean square in the basis.
      b3: decay of the matrices.
      eps: added to the root.
      update_interval: steps between two turns of the basis.
      max_axis: longest axis that gets a matrix.

    References:
      Vyas et al., 2024, arXiv 2409.11321
    """
    return skip_first_update(ctx.chain(scale_by_soap(b1, b2, b3, eps, update_interval, max_axis)))
