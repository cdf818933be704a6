"""Sophia-G: momentum over a clipped Gauss-Newton curvature, estimated every few steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.bounds import Beta, NonNegative, Positive, Steps
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import add_row


class ScaleBySophiaState(NamedTuple):
    """Trees have the shapes of the parameters."""

    count: jax.Array  # int32, shape ()
    mu: Any  # momentum
    hessian: Any  # mean square of gradients for sampled labels


def scale_by_sophia(
    b1: float, b2: float, rho: float, batch_size: int, update_interval: int, eps: float
) -> optax.GradientTransformationExtraArgs:
    """The mathematics of `sophia`."""

    def init(params):
        zeros = optax.tree.zeros_like(params)
        return ScaleBySophiaState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update(grads, state, params, *, key=None, sampled_label_grad_fn=None, **extra):
        if sampled_label_grad_fn is None or key is None:
            raise UserError(
                "sophia estimates curvature from sampled labels: pass key= and "
                "sampled_label_grad_fn=(params, key) -> grads to update."
            )
        samples = extra.get("batch_size", batch_size)

        def estimate(hessian):
            sampled = sampled_label_grad_fn(params, key)
            sampled = jax.tree.map(lambda g, h: g.astype(h.dtype), sampled, hessian)
            return optax.tree.update_moment(sampled, hessian, b2, 2)

        due = state.count % update_interval == 0
        hessian = jax.lax.cond(due, estimate, lambda hessian: hessian, state.hessian)
        mu = optax.tree.update_moment(grads, state.mu, b1, 1)
        updates = jax.tree.map(
            lambda m, h: jnp.clip(m / (rho * samples * h + eps), -1, 1), mu, hessian
        )
        return updates, ScaleBySophiaState(optax.safe_increment(state.count), mu, hessian)

    return optax.GradientTransformationExtraArgs(init, update)


@add_row(
    category="c",
    paper="Liu et al., 2023, arXiv 2305.14342",
    decays=("decoupled",),
    default_learning_rate=1e-4,
    default_weight_decay=0.1,
    paper_learning_rate=(1e-4,),
    paper_weight_decay=(0.1, 0.2),
    reference="the paper, in NumPy",
    numeric_class="exact",
    state_per_parameter=2,
    cost="element-wise, and a forward and a backward pass every update_interval steps",
    hooks=("key", "sampled_label_grad_fn"),
    notes="BOCB ran sophia@openmixup, whose curvature is never estimated.",
)
def sophia(
    pack: Packaging,
    *,
    b1: Beta = 0.965,
    b2: Beta = 0.99,
    rho: Positive = 0.04,
    batch_size: Steps = 5120,
    update_interval: Steps = 10,
    eps: NonNegative = 1e-15,
):
    """Sophia-G, with the Gauss-Newton-Bartlett estimate of the curvature.

    Every update_interval steps, with labels drawn from the model's own predictions:
    h <- b2 h + (1 - b2) ĝ²;  m <- b1 m + (1 - b1) g
    p <- p - lr * (clip(m / (rho batch_size h + eps), -1, 1) + wd p)

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the momentum.
      b2: decay of the curvature.
      rho: scale of the curvature; smaller clips more.
      batch_size: examples whose losses ĝ is the mean of, unless `update` is told (`batch_size=`).
      update_interval: steps between two estimates.
      eps: added to the denominator.
    """
    return pack.chain(scale_by_sophia(b1, b2, rho, batch_size, update_interval, eps))


@add_row(
    name="sophia@openmixup",
    category="c",
    paper="Liu et al., 2023, arXiv 2305.14342; BOCB, arXiv 2410.06373",
    decays=("decoupled",),
    default_learning_rate=1e-4,
    default_weight_decay=0.1,
    paper_learning_rate=(1e-4,),
    paper_weight_decay=(0.1, 0.2),
    reference="OpenMixup",
    numeric_class="exact",
    state_per_parameter=1,
)
def sophia_openmixup(pack: Packaging, *, b1: Beta = 0.965, eps: Positive = 1e-15):
    """Sophia as the code behind BOCB ran it: its curvature stays 0, so it takes the sign.

    m <- b1 m + (1 - b1) g;  p <- p - lr * (clip(m / eps, -1, 1) + wd p)

    Args:
      pack: learning rate, weight decay and masks.
      b1: decay of the momentum.
      eps: momenta below it count for less than a sign.
    """

    def sign(mu, params):
        return jax.tree.map(lambda m: jnp.clip(m / eps, -1, 1), mu)

    return pack.chain(optax.ema(b1, debias=False), optax.stateless(sign))
