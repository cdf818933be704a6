"""Sophia-G: momentum over a clipped Gauss-Newton curvature, estimated every few steps."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.bounds import Beta, NonNegative, Positive, Steps
from bocb_jax.optim.context import Context
from bocb_jax.optim.registry import add_row


class ScaleBySophiaState(NamedTuple):
    """State of `scale_by_sophia`; trees have the shapes of the parameters."""

    count: Any  # updates done: int32, shape ()
    mu: optax.Updates  # mean gradient
    hessian: optax.Updates  # mean square of gradients for sampled labels


def scale_by_sophia(
    b1: float, b2: float, rho: float, batch_size: int, update_interval: int, eps: float
) -> optax.GradientTransformationExtraArgs:
    """Rescale updates according to Sophia-G; see `sophia`.

    `update` needs `key` and `sampled_label_grad_fn`: (params, key) -> gradient of the loss for
    labels drawn from the model's predictions. An extra argument `batch_size` replaces the setting.
    """

    def init_fn(params: optax.Params) -> ScaleBySophiaState:
        zeros = optax.tree.zeros_like(params)
        return ScaleBySophiaState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update_fn(
        updates: optax.Updates,
        state: ScaleBySophiaState,
        params: optax.Params | None = None,
        *,
        key: jax.Array | None = None,
        sampled_label_grad_fn: Callable[[optax.Params, jax.Array], optax.Updates] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, ScaleBySophiaState]:
        if sampled_label_grad_fn is None or key is None:
            raise UserError(
                "sophia estimates curvature from sampled labels: pass key= and "
                "sampled_label_grad_fn=(params, key) -> grads to update."
            )
        samples = extra_args.get("batch_size", batch_size)

        def estimate(hessian: optax.Updates) -> optax.Updates:
            sampled = sampled_label_grad_fn(params, key)
            sampled = jax.tree.map(lambda g, h: g.astype(h.dtype), sampled, hessian)
            return optax.tree.update_moment(sampled, hessian, b2, 2)

        due = state.count % update_interval == 0
        hessian = jax.lax.cond(due, estimate, lambda hessian: hessian, state.hessian)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        updates = jax.tree.map(
            lambda m, h: jnp.clip(m / (rho * samples * h + eps), -1, 1), mu, hessian
        )
        return updates, ScaleBySophiaState(optax.safe_increment(state.count), mu, hessian)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@add_row(
    decays=("decoupled",),
    default_learning_rate=1e-4,
    default_weight_decay=0.1,
    reference="the paper, in NumPy",
    numeric_class="exact",
    state_per_parameter=2,
    cost="element-wise, and a forward and a backward pass every update_interval steps",
    extra_args=("key", "sampled_label_grad_fn"),
    notes="BOCB ran sophia@openmixup, whose curvature is never estimated.",
)
def sophia(
    ctx: Context,
    *,
    b1: Beta = 0.965,
    b2: Beta = 0.99,
    rho: Positive = 0.04,
    batch_size: Steps = 5120,
    update_interval: Steps = 10,
    eps: NonNegative = 1e-15,
) -> optax.GradientTransformation:
    """Divide the mean gradient by the Gauss-Newton-Bartlett curvature, clipped to 1 (Sophia-G).

    Every update_interval steps, with labels drawn from the model's own predictions:
    h <- b2 h + (1 - b2) ĝ²;  m <- b1 m + (1 - b1) g
    p <- p - lr * (clip(m / (rho batch_size h + eps), -1, 1) + wd p)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      b2: decay of the curvature.
      rho: scale of the curvature; smaller clips more.
      batch_size: examples whose losses ĝ is the mean of, unless `update` is told (`batch_size=`).
      update_interval: steps between two estimates.
      eps: added to the denominator.

    References:
      Liu et al., 2023, arXiv 2305.14342
    """
    return ctx.chain(scale_by_sophia(b1, b2, rho, batch_size, update_interval, eps))


@add_row(
    name="sophia@openmixup",
    decays=("decoupled",),
    default_learning_rate=1e-4,
    default_weight_decay=0.1,
    reference="OpenMixup",
    numeric_class="exact",
    state_per_parameter=1,
)
def sophia_openmixup(
    ctx: Context, *, b1: Beta = 0.965, eps: Positive = 1e-15
) -> optax.GradientTransformation:
    """Apply Sophia as the code behind BOCB ran it: its curvature stays 0, so it takes the sign.

    m <- b1 m + (1 - b1) g;  p <- p - lr * (clip(m / eps, -1, 1) + wd p)

    Args:
      ctx: learning rate, weight decay and masks.
      b1: decay of the mean of the gradient.
      eps: means smaller than it count for less than their sign.

    References:
      Liu et al., 2023, arXiv 2305.14342; BOCB, arXiv 2410.06373
    """

    def sign(mu: optax.Updates, params: optax.Params) -> optax.Updates:
        del params
        return jax.tree.map(lambda m: jnp.clip(m / eps, -1, 1), mu)

    return ctx.chain(optax.ema(b1, debias=False), optax.stateless(sign))
