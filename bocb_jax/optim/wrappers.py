"""Optimizers around another one: "sam+sgd", "lookahead+adamw", and cautious ones ("cadamw")."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.bounds import NonNegative, Positive, Steps, set_signature
from bocb_jax.optim.context import Context
from bocb_jax.optim.injected import OptimizerState
from bocb_jax.optim.registry import (
    OPTIMIZERS,
    OptimizerInfo,
    add_prefix,
    category_of,
    optimizer_info,
    reference_of,
)
from bocb_jax.optim.transforms import make_cautious


class WrappedState(NamedTuple):
    """State of an optimizer around another."""

    own: Any  # of the wrapper; None if it has none
    base: optax.OptState  # of the optimizer that is wrapped


def _around(
    wrap: Callable[..., optax.GradientTransformationExtraArgs], base: OptimizerInfo, **fields: Any
) -> OptimizerInfo:
    """Return the row of `wrap(inner, *, ...)` around the optimizer of another row."""
    own = [p for p in inspect.signature(wrap).parameters.values() if p.kind is p.KEYWORD_ONLY]
    names = {p.name for p in own}
    if names & set(base.hyperparameters):  # whose would these be?
        wrapper = fields["name"].removesuffix(base.name).removesuffix("+")
        raise UserError(
            f"'{fields['name']}' wraps an optimizer in {wrapper} twice; name each wrapper once."
        )

    def build(ctx: Context, **hyperparameters: Any) -> optax.GradientTransformation:
        mine = {k: hyperparameters.pop(k) for k in names & set(hyperparameters)}
        inner = optax.with_extra_args_support(base.build(ctx, **hyperparameters))
        return wrap(inner, **mine)

    signature = inspect.signature(base.build)
    set_signature(build, signature.replace(parameters=[*signature.parameters.values(), *own]))
    build.__doc__ = wrap.__doc__
    build.__annotations__ = base.build.__annotations__ | wrap.__annotations__
    return dataclasses.replace(
        base,
        build=build,
        category=category_of(fields["name"]),
        paper=reference_of(wrap),
        evaluation_parameters=_evaluation_of(base),
        **fields,
    )


def _evaluation_of(base: OptimizerInfo) -> Callable[[OptimizerState, Any], Any] | None:
    """Return `evaluation_parameters` of a wrapped optimizer, for the state of its wrapper."""
    evaluate = base.evaluation_parameters
    if evaluate is None:
        return None

    def unwrapped(state: OptimizerState, params: optax.Params) -> optax.Params:
        return evaluate(state._replace(inner_state=state.inner_state.base), params)

    return unwrapped


def sharpness_aware(
    inner: optax.GradientTransformationExtraArgs,
    *,
    sam_rho: Positive = 0.05,
    sam_adaptive: bool = False,
) -> optax.GradientTransformationExtraArgs:
    """Take the gradient where the loss is highest nearby (SAM).

    e = sam_rho g / |g|;  g <- gradient at p + e, on the same batch
    Adaptive: e = sam_rho p² g / |p g|, so that rescaled weights are treated alike.

    Args:
      inner: optimizer that gets the new gradient.
      sam_rho: radius of the neighborhood.
      sam_adaptive: measure it relative to the weights (ASAM).

    References:
      Foret et al., 2021, arXiv 2010.01412; adaptive: Kwon et al., 2021, arXiv 2102.11600
    """

    def init_fn(params: optax.Params) -> WrappedState:
        return WrappedState(None, inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: WrappedState,
        params: optax.Params | None = None,
        *,
        value_and_grad_fn: Callable[[optax.Params], tuple[jax.Array, optax.Updates]] | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WrappedState]:
        if value_and_grad_fn is None:
            raise UserError(
                "sam takes a second gradient: pass value_and_grad_fn=params -> (loss, grads) "
                "to update."
            )
        grads = updates
        climb = jax.tree.map(lambda g, p: p * p * g if sam_adaptive else g, grads, params)
        size = jax.tree.map(lambda g, p: p * g if sam_adaptive else g, grads, params)
        scale = sam_rho / (optax.tree.norm(size) + 1e-12)
        top = jax.tree.map(lambda p, e: p + (scale * e).astype(p.dtype), params, climb)
        value, sharp = value_and_grad_fn(top)
        extra_args = {**extra_args, "value": value, "value_and_grad_fn": value_and_grad_fn}
        sharp = jax.tree.map(lambda s, g: s.astype(g.dtype), sharp, grads)
        updates, base = inner.update(sharp, state.base, params, **extra_args)
        return updates, WrappedState(None, base)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


class LookaheadState(NamedTuple):
    """State of `looking_ahead`."""

    count: Any  # updates done: int32, shape ()
    slow: optax.Params  # slow weights; shapes of the parameters


def looking_ahead(
    inner: optax.GradientTransformationExtraArgs,
    *,
    sync_period: Steps = 6,
    slow_step_size: NonNegative = 0.5,
) -> optax.GradientTransformationExtraArgs:
    """Return, every few updates, to a point between their start and their end (Lookahead).

    Every sync_period updates: slow <- slow + slow_step_size (p - slow);  p <- slow

    Args:
      inner: optimizer of the updates in between.
      sync_period: their number.
      slow_step_size: how far the slow weights follow.

    References:
      Zhang et al., 2019, arXiv 1907.08610
    """

    def init_fn(params: optax.Params) -> WrappedState:
        slow = jax.tree.map(lambda p: jnp.array(p, copy=True), params)  # no alias
        return WrappedState(LookaheadState(jnp.zeros((), jnp.int32), slow), inner.init(params))

    def update_fn(
        updates: optax.Updates,
        state: WrappedState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, WrappedState]:
        updates, base = inner.update(updates, state.base, params, **extra_args)
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

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


@add_prefix("sam+")
def sam_around(base: OptimizerInfo) -> OptimizerInfo:
    """Return the row of SAM around another optimizer."""
    return _around(
        sharpness_aware,
        base,
        name=f"sam+{base.name}",
        summary=f"Take the gradient where the loss is highest nearby, and step with {base.name}.",
        reference="the paper, in NumPy",
        numeric_class="exact",
        cost="a second forward and backward pass",
        extra_args=(*base.extra_args, "value_and_grad_fn"),
        notes="Running statistics of BatchNorm must come from the first pass.",
    )


@add_prefix("lookahead+")
def lookahead_around(base: OptimizerInfo) -> OptimizerInfo:
    """Return the row of Lookahead around another optimizer."""
    return _around(
        looking_ahead,
        base,
        name=f"lookahead+{base.name}",
        summary=f"Return every few updates of {base.name} to a point between start and end.",
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
    """Return the row of the cautious variant, for optimizers that have one."""
    if base.name not in CAUTIOUS:
        return None
    name = f"c{base.name}"
    return dataclasses.replace(
        base,
        name=name,
        category=category_of(name),
        cautious=True,
        summary=f"Keep the components of {base.name}'s update that agree with the gradient.",
        paper=reference_of(make_cautious),
        reference=f"{base.reference}, caution=True",
        notes="Components of the update that oppose the gradient are dropped, the rest scaled up.",
    )


# The most usual ones are listed; any other combination is found by name.
for _name in ("sam+sgd", "lookahead+adamw", "cadamw", "clion", "clamb"):
    OPTIMIZERS.register(_name, optimizer_info(_name))
