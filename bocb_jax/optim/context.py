"""What surrounds the mathematics of every optimizer: weight decay, masks and the learning rate."""

import dataclasses
from typing import Any

import jax
import optax

from bocb_jax.optim.transforms import add_decayed_weights, make_cautious
from bocb_jax.optim.trees import PerParam

DECAYS = ("l2", "decoupled", "proximal")


@dataclasses.dataclass(frozen=True)
class Context:
    """What all optimizers share; the first argument of each builder.

    Inside a compiled step the rates are traced scalars. Masks, kinds and multipliers are functions
    of the parameters, because only there are paths and shapes known.

    Args:
      learning_rate: of this update, shape ().
      peak_learning_rate: largest one of the schedule, shape (); None if the schedule hides it.
      weight_decay: coefficient of the decay, shape ().
      decay: "l2" (added to the gradient, before the mathematics), "decoupled" (added to the
        update, after it) or "proximal" (p / (1 + lr * wd) after the step).
      mask: parameters -> tree of booleans: where decay applies.
      kinds: parameters -> tree of parameter kinds.
      multipliers: parameters -> tree of factors on the learning rate.
      cautious: drop the components of the update that oppose the gradient.
    """

    learning_rate: float | jax.Array
    peak_learning_rate: float | jax.Array | None
    weight_decay: float | jax.Array
    decay: str
    mask: PerParam
    kinds: PerParam
    multipliers: PerParam
    cautious: bool = False

    def chain(self, *parts: optax.GradientTransformation) -> optax.GradientTransformation:
        """Return the whole optimizer around the transformations that make its direction."""
        before = [self.add_decayed_weights()] if self.decay == "l2" else []
        after = [self.add_decayed_weights()] if self.decay == "decoupled" else []
        return optax.chain(*before, self.direction(*parts), *after, self.scale_by_learning_rate())

    def direction(self, *parts: optax.GradientTransformation) -> optax.GradientTransformation:
        """Chain the transformations, and make the result cautious if asked for."""
        inner = optax.chain(*parts)
        return make_cautious(inner) if self.cautious else inner

    def add_decayed_weights(self) -> optax.GradientTransformation:
        """Add `weight_decay * p` to the updates of the masked parameters."""
        return add_decayed_weights(self.weight_decay, self.mask)

    def scale_by_learning_rate(self) -> optax.GradientTransformation:
        """Turn the direction u into the change -lr * u, or its proximal form."""

        def change(u: jax.Array, p: jax.Array, rate: jax.Array, decayed: bool) -> jax.Array:
            if self.decay == "proximal" and decayed:  # (p - lr u) / (1 + lr wd) - p
                return -rate * (u + self.weight_decay * p) / (1 + rate * self.weight_decay)
            return -rate * u

        def update_fn(updates: optax.Updates, params: optax.Params) -> optax.Updates:
            rates, mask = self.learning_rates(params), self.mask(params)
            return jax.tree.map(change, updates, params, rates, mask)

        return optax.stateless(update_fn)

    def scale_by_multipliers(self) -> optax.GradientTransformation:
        """Scale finished changes by the learning-rate multipliers."""

        def update_fn(updates: optax.Updates, params: optax.Params) -> optax.Updates:
            return jax.tree.map(
                lambda u, factor: u if factor == 1 else u * factor,
                updates,
                self.multipliers(params),
            )

        return optax.stateless(update_fn)

    def learning_rates(self, params: optax.Params) -> Any:
        """Return the learning rate of each parameter, as a tree of scalars like `params`."""
        return jax.tree.map(
            lambda factor: self.learning_rate if factor == 1 else self.learning_rate * factor,
            self.multipliers(params),
        )
