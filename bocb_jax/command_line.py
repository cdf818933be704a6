"""Command lines, checked by the declarations of `checked`; what does not fit is one sentence."""

import argparse
import contextlib
import dataclasses
import io
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import tyro
from pydantic import TypeAdapter, ValidationError
from tyro.conf import Positional

from bocb_jax.checked import FilePath, misfit, rule_of
from bocb_jax.errors import UserError

T = TypeVar("T")
_TRUE, _FALSE = ("true", "yes", "on"), ("false", "no", "off")
(_POSITIONAL,) = Positional[str].__metadata__  # type: ignore[attr-defined]  # an Annotated
_FRAME = dict.fromkeys(map(ord, "│╭╮╰╯"), " ")


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are a `UserError` of one sentence."""

    def error(self, message: str) -> NoReturn:
        """Raise what is wrong with the arguments."""
        message = re.sub(r"^argument (\S+?)(/\S+)?: (is )?", _name_first, message)
        raise UserError(f"{message.rstrip('.')}. `{self.prog} --help` lists the options.")


def _name_first(match: re.Match[str]) -> str:
    return f"{match[1]} is " if match[3] else f"{match[1]}: "


def value_of(hint: Any) -> Callable[[str], Any]:
    """Return the `type` of an argument of `Parser`: reads a text as an annotation declares.

    Args:
      hint: an annotation as in `checked`, of a number or a text.
    """
    adapter = TypeAdapter(hint, config={"strict": True, "allow_inf_nan": False})
    kind = _kind_of(hint)

    def read(text: str) -> Any:
        value: Any = text
        with contextlib.suppress(ValueError):
            value = kind(text)
        try:
            return adapter.validate_python(value)
        except ValidationError as error:
            shown = misfit("", value, rule_of(hint, value))
            raise argparse.ArgumentTypeError(shown.strip().rstrip(".")) from error

    return read


def path_of(text: str) -> Path:
    """Return the path that an argument names; ~ is the user's home."""
    return Path(value_of(FilePath)(text))


def _kind_of(hint: Any) -> type:
    """Return the type below annotations."""
    while hasattr(hint, "__metadata__"):
        hint = hint.__origin__
    return hint


def parse(kind: type[T], arguments: list[str], *, prog: str, default: T | None = None) -> T:
    """Return settings of a class from command-line arguments.

    Args:
      kind: a dataclass.
      arguments: what follows the command.
      prog: the command, for messages.
      default: the values of what is not given; None for the class's own.

    Raises:
      UserError: an argument is unknown or its value is not what the class declares.
    """
    hints = _hints_of(kind)
    arguments = _with_flags(arguments, hints)
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            found = tyro.cli(kind, args=arguments, default=default, prog=prog)
        return typing.cast(T, found)
    except SystemExit as stop:
        if stop.code != 2:  # --help
            raise
        text = " ".join(said.getvalue().translate(_FRAME).split())
        sentence = _sentence(text, arguments, hints, kind)
        raise UserError(f"{sentence} `{prog} --help` lists the options.") from None


def _hints_of(kind: Any, table: str = "") -> dict[str, Any]:
    """Return the annotation of every flag of a class and of its tables."""
    found: dict[str, Any] = {}
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        name = f"{table}{field.name}".replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            found |= _hints_of(hints[field.name], f"{name}.")
        else:
            found[f"--{name}"] = hints[field.name]
    return found


def _flag_of(word: str) -> str:
    return word.replace("_", "-")


def _with_flags(arguments: list[str], hints: dict[str, Any]) -> list[str]:
    """Return arguments in which `--test False` and `--test=false` are written as `--no-test`."""
    words = [part for word in arguments for part in _split(word, hints)]
    found: list[str] = []
    for word in words:
        flag = found[-1] if found else ""
        hint = hints.get(_flag_of(flag)) if flag.startswith("--") else None
        lower = word.lower()
        if hint is bool and lower in _TRUE:
            continue
        if hint is bool and lower in _FALSE:
            table, dot, name = flag[2:].rpartition(".")
            found[-1] = f"--{table}{dot}no-{name}"
        elif hint == (bool | None) and lower in (*_TRUE, *_FALSE):
            found.append(str(lower in _TRUE))
        else:
            found.append(word)
    return found


def _split(word: str, hints: dict[str, Any]) -> list[str]:
    """Split `--test=false` into two words; leave the flags of other types as they are."""
    flag, equals, value = word.partition("=")
    splits = equals and hints.get(_flag_of(flag)) in (bool, bool | None)
    return [flag, value] if splits else [word]


def _sentence(text: str, arguments: list[str], hints: dict[str, Any], kind: Any) -> str:
    """Say what tyro refuses, from the text in its frame and what is declared."""
    flag = re.search(r"(?:Error parsing|(?:for|of) argument) '?(--[\w.-]+)", text)
    if flag and flag[1] in hints:
        hint, given = hints[flag[1]], _given(flag[1], arguments)
        if given:
            return misfit(flag[1], " ".join(given), rule_of(hint))
        return f"{flag[1]} needs a value: {rule_of(hint)}."
    if flag and not _given(flag[1], arguments):
        return f"{flag[1]} needs a value."
    unknown = re.search(r"Unrecognized options: ([^,\s]+)", text)
    if unknown:
        if not unknown[1].startswith("-"):
            return f"'{unknown[1]}' is not understood; settings are given as --name value."
        near = re.search(r"(?:Perhaps you meant:|Arguments similar to \S+) (--[\w.-]+)", text)
        return f"There is no option {unknown[1]}.{f' Did you mean {near[1]}?' if near else ''}"
    missing = re.search(r"Missing from .*?: (.*) For full helptext", text)
    if missing:
        return f"Missing: {', '.join(_required(missing[1], kind))}."
    return text.partition(" ──")[0].partition(" Got errors:")[0].lstrip("─ ")


def _given(flag: str, arguments: list[str]) -> list[str]:
    """Return the words that follow a flag."""
    words = [part for word in arguments for part in word.split("=", 1)]
    found: list[str] = []
    at = next((i for i, word in enumerate(words) if _flag_of(word) == flag), len(words))
    for word in words[at + 1 :]:
        if word.startswith("--"):
            break
        found.append(word)
    return found


def _required(text: str, kind: Any) -> list[str]:
    """Return the names of the fields without a default that tyro misses."""
    hints = typing.get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        flag = f"--{field.name.replace('_', '-')}"
        is_positional = _POSITIONAL in getattr(hints[field.name], "__metadata__", ())
        misses_positional = re.search(r"(?:^|\(required\) )[A-Z]", text)
        if not has_default and (misses_positional if is_positional else f"{flag} " in text):
            found.append(field.name.upper() if is_positional else flag)
    return found
