"""Dataclasses of settings whose values are checked when an object is made.

`@settings` makes a frozen dataclass; pydantic checks each field against its annotation (type,
range, choices) and converts nothing. A value that does not fit raises a `UserError` that names the
field and says what it must be, the same for files, command lines and Python.
"""

import dataclasses
import datetime
import math
import os
import re
import tomllib
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, ValidationError, WrapValidator
from pydantic.dataclasses import dataclass as checked_dataclass

from bocb_jax.errors import UserError
from bocb_jax.storage.files import is_plain_name, read_text

T = TypeVar("T")
MAX_BYTES = 10 * 2**20  # of a file of settings
MAX_NESTED = 20  # tables and lists in one another

_CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclasses.dataclass(frozen=True)
class Rule:
    """What a field must be, in words, where its annotation does not say it well."""

    words: str


# --- Types of fields ------------------------------------------------------------------------------


def _as_given(value: Any, check: Callable[[Any], Any]) -> Any:
    """Check a number and return it as it was given: run ids are hashes that tell 1 from 1.0."""
    check(value)
    return value


Number = Annotated[float, WrapValidator(_as_given)]
NonNegative = Annotated[Number, Field(ge=0, le=1e9)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
FractionBelowOne = Annotated[Number, Field(ge=0, lt=1)]
Share = Annotated[Number, Field(gt=0, le=1)]
# float32 has neither 1e-50 nor 1e50: such a rate would be zero or infinite.
Rate = Annotated[Number, Field(ge=1e-30, le=1e30), Rule("a positive number of at most 1e30")]
Decay = Annotated[Number, Field(ge=0, le=1e30)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
# The upper bounds keep slips such as an extra row of zeros from running for ever.
Workers = Annotated[int, Field(ge=1, le=4096)]
Count = Annotated[int, Field(ge=1, le=1_000_000)]
CountOrZero = Annotated[int, Field(ge=0, le=1_000_000)]
Minutes = Annotated[Number, Field(gt=0, le=1e6)]
Pixels = Annotated[int, Field(ge=1, le=16_384)]


# No control characters: a terminal would obey those in a label.
_PRINTABLE = r"^[^\x00-\x1f\x7f-\x9f]*$"


def _printable(text: str) -> str:
    if not re.fullmatch(_PRINTABLE, text):
        raise ValueError("control characters")
    return text


def _plain_name(text: str) -> str:
    """Refuse what would lead out of the folder in which a name is made."""
    if not is_plain_name(text):
        raise ValueError("no name")
    return _printable(text)


Text = Annotated[str, Field(max_length=4096, pattern=_PRINTABLE), Rule("printable text")]
FolderName = Annotated[
    str, Field(min_length=1, max_length=200), AfterValidator(_plain_name),
    Rule("a plain name of a folder, without slashes"),
]  # fmt: skip
FilePath = Annotated[Text, AfterValidator(os.path.expanduser)]  # ~ is the user's home


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    """Refuse what JSON does not have, at any depth."""
    if _depth(values) > MAX_NESTED:
        raise ValueError("nested too deeply")
    _check_plain(values)
    return values


def _check_plain(value: Any) -> None:
    if isinstance(value, dict):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("names must be text")
        value = list(value.values())
    if isinstance(value, list | tuple):
        for inner in value:
            _check_plain(inner)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError("not finite")
    elif isinstance(value, str):
        _printable(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 2**63:
            raise ValueError("too large")
    elif not isinstance(value, bool | None):
        raise ValueError("no plain value")


Table = Annotated[
    dict[str, Any], AfterValidator(_plain_values),
    Rule("a table of texts, truth values, finite numbers below 2**63, and lists of these"),
]  # fmt: skip


def _depth(value: Any) -> int:
    """Return how many tables and lists are in one another."""
    if isinstance(value, dict):
        value = list(value.values())
    return 1 + max(map(_depth, value), default=0) if isinstance(value, list | tuple) else 0


# --- The decorator --------------------------------------------------------------------------------


@typing.dataclass_transform(frozen_default=True)
def settings(table: str = "") -> Callable[[type[T]], type[T]]:
    """Return a decorator that makes a class a frozen dataclass whose fields are checked.

    Args:
      table: name of the table in files that the class stands for, for messages; "" at the top.
    """
    where = f"{table}." if table else ""

    def decorate(kind: type[T]) -> type[T]:
        made: Any = checked_dataclass(frozen=True, config=_CONFIG)(kind)
        unchecked = made.__init__
        names = [field.name for field in dataclasses.fields(made)]

        def __init__(self: Any, *args: Any, **given: Any) -> None:
            if len(args) > len(names):
                raise TypeError(f"{kind.__name__} takes {len(names)} values, not {len(args)}")
            given = dict(**dict(zip(names, args, strict=False)), **given)  # raises if given twice
            try:
                unchecked(self, **given)
            except ValidationError as error:
                raise UserError(_sentence(made, where, error, given)) from None

        made.__init__ = __init__
        return made

    return decorate


def _sentence(kind: type, where: str, error: ValidationError, given: dict[str, Any]) -> str:
    """Describe the first field of a class that does not fit."""
    name = str(error.errors(include_url=False, include_context=False)[0]["loc"][0])
    hints = typing.get_type_hints(kind, include_extras=True)
    if name not in hints:
        return no_such_setting([where + name], hints)
    if name not in given:
        return f"{where}{name} is missing; it must be {rule_of(hints[name])}."
    return misfit(where + name, given[name], rule_of(hints[name], given[name]))


def no_such_setting(names: Iterable[str], known: Iterable[str]) -> str:
    """Say that settings are unknown, and which there are."""
    return f"There is no setting {', '.join(names)}. There are: {', '.join(known)}."


def misfit(name: str, value: Any, rule: str) -> str:
    """Say that a value is not what it must be."""
    return f"{name} is {said(value)}; it must be {rule}."


def check(holds: bool, name: str, value: Any, rule: str) -> None:
    """Raise UserError, which says what a value must be, unless it is that."""
    if not holds:
        raise UserError(misfit(name, value, rule))


def said(value: Any) -> str:
    """Return a value for a message: as in TOML, and not longer than a line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 10**40:
        return f"a number of about {int(value.bit_length() * math.log10(2)):,} digits"
    if isinstance(value, tuple):
        value = list(value)
    if isinstance(value, datetime.date | datetime.time):
        return str(value)
    try:
        text = ascii(value) if isinstance(value, str) and not value.isprintable() else repr(value)
    except (ValueError, RecursionError):  # a huge number, or tables within tables, in a list
        text = f"a {type(value).__name__}"
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text):,} characters)"


# --- What a field must be, in words ---------------------------------------------------------------

_COUNTS = ("none", "one", "two", "three", "four")


def rule_of(hint: Any, value: Any = None) -> str:
    """Return what an annotation asks for, in words.

    Args:
      hint: the annotation.
      value: what was given; an upper bound that only guards against slips is left out unless it is
        the reason.
    """
    if typing.get_origin(hint) is Annotated:
        hint, *rules = typing.get_args(hint)
    else:
        rules = []
    written = [rule.words for rule in rules if isinstance(rule, Rule)]
    if written:
        return written[-1]
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(rule_of(part, value) for part in parts if part is not type(None))
    if origin is Literal:
        return f"one of {', '.join(map(str, parts))}"
    if origin is tuple:
        inner = [part for part in parts if part is not Ellipsis]
        number = f" of {_COUNTS[len(inner)]}" if Ellipsis not in parts else ""
        return f"a list{number}, each {rule_of(inner[0])}"
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return kinds.get(hint, "a table of settings") + _bounds(rules, value)


def _bounds(rules: Iterable[Any], value: Any) -> str:
    """Return the range of a number: " in [0, 1)", " of at least 1", or nothing."""
    found: dict[str, float] = {}
    for rule in rules:
        for part in getattr(rule, "metadata", ()):
            found |= {n: getattr(part, n) for n in ("ge", "gt", "le", "lt") if hasattr(part, n)}
    low, high = found.get("ge", found.get("gt")), found.get("le", found.get("lt"))
    if low is None or high is None:
        return ""
    if high >= 1000:
        if isinstance(value, int) and value >= high:
            return f" of at most {high if 'le' in found else high - 1:,.0f}"
        return f" of at least {low:g}" if "ge" in found else f" above {low:g}"
    return f" in {'[' if 'ge' in found else '('}{low:g}, {high:g}{']' if 'le' in found else ')'}"


# --- Files ----------------------------------------------------------------------------------------


def read_toml(path: str | Path, what: str) -> dict[str, Any]:
    """Read a TOML file in UTF-8, with or without a byte order mark.

    Args:
      path: the file; ~ is the user's home.
      what: "config" or the like, for messages.

    Raises:
      UserError: it cannot be read, or is not TOML; a sentence that names it.
    """
    path = Path(path).expanduser()
    try:
        text = read_text(path, MAX_BYTES)
    except FileNotFoundError as error:
        raise UserError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    except UserError as error:
        raise UserError(f"The {what} cannot be read: {error}") from error
    try:
        found = tomllib.loads(text)
        if _depth(found) > MAX_NESTED:
            raise RecursionError
        return found
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The {what} {path} is not valid TOML: {error}.") from error
    except RecursionError as error:
        raise UserError(
            f"The {what} {path} has tables within tables too deep: at most {MAX_NESTED} are read."
        ) from error
    except ValueError as error:  # a number of thousands of digits
        raise UserError(f"The {what} {path} has a value that no setting takes: {error}.") from error
