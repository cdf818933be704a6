"""What surrounds the mathematics of every optimizer: weight decay, masks and the learning rate."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

DECAYS = ("l2", "decoupled", "proximal")


@dataclasses.dataclass(frozen=True)
class Packaging:
    """The settings of one update that all optimizers share; the first argument of each builder.

    Rates are scalar arrays, traced inside a compiled step. Trees come from functions of the
    parameters because paths and shapes are first known there.

    Args:
      learning_rate: of this update.
      peak_learning_rate: that the schedule starts from.
      weight_decay: coefficient of the decay.
      decay: "l2" (joins the gradient, before the mathematics), "decoupled" (joins the update,
        after it, times the learning rate) or "proximal" (p / (1 + lr * wd) after the step).
      mask: params -> tree of booleans, where decay applies.
      kinds: params -> tree of parameter kinds.
      multipliers: params -> tree of factors on the learning rate.
      cautious: drop the components of the update that oppose the gradient.
    """

    learning_rate: jax.Array
    peak_learning_rate: jax.Array
    weight_decay: jax.Array
    decay: str
    mask: Callable[[Any], Any]
    kinds: Callable[[Any], Any]
    multipliers: Callable[[Any], Any]
    cautious: bool = False

    def chain(self, *direction: optax.GradientTransformation) -> optax.GradientTransformation:
        """The whole optimizer from the transformations that make its direction."""
        before = [self.add_decay()] if self.decay == "l2" else []
        after = [self.add_decay()] if self.decay == "decoupled" else []
        return optax.chain(*before, self.direction(*direction), *after, self.step())

    def direction(self, *parts: optax.GradientTransformation) -> optax.GradientTransformation:
        """The parts in a row, made cautious if that was asked for."""
        inner = optax.chain(*parts)
        return make_cautious(inner) if self.cautious else inner

    def add_decay(self) -> optax.GradientTransformation:
        """Adds `weight_decay * p` to the updates of the masked parameters."""

        def update(updates, params):
            return jax.tree.map(
                lambda u, p, decayed: u + self.weight_decay * p if decayed else u,
                updates,
                params,
                self.mask(params),
            )

        return optax.stateless(update)

    def step(self) -> optax.GradientTransformation:
        """Turns the direction u into the change -lr * u, or its proximal form."""

        def change(u, p, rate, decayed):
            if self.decay == "proximal" and decayed:  # (p - lr u) / (1 + lr wd) - p
                return -rate * (u + self.weight_decay * p) / (1 + rate * self.weight_decay)
            return -rate * u

        def update(updates, params):
            return jax.tree.map(change, updates, params, self.rates(params), self.mask(params))

        return optax.stateless(update)

    def multiply(self) -> optax.GradientTransformation:
        """Scales finished changes by the learning-rate multipliers."""

        def update(updates, params):
            return jax.tree.map(
                lambda u, factor: u if factor == 1 else u * factor,
                updates,
                self.multipliers(params),
            )

        return optax.stateless(update)

    def rates(self, params: Any) -> Any:
        """The learning rate of each parameter."""
        return jax.tree.map(
            lambda factor: self.learning_rate if factor == 1 else self.learning_rate * factor,
            self.multipliers(params),
        )


def make_cautious(
    inner: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """Keeps only the components of the update that agree in sign with the gradient.

    u <- u * [u * g > 0] / max(mean [u * g > 0], 1e-3), for each tensor
    (Liang et al., 2024, Cautious Optimizers, arXiv 2411.16085; the floor is timm's).
    """
    inner = optax.with_extra_args_support(inner)

    def update(grads, state, params=None, **extra):
        updates, state = inner.update(grads, state, params, **extra)

        def mask(u, g):
            agrees = (u * g > 0).astype(u.dtype)
            return u * agrees / jnp.maximum(agrees.mean(), 1e-3)

        return jax.tree.map(mask, updates, grads), state

    return optax.GradientTransformationExtraArgs(inner.init, update)
