"""Learning-rate schedules: a peak times a shape.

The peak is an array in the optimizer's state and only the shape is part of the compiled program,
so another learning rate needs no new compilation. Schedules are compared by value.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A constant learning rate after a linear warm-up; the base class of the other schedules.

    Args:
      peak: the largest learning rate.
      warmup_steps: updates below the peak. The rate of update `count` is
        `peak * (count + 1) / (warmup_steps + 1)`, so that no update is spent at zero.
      warmup_start: start at this fraction of the peak instead, and reach the peak at update
        `warmup_steps`, as OpenMMLab's schedules do.

    Raises:
      UserError: a value that the schedule cannot take.
    """

    peak: float | jax.Array
    warmup_steps: int = 0
    warmup_start: float | None = dataclasses.field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check_positive("learning rate", self.peak)
        if self.warmup_steps < 0:
            raise UserError(f"warmup_steps is a count of updates, not {self.warmup_steps}.")
        if self.warmup_start is not None and not 0 <= self.warmup_start <= 1:
            raise UserError(f"warmup_start is a fraction of the peak, not {self.warmup_start}.")

    def shape(self, count: jax.Array) -> jax.Array | float:
        """Return the learning rate of update `count` (from 0) as a fraction of the peak."""
        done = jnp.asarray(count, float)
        warm: jax.Array | float
        if self.warmup_start is None:
            warm = jnp.minimum((done + 1) / (self.warmup_steps + 1), 1)
        else:
            risen = jnp.minimum(done / self.warmup_steps, 1) if self.warmup_steps else 1.0
            warm = self.warmup_start + (1 - self.warmup_start) * risen
        return warm * self.after_warmup(count)

    def after_warmup(self, count: jax.Array) -> jax.Array | float:
        """Return the fraction without the warm-up: 1 until the warm-up ends, unless overridden."""
        return 1.0

    def __call__(self, count: jax.Array) -> jax.Array | float:
        return self.peak * self.shape(count)


@dataclasses.dataclass(frozen=True)
class WarmupCosine(Schedule):
    """The schedule of `warmup_cosine`."""

    total_steps: int = 1
    end_fraction: float = 0.0
    from_start: bool = dataclasses.field(default=False, kw_only=True)
    every: int = dataclasses.field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.total_steps <= self.warmup_steps:
            raise UserError(
                f"total_steps ({self.total_steps}) must exceed warmup_steps ({self.warmup_steps}): "
                "train longer or warm up for fewer steps."
            )
        if not 0 <= self.end_fraction <= 1:
            raise UserError(f"end_fraction is a fraction of the peak, not {self.end_fraction}.")

    def after_warmup(self, count: jax.Array) -> jax.Array | float:
        first = 0 if self.from_start else self.warmup_steps
        reached = jnp.asarray(count // self.every * self.every, float)
        progress = (reached - first) / (self.total_steps - first)
        cosine = 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))
        return self.end_fraction + (1 - self.end_fraction) * cosine


@dataclasses.dataclass(frozen=True)
class StepDecay(Schedule):
    """The schedule of `step_decay`."""

    boundaries: tuple[int, ...] = ()
    factor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "boundaries", tuple(self.boundaries))
        if list(self.boundaries) != sorted(set(self.boundaries)):
            raise UserError(f"boundaries must increase: {self.boundaries}.")

    def after_warmup(self, count: jax.Array) -> jax.Array | float:
        passed = jnp.sum(count >= jnp.asarray(self.boundaries, jnp.int32))
        return jnp.asarray(self.factor, float) ** passed


@dataclasses.dataclass(frozen=True)
class Scaled(Schedule):
    """A function of the count, such as an Optax schedule, times the peak."""

    function: Callable[[jax.Array], jax.Array | float] = lambda count: 1.0

    def after_warmup(self, count: jax.Array) -> jax.Array | float:
        return self.function(count)


def constant(peak: float, warmup_steps: int = 0, *, warmup_start: float | None = None) -> Schedule:
    """Return a constant schedule after a linear warm-up; for arguments see `Schedule`."""
    return Schedule(peak, warmup_steps, warmup_start=warmup_start)


def warmup_cosine(
    peak: float,
    warmup_steps: int,
    total_steps: int,
    end_fraction: float = 0.0,
    *,
    warmup_start: float | None = None,
    from_start: bool = False,
    every: int = 1,
) -> WarmupCosine:
    """Return a linear warm-up followed by half a cosine.

    Args:
      peak: learning rate at the end of the warm-up.
      warmup_steps: updates of the warm-up.
      total_steps: updates in all; the rate reaches its end one update after the last.
      end_fraction: the final rate over the peak.
      warmup_start: where the warm-up begins, as a fraction of the peak; see `Schedule`.
      from_start: start the cosine at update 0, and let the warm-up scale it.
      every: change the cosine only every so many updates, such as those of an epoch.

    References:
      Loshchilov and Hutter, 2017, arXiv 1608.03983
    """
    return WarmupCosine(
        peak,
        warmup_steps,
        total_steps,
        end_fraction,
        warmup_start=warmup_start,
        from_start=from_start,
        every=every,
    )


def step_decay(
    peak: float,
    boundaries: tuple[int, ...],
    factor: float = 0.1,
    warmup_steps: int = 0,
    *,
    warmup_start: float | None = None,
) -> StepDecay:
    """Return a schedule that multiplies the rate by `factor` at each boundary.

    Args:
      peak: learning rate between the warm-up and the first boundary.
      boundaries: increasing counts of updates.
      factor: at each boundary.
      warmup_steps: updates of the warm-up.
      warmup_start: where the warm-up begins, as a fraction of the peak; see `Schedule`.
    """
    return StepDecay(peak, warmup_steps, tuple(boundaries), factor, warmup_start=warmup_start)


def as_schedule(learning_rate: Any) -> Schedule:
    """Return a `Schedule` from a number, an Optax schedule, or a `Schedule` (as it is)."""
    if isinstance(learning_rate, Schedule):
        return learning_rate
    if callable(learning_rate):
        return Scaled(1.0, 0, learning_rate)
    return Schedule(learning_rate)


def check_positive(what: str, value: float | jax.Array, *, or_zero: bool = False) -> None:
    """Refuse a rate that is not a finite positive number; tracers cannot be checked.

    Raises:
      UserError: the message says what the rate is.
    """
    if isinstance(value, jax.core.Tracer):
        return
    bound = "zero or a positive number" if or_zero else "a positive number"
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UserError(f"The {what} must be {bound}, not {value!r}.") from None
    if not (0 < number < float("inf") or (or_zero and number == 0)):
        raise UserError(f"The {what} must be {bound}, not {value}.")
