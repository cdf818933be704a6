"""Gradient transformations that several optimizers are composed of."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from bocb_jax.optim.trees import PerParam


def scale_by_moments(
    b1: float, b2: float, direction: Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
) -> optax.GradientTransformation:
    """Replace the gradient by a function of Adam's two moments.

    Args:
      b1: decay of the mean of the gradient, mu.
      b2: decay of the mean of its square, nu.
      direction: (count of updates with this one, mu, nu) -> update, for each tensor.
    """

    def init_fn(params: optax.Params) -> optax.ScaleByAdamState:
        zeros = optax.tree.zeros_like(params)
        return optax.ScaleByAdamState(jnp.zeros((), jnp.int32), zeros, zeros)

    def update_fn(
        updates: optax.Updates, state: optax.ScaleByAdamState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        del params
        count = optax.safe_increment(state.count)
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        updates = jax.tree.map(lambda m, v: direction(count, m, v), mu, nu)
        return updates, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(init_fn, update_fn)


def add_decayed_weights(
    weight_decay: float | jax.Array, mask: PerParam
) -> optax.GradientTransformation:
    """Add `weight_decay * p` to the updates of the masked parameters.

    Unlike Optax's transformation of this name it has no state, whatever the mask.

    Args:
      weight_decay: coefficient, shape ().
      mask: parameters -> tree of booleans.
    """

    def update_fn(updates: optax.Updates, params: optax.Params) -> optax.Updates:
        return jax.tree.map(
            lambda u, p, decayed: u + weight_decay * p if decayed else u,
            updates,
            params,
            mask(params),
        )

    return optax.stateless(update_fn)


def make_cautious(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Keep only the components of the update that agree in sign with the gradient.

    u <- u * [u * g > 0] / max(mean [u * g > 0], 1e-3), for each tensor; the floor is timm's.

    Args:
      inner: makes the update u from the gradient g.

    References:
      Liang et al., 2024, Cautious Optimizers, arXiv 2411.16085
    """
    inner = optax.with_extra_args_support(inner)

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: object,
    ) -> tuple[optax.Updates, optax.OptState]:
        grads = updates
        updates, state = inner.update(grads, state, params, **extra_args)

        def keep_agreeing(u: jax.Array, g: jax.Array) -> jax.Array:
            agrees = (u * g > 0).astype(u.dtype)
            return u * agrees / jnp.maximum(agrees.mean(), 1e-3)

        return jax.tree.map(keep_agreeing, updates, grads), state

    return optax.GradientTransformationExtraArgs(inner.init, update_fn)


def skip_first_update(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """Show `inner` the first gradient, but change no parameter with it.

    The state is (updates done: int32, shape (); state of `inner`).
    """

    def init_fn(params: optax.Params) -> tuple[jax.Array, optax.OptState]:
        return jnp.zeros((), jnp.int32), inner.init(params)

    def update_fn(
        updates: optax.Updates,
        state: tuple[jax.Array, optax.OptState],
        params: optax.Params | None = None,
    ) -> tuple[optax.Updates, tuple[jax.Array, optax.OptState]]:
        count, inner_state = state
        updates, inner_state = inner.update(updates, inner_state, params)
        updates = jax.tree.map(lambda u: jnp.where(count == 0, 0, u), updates)
        return updates, (optax.safe_increment(count), inner_state)

    return optax.GradientTransformation(init_fn, update_fn)
