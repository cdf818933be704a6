"""The values that an optimizer's hyper-parameters may take, written as types in its signature."""

import dataclasses
import inspect
import math
import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Interval:
    """Numbers from `low` to `high`; `high` is always left out, `low` unless `closed`."""

    low: float = 0.0
    high: float = math.inf
    closed: bool = True

    def __contains__(self, value: float) -> bool:
        return (value >= self.low if self.closed else value > self.low) and value < self.high

    def __str__(self) -> str:
        return f"{'[' if self.closed else '('}{self.low:g}, {self.high:g})"


Beta = Annotated[float, Interval(0, 1)]  # decay rate of a moving average
Fraction = Annotated[float, Interval(0, 1 + 1e-12)]
NonNegative = Annotated[float, Interval(0)]
Positive = Annotated[float, Interval(0, closed=False)]
Steps = Annotated[int, Interval(1)]


@dataclasses.dataclass(frozen=True)
class Hyperparameter:
    """One hyper-parameter of an optimizer: its type, its default and the values it may take."""

    type: Any
    default: Any
    interval: Interval | None = None
    optional: bool = False  # may it be None?


def hyperparameters_of(build: Callable[..., Any]) -> dict[str, Hyperparameter]:
    """Return the keyword-only parameters of a builder, read from its signature."""
    hints = typing.get_type_hints(build, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        hint = hints.get(name, Any)
        choices = typing.get_args(hint) if _is_union(hint) else ()  # X | None
        optional = type(None) in choices
        for choice in choices:
            hint = choice if hasattr(choice, "__metadata__") else hint
        interval = next(iter(getattr(hint, "__metadata__", ())), None)
        kind = hint.__origin__ if interval else hint
        found[name] = Hyperparameter(kind, parameter.default, interval, optional)
    return found


def _is_union(hint: Any) -> bool:
    return typing.get_origin(hint) in (typing.Union, types.UnionType)


def set_signature(build: Callable[..., Any], signature: inspect.Signature) -> None:
    """Replace the signature from which the hyper-parameters of a builder are read."""
    build.__signature__ = signature  # type: ignore[attr-defined]  # where inspect looks first


def check_hyperparameters(
    name: str, known: Mapping[str, Hyperparameter], given: Mapping[str, Any]
) -> None:
    """Refuse hyper-parameters that the optimizer does not have, or values it cannot take.

    Args:
      name: of the optimizer, for the message.
      known: its hyper-parameters.
      given: what the user gave.

    Raises:
      UserError: the message names the hyper-parameters that exist, or the interval.
    """
    unknown = sorted(set(given) - set(known))
    if unknown:
        has = ", ".join(known) or "none but the learning rate and the weight decay"
        raise UserError(f"{name} has no hyper-parameter {', '.join(unknown)}. It has: {has}.")
    for key, value in given.items():
        wanted = known[key]
        if wanted.type is bool and not isinstance(value, bool):
            raise UserError(f"{name}: {key} is true or false, not {value!r}.")
        choices = typing.get_args(wanted.type)
        if typing.get_origin(wanted.type) is typing.Literal and value not in choices:
            raise UserError(f"{name}: {key} is one of {', '.join(choices)}, not {value!r}.")
        if wanted.interval is None or (value is None and wanted.optional):
            continue
        whole = wanted.type is int
        is_number = isinstance(value, int if whole else (int, float))
        if not is_number or isinstance(value, bool) or value not in wanted.interval:
            kind = "a whole number" if whole else "a number"
            raise UserError(f"{name}: {key} is {kind} in {wanted.interval}, not {value!r}.")
