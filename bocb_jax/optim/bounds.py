"""What values an optimizer's hyper-parameters may take, written as types in its signature."""

import dataclasses
import inspect
import math
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
class Setting:
    """One hyper-parameter of an optimizer: its type, its default and the values it may take."""

    type: Any
    default: Any
    interval: Interval | None = None


def settings_of(build: Callable[..., Any]) -> dict[str, Setting]:
    """The keyword-only parameters of a builder, read from its signature."""
    hints = typing.get_type_hints(build, include_extras=True)
    found = {}
    for name, parameter in inspect.signature(build).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY:
            continue
        hint = hints.get(name, Any)
        for choice in typing.get_args(hint):  # X | None
            hint = choice if hasattr(choice, "__metadata__") else hint
        interval = next(iter(getattr(hint, "__metadata__", ())), None)
        kind = hint.__origin__ if interval else hint
        found[name] = Setting(kind, parameter.default, interval)
    return found


def check_settings(name: str, settings: Mapping[str, Setting], given: Mapping[str, Any]) -> None:
    """Refuses hyper-parameters that the optimizer does not have or cannot take.

    Args:
      name: of the optimizer, for the message.
      settings: what it has.
      given: what the user gave.

    Raises:
      UserError: the message names the settings that exist, or the interval.
    """
    unknown = sorted(set(given) - set(settings))
    if unknown:
        has = ", ".join(settings) or "none but the learning rate and the weight decay"
        raise UserError(f"{name} has no hyper-parameter {', '.join(unknown)}. It has: {has}.")
    for key, value in given.items():
        setting = settings[key]
        if setting.type is bool and not isinstance(value, bool):
            raise UserError(f"{name}: {key} is true or false, not {value!r}.")
        choices = typing.get_args(setting.type)
        if typing.get_origin(setting.type) is typing.Literal and value not in choices:
            raise UserError(f"{name}: {key} is one of {', '.join(choices)}, not {value!r}.")
        if setting.interval is None or (value is None and setting.default is None):
            continue
        whole = setting.type is int
        is_number = isinstance(value, int if whole else (int, float))
        if not is_number or isinstance(value, bool) or value not in setting.interval:
            kind = "a whole number" if whole else "a number"
            raise UserError(f"{name}: {key} is {kind} in {setting.interval}, not {value!r}.")
