"""Optimizers around another one: "sam+sgd", "lookahead+adamw", and cautious ones ("cadamw")."""

import dataclasses
import inspect
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.bounds import NonNegative, Positive, Steps
from bocb_jax.optim.context import Packaging
from bocb_jax.optim.registry import OPTIMIZERS, OptimizerInfo, add_prefix, optimizer_info


class WrappedState(NamedTuple):
    """State of an optimizer around another."""

    own: Any
    base: Any


def _around(wrap, base: OptimizerInfo, **fields) -> OptimizerInfo:
    """The row of `wrap(pack, inner, *, ...)` around the optimizer of another row."""
    own = [p for p in inspect.signature(wrap).parameters.values() if p.kind is p.KEYWORD_ONLY]
    names = {p.name for p in own}

    def build(pack, **hyperparameters):
        mine = {k: hyperparameters.pop(k) for k in names & set(hyperparameters)}
        inner = optax.with_extra_args_support(base.build(pack, **hyperparameters))
        return wrap(pack, inner, **mine)

    base_signature = inspect.signature(base.build)
    build.__signature__ = base_signature.replace(
        parameters=[*base_signature.parameters.values(), *own]
    )
    build.__doc__ = wrap.__doc__
    build.__annotations__ = base.build.__annotations__ | wrap.__annotations__

    evaluation = base.evaluation_parameters
    if evaluation is not None:

        def unwrap(state, params, evaluate=evaluation):
            return evaluate(state._replace(inner_state=state.inner_state.base), params)

        evaluation = unwrap
    return dataclasses.replace(
        base,
        build=build,
        category="later",
        paper_learning_rate=(),
        paper_weight_decay=(),
        evaluation_parameters=evaluation,
        **fields,
    )


def sharpness_aware(
    pack: Packaging,
    inner: optax.GradientTransformationExtraArgs,
    *,
    sam_rho: Positive = 0.05,
    sam_adaptive: bool = False,
):
    """SAM: the gradient where the loss is highest nearby.

    e = sam_rho g / |g|;  g <- gradient at p + e, on the same batch
    Adaptive: e = sam_rho p² g / |p g|, so that rescaled weights are treated alike.

    Args:
      pack: unused.
      inner: optimizer that gets the new gradient.
      sam_rho: radius of the neighborhood.
      sam_adaptive: measure it relative to the weights (ASAM).
    """

    def update(grads, state, params, *, value_and_grad_fn=None, **extra):
        if value_and_grad_fn is None:
            raise UserError(
                "sam takes a second gradient: pass value_and_grad_fn=params -> (loss, grads) "
                "to update."
            )
        climb = jax.tree.map(lambda g, p: p * p * g if sam_adaptive else g, grads, params)
        size = jax.tree.map(lambda g, p: p * g if sam_adaptive else g, grads, params)
        scale = sam_rho / (optax.tree.norm(size) + 1e-12)
        top = jax.tree.map(lambda p, e: p + (scale * e).astype(p.dtype), params, climb)
        value, sharp = value_and_grad_fn(top)
        extra = {**extra, "value": value, "value_and_grad_fn": value_and_grad_fn}
        sharp = jax.tree.map(lambda s, g: s.astype(g.dtype), sharp, grads)
        updates, base = inner.update(sharp, state.base, params, **extra)
        return updates, WrappedState(None, base)

    def init(params):
        return WrappedState(None, inner.init(params))

    return optax.GradientTransformationExtraArgs(init, update)


class LookaheadState(NamedTuple):
    """Slow weights with the shapes of the parameters."""

    count: jax.Array  # int32, shape ()
    slow: Any


def looking_ahead(
    pack: Packaging,
    inner: optax.GradientTransformationExtraArgs,
    *,
    sync_period: Steps = 6,
    slow_step_size: NonNegative = 0.5,
):
    """Lookahead: every few updates, back to a point between the start and the end of them.

    Every sync_period updates: slow <- slow + slow_step_size (p - slow);  p <- slow

    Args:
      pack: unused.
      inner: optimizer of the updates in between.
      sync_period: their number.
      slow_step_size: how far the slow weights follow.
    """

    def init(params):
        slow = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias
        return WrappedState(LookaheadState(jnp.zeros((), jnp.int32), slow), inner.init(params))

    def update(grads, state, params, **extra):
        updates, base = inner.update(grads, state.base, params, **extra)
        count = optax.safe_increment(state.own.count)
        due = count % sync_period == 0
        slow = jax.tree.map(
            lambda s, p, u: jnp.where(due, s + slow_step_size * (p + u - s), s),
            state.own.slow,
            params,
            updates,
        )
        updates = jax.tree.map(lambda u, s, p: jnp.where(due, s - p, u), updates, slow, params)
        return updates, WrappedState(LookaheadState(count, slow), base)

    return optax.GradientTransformationExtraArgs(init, update)


@add_prefix("sam+")
def sam_around(base: OptimizerInfo) -> OptimizerInfo:
    """The row of SAM around another optimizer."""
    return _around(
        sharpness_aware,
        base,
        name=f"sam+{base.name}",
        summary=f"Sharpness-aware minimization with the steps of {base.name}.",
        paper="Foret et al., 2021, arXiv 2010.01412; adaptive: Kwon et al., 2021, arXiv 2102.11600",
        reference="the paper, in NumPy",
        numeric_class="exact",
        cost="a second forward and backward pass",
        hooks=(*base.hooks, "value_and_grad_fn"),
        notes="Running statistics of BatchNorm must come from the first pass.",
    )


@add_prefix("lookahead+")
def lookahead_around(base: OptimizerInfo) -> OptimizerInfo:
    """The row of Lookahead around another optimizer."""
    return _around(
        looking_ahead,
        base,
        name=f"lookahead+{base.name}",
        summary=f"Lookahead around {base.name}.",
        paper="Zhang et al., 2019, arXiv 1907.08610",
        reference="the paper, in NumPy",
        numeric_class="exact",
        state_per_parameter=base.state_per_parameter + 1,
    )


CAUTIOUS = (
    *("sgd", "adam", "adamax", "adamw", "lion", "nadam", "radam", "lamb", "adan", "adabelief"),
    *("novograd", "sophia", "ademamix", "adopt", "mars", "adam_mini"),
)


@add_prefix("c")
def cautious(base: OptimizerInfo) -> OptimizerInfo | None:
    """The row of the cautious variant, for optimizers that have one."""
    if base.name not in CAUTIOUS:
        return None
    return dataclasses.replace(
        base,
        name=f"c{base.name}",
        category="later",
        cautious=True,
        summary=f"The cautious variant of {base.name}.",
        paper="Liang et al., 2024, Cautious Optimizers, arXiv 2411.16085",
        reference=f"{base.reference}, caution=True",
        paper_learning_rate=(),
        paper_weight_decay=(),
        notes="Components of the update that oppose the gradient are dropped; the rest make up.",
    )


# The most usual ones are listed; any other combination is found by name.
for _name in ("sam+sgd", "lookahead+adamw", "cadamw", "clion", "clamb"):
    OPTIMIZERS.register(_name, optimizer_info(_name))
