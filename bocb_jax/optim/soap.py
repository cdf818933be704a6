"""SOAP: Adam in the slowly turning eigenbasis of Shampoo's matrices."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Steps
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.kronecker import Matrices, along_axes, each, mean_grams, start
from bocb_jax.optim.later_from_optax import skip_first_update
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import map_leaves


class SoapState(NamedTuple):
    """Trees like the parameters; statistics and bases hold one matrix for each axis."""

    count: jax.Array  # int32, shape ()
    mu: Any
    nu: Any  # in the eigenbasis
    statistics: Any
    bases: Any  # eigenvectors as columns


def first_bases(statistics: Matrices) -> Matrices:
    """Eigenvectors, the largest eigenvalue first."""
    return each(lambda s: jnp.linalg.eigh(s)[1][:, ::-1], statistics)


def turn(nu: jax.Array, statistics: Matrices, bases: Matrices) -> tuple[jax.Array, Matrices]:
    """One power iteration of the bases, sorted by eigenvalue; `nu` is sorted along."""
    turned = []
    for axis, (s, q) in enumerate(zip(statistics, bases, strict=True)):
        if s is None:
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
    """The mathematics of `soap`, whose first update is to be skipped."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return SoapState(jnp.zeros((), jnp.int32), zeros, zeros, *start(params, max_axis))

    def update(grads, state, params=None):
        first = state.count == 0
        step = jnp.maximum(state.count, 1)  # updates done, the skipped one left out
        statistics = mean_grams(grads, state.statistics, b3, max_axis)

        def direction(g, m, v, q):
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
        return updates, SoapState(count, mu, nu, statistics, bases)

    return optax.GradientTransformation(init, update)


@add_row(
    category="later",
    paper="Vyas et al., 2024, arXiv 2409.11321",
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
    pack: Packaging,
    *,
    b1: Beta = 0.95,
    b2: Beta = 0.95,
    b3: Beta = 0.95,
    eps: NonNegative = 1e-8,
    update_interval: Steps = 10,
    max_axis: Steps = 10000,
):
    """SOAP: Adam in the eigenbasis of Shampoo's matrices; vectors get Adam's update.

    L_i <- b3 L_i + (1 - b3) (g gᵀ along axis i);  Q_i: its eigenvectors, turned now and then
    v <- b2 v + (1 - b2) (Qᵀ g)²;  p <- p - lr * (Q (Qᵀ m̂ / (sqrt(v̂) + eps)) + wd p)

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient, which is kept outside the basis.
      b2: decay of the mean square in the basis.
      b3: decay of the matrices.
      eps: added to the root.
      update_interval: steps between two turns of the basis.
      max_axis: longest axis that gets a matrix.
    """
    return skip_first_update(pack.chain(scale_by_soap(b1, b2, b3, eps, update_interval, max_axis)))
