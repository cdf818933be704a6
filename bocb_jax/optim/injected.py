"""Learning rate and weight decay as arrays in the optimizer's state.

A compiled update then serves every learning rate and weight decay, and `jax.vmap` can train many
of them at once. (Optax's `inject_hyperparams` does this for any argument; here the learning rate is
a peak times the shape of a schedule.)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim.schedules import Schedule


class OptimizerState(NamedTuple):
    """State of every optimizer made by `create_optimizer`."""

    count: Any  # updates done: int32, shape ()
    hyperparameters: dict[str, jax.Array]  # "learning_rate" (the peak) and "weight_decay", shape ()
    learning_rate: jax.Array  # of the last update, shape ()
    inner_state: optax.OptState


# (learning rate of this update, peak learning rate, weight decay) -> the optimizer
Builder = Callable[[jax.Array, jax.Array, jax.Array], optax.GradientTransformation]


def with_hyperparameters(
    build: Builder, schedule: Schedule, weight_decay: float | jax.Array
) -> optax.GradientTransformationExtraArgs:
    """Wrap an optimizer so that its learning rate and weight decay come from its state.

    Arithmetic and state are in float32 at least; updates have the parameters' types.

    Args:
      build: makes the optimizer from scalar arrays; called whenever an update is traced.
      schedule: its peak becomes an array of the state, its shape part of the program.
      weight_decay: becomes an array of the state.
    """

    def init_fn(params: optax.Params) -> OptimizerState:
        params = _widen(params)
        dtype = jnp.result_type(jnp.float32, *jax.tree.leaves(params))
        peak = jnp.asarray(schedule.peak, dtype)
        decay = jnp.asarray(weight_decay, dtype)
        count = jnp.zeros((), jnp.int32)
        rate = (peak * schedule.shape(count)).astype(dtype)
        return OptimizerState(
            count=count,
            hyperparameters={"learning_rate": peak, "weight_decay": decay},
            learning_rate=rate,
            inner_state=_unshared(build(rate, peak, decay).init(params)),
        )

    def update_fn(
        updates: optax.Updates,
        state: OptimizerState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, OptimizerState]:
        if params is None:
            raise UserError("update(grads, state, params) needs the parameters: pass them.")
        peak, decay = (state.hyperparameters[k] for k in ("learning_rate", "weight_decay"))
        rate = (peak * schedule.shape(state.count)).astype(peak.dtype)
        inner = optax.with_extra_args_support(build(rate, peak, decay))
        wide, inner_state = inner.update(
            _widen(updates), state.inner_state, _widen(params), **extra_args
        )
        narrow = jax.tree.map(lambda u, p: u.astype(p.dtype), wide, params)
        count = optax.safe_increment(state.count)
        return narrow, OptimizerState(count, state.hyperparameters, rate, inner_state)

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _unshared(tree: Any) -> Any:
    """Copy arrays that occur more than once in a tree.

    Outside `jax.jit` two moments may begin as the same zeros; a step can donate a buffer only once.
    """
    seen = set()

    def own(x: jax.Array) -> jax.Array:
        if id(x) in seen:
            return jnp.array(x, copy=True)
        seen.add(id(x))
        return x

    return jax.tree.map(own, tree)


def _widen(tree: Any) -> Any:
    """Cast the leaves to float32 at least."""
    return jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), tree)


def set_hyperparameters(
    state: OptimizerState,
    *,
    learning_rate: float | jax.Array | None = None,
    weight_decay: float | jax.Array | None = None,
) -> OptimizerState:
    """Return the state with another (peak) learning rate or weight decay.

    Works on tracers, and so under `jax.jit` and `jax.vmap`; what is None stays as it is.
    """
    given = {"learning_rate": learning_rate, "weight_decay": weight_decay}
    new = {
        name: old if given[name] is None else jnp.asarray(given[name], old.dtype)
        for name, old in state.hyperparameters.items()
    }
    return state._replace(hyperparameters=new)


def current_learning_rate(state: OptimizerState) -> jax.Array:
    """Return the learning rate of the last update, or of the first before any; shape ()."""
    return state.learning_rate
