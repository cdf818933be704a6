"""Muon: momentum made orthogonal for matrices and convolutions, AdamW for everything else."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.bounds import Beta, NonNegative, Steps
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row
from bocb_jax.optim.trees import PerParam, map_leaves

Adjust = Literal["match_rms_adamw", "original"]
ORTHOGONALIZED_KINDS = ("matrix", "conv")  # not depthwise kernels, heads, tables and vectors
QUINTIC = (3.4445, -4.7750, 2.0315)  # steep at 0, and within 0.7 to 1.2 for singular values up to 1


class Moments(NamedTuple):
    """Moments of one tensor, each with its shape."""

    mu: jax.Array
    nu: jax.Array | None  # None for a tensor that is orthogonalized


class ScaleByMuonState(NamedTuple):
    """State of `scale_by_muon`."""

    count: Any  # updates done: int32, shape ()
    moments: Any  # `Moments` for each parameter


def orthogonalize(x: jax.Array, steps: int, eps: float = 1e-7) -> jax.Array:
    """Bring the singular values of a matrix close to 1 by Newton-Schulz iteration.

    Args:
      x: shape (rows, columns).
      steps: iterations of X <- a X + (b X Xᵀ + c (X Xᵀ)²) X.
      eps: least norm to divide by.

    Returns:
      A matrix of the same shape.
    """
    if x.shape[0] > x.shape[1]:
        return orthogonalize(x.T, steps, eps).T
    a, b, c = QUINTIC
    x = x / jnp.maximum(optax.tree.norm(x), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def shape_scale(inputs: int, outputs: int, adjust: Adjust) -> float:
    """Return the factor on an orthogonal (inputs, outputs) matrix before the learning rate."""
    if adjust == "original":
        return max(1.0, outputs / inputs) ** 0.5
    return 0.2 * max(inputs, outputs) ** 0.5


def scale_by_muon(
    kinds: PerParam,
    *,
    momentum: float,
    nesterov: bool,
    ns_steps: int,
    adjust: Adjust,
    b1: float,
    b2: float,
    eps: float,
) -> optax.GradientTransformation:
    """Orthogonalize the momentum of matrices and kernels; apply Adam to other tensors.

    Args:
      kinds: parameters -> tree of parameter kinds, which decide what is orthogonalized.
      momentum: decay of the momentum of matrices.
      nesterov: look ahead along the momentum.
      ns_steps: Newton-Schulz iterations.
      adjust: rule of `shape_scale`.
      b1: Adam's decay of the mean of the gradient.
      b2: Adam's decay of the mean of its square.
      eps: Adam's addition to the root.
    """

    def init_fn(params: optax.Params) -> ScaleByMuonState:
        def zeros(p: jax.Array, kind: str) -> tuple[Moments]:
            nu = None if kind in ORTHOGONALIZED_KINDS else jnp.zeros_like(p)
            return (Moments(jnp.zeros_like(p), nu),)

        (moments,) = map_leaves(zeros, params, kinds(params))
        return ScaleByMuonState(jnp.zeros((), jnp.int32), moments)

    def update_fn(
        updates: optax.Updates, state: ScaleByMuonState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, ScaleByMuonState]:
        del params
        count = optax.safe_increment(state.count)

        def adam(g: jax.Array, mu: jax.Array, nu: jax.Array) -> tuple[jax.Array, Moments]:
            mu, nu = b1 * mu + (1 - b1) * g, b2 * nu + (1 - b2) * g * g
            u = mu / (1 - b1**count) / (jnp.sqrt(nu / (1 - b2**count)) + eps)
            return u, Moments(mu, nu)

        def direction(g: jax.Array, moments: Moments) -> tuple[jax.Array, Moments]:
            if moments.nu is not None:
                return adam(g, moments.mu, moments.nu)
            mu = momentum * moments.mu + (1 - momentum) * g
            ahead = momentum * mu + (1 - momentum) * g if nesterov else mu
            flat = ahead.reshape(-1, g.shape[-1])  # (height * width * in, out)
            inputs, outputs = flat.shape
            u = orthogonalize(flat, ns_steps) * shape_scale(inputs, outputs, adjust)
            return u.reshape(g.shape), Moments(mu, None)

        updates, moments = map_leaves(direction, updates, state.moments)
        return updates, ScaleByMuonState(count, moments)

    return optax.GradientTransformation(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=1e-3,
    default_weight_decay=0.05,
    reference="timm.optim.Muon, in float64",
    numeric_class="exact",
    state_per_parameter=1,
    cost="ns_steps times three products of each matrix",
    notes="Parameter kinds decide what is a matrix; a head that lacks a kind counts as one.",
)
def muon(
    ctx: Context,
    *,
    momentum: Beta = 0.95,
    nesterov: bool = True,
    ns_steps: Steps = 5,
    adjust: Adjust = "match_rms_adamw",
    b1: Beta = 0.9,
    b2: Beta = 0.95,
    eps: NonNegative = 1e-8,
) -> optax.GradientTransformation:
    """Orthogonalize the momentum of matrices and kernels; train the rest with AdamW (Muon).

    m <- momentum m + (1 - momentum) g;  p <- p - lr * (scale * orthogonal(m) + wd p)
    A kernel counts as an (in * height * width, out) matrix.

    Args:
      ctx: learning rate, weight decay and masks.
      momentum: decay of the momentum of matrices.
      nesterov: look ahead along the momentum.
      ns_steps: Newton-Schulz iterations that make it orthogonal.
      adjust: "match_rms_adamw" scales with 0.2 sqrt(longer side), so that AdamW's learning rates
        serve for both; "original" with sqrt(max(1, out / in)).
      b1: AdamW's decay of the mean of the gradient.
      b2: AdamW's decay of the mean of its square.
      eps: AdamW's addition to the root.

    References:
      Jordan et al., 2024, kellerjordan.github.io/posts/muon; Liu et al., 2025, 2502.16982
    """
    return ctx.chain(
        scale_by_muon(
            ctx.kinds,
            momentum=momentum,
            nesterov=nesterov,
            ns_steps=ns_steps,
            adjust=adjust,
            b1=b1,
            b2=b2,
            eps=eps,
        )
    )
