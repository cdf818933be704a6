"""A study: the backbones, optimizers and settings of a sweep, read from one TOML file.

Standard library only. The same names work on the command line: `--search.kind halton`.
"""

import ast
import contextlib
import dataclasses
import json
import tomllib
from pathlib import Path
from typing import Any, Literal

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.errors import UserError

# Settings of a run that [train] may not hold: the study, or the sweep, decides them.
RESERVED = {
    "model", "opt", "opt_args", "lr", "weight_decay", "seed", "test", "label", "study",
    "hparams", "workdir", "run_id", "resume",
}  # fmt: skip
KINDS = ("default", "published", "grid", "around", "halton")


def _check(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}; it must be {rule}.")


@dataclasses.dataclass(frozen=True)
class Search:
    """Which learning rates and weight decays each pair is tried with."""

    kind: Literal["default", "published", "grid", "around", "halton"] = "grid"
    lr: tuple[float, ...] = ()  # grid: the learning rates,
    lr_factors: tuple[float, ...] = ()  # or factors of the optimizer's usual one
    weight_decay: tuple[float, ...] = ()  # grid; empty: the optimizer's usual one
    weight_decay_factors: tuple[float, ...] = ()
    lr_steps: int = 5  # around: consecutive steps of 1, 2, 5, 10, ... around the usual one
    weight_decay_steps: int = 5
    moves: int = 3  # around: how often an axis may grow where the best lies at its edge
    trials: int = 5  # halton: number of points of every pair
    lr_span: float = 10.0  # halton: the usual rate divided by this to the rate times this
    weight_decay_span: float = 10.0
    halving: float = 0.0  # above 1: successive halving that keeps one in this many
    rungs: int = 2  # successive halving: how often
    select: Literal["final", "best"] = "final"  # by the last or the best validation accuracy
    seed: int = 0  # of the runs of the search, and of the Halton sequence

    def __post_init__(self) -> None:
        _check(self.kind in KINDS, "search.kind", self.kind, f"one of {', '.join(KINDS)}")
        for name in ("lr", "lr_factors", "weight_decay", "weight_decay_factors"):
            values = getattr(self, name)
            _check(isinstance(values, tuple), f"search.{name}", values, "a list of numbers")
            least = 0 if name == "weight_decay" else 1e-300
            fine = all(isinstance(v, int | float) and v >= least for v in values)
            _check(fine, f"search.{name}", list(values), "a list of positive numbers")
            _check(len(set(values)) == len(values), f"search.{name}", list(values),
                   "without repetition")  # fmt: skip
        for name in ("lr", "weight_decay"):
            both = getattr(self, name) and getattr(self, f"{name}_factors")
            _check(not both, f"search.{name}", list(getattr(self, name)),
                   f"left out where search.{name}_factors is given")  # fmt: skip
        for name in ("lr_steps", "weight_decay_steps", "trials", "rungs"):
            value = getattr(self, name)
            _check(isinstance(value, int) and value >= 1, f"search.{name}", value, "at least 1")
        _check(self.moves >= 0, "search.moves", self.moves, "at least 0")
        for name in ("lr_span", "weight_decay_span"):
            _check(getattr(self, name) > 1, f"search.{name}", getattr(self, name), "above 1")
        _check(self.halving == 0 or self.halving > 1, "search.halving", self.halving, "above 1")
        _check(self.select in ("final", "best"), "search.select", self.select, "final or best")


@dataclasses.dataclass(frozen=True)
class Final:
    """How the winner of each search is trained again and tested."""

    seeds: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        distinct = len(set(self.seeds)) == len(self.seeds)
        _check(bool(self.seeds) and distinct, "final.seeds", list(self.seeds),
               "a list of different seeds, at least one")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
    """Limits of a sweep; None: no limit."""

    runs: int | None = None  # a study that plans more runs is refused
    device_hours: float | None = None  # no run starts once this is spent
    minutes_per_run: float | None = None  # a run that takes longer ends as "timed_out"

    def __post_init__(self) -> None:
        for name in ("runs", "device_hours", "minutes_per_run"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"budget.{name}", value, "positive")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One change to the backbones: the tables call them "NAME (variant)"."""

    name: str = ""  # empty: the backbone as it is
    backbones: tuple[str, ...] = ()  # that it applies to; empty: all
    train: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings that differ


@dataclasses.dataclass(frozen=True)
class Study:
    """Backbones x variants x optimizers, each pair with its search and its final runs."""

    name: str = ""
    backbones: tuple[str, ...] = ()  # names, patterns such as "conv*_mini", or "paper"
    optimizers: tuple[str, ...] = ()  # names, patterns, "category:b", or "paper"
    variants: tuple[Variant, ...] = (Variant(),)
    target: float | None = None  # validation accuracy whose "time to target" the table gives
    train: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of every run
    opt_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # of each optimizer, by name
    checkpoints: Literal["final", "all"] = "final"  # which runs keep theirs
    search: Search = Search()
    final: Final = Final()
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        for name in ("backbones", "optimizers"):
            names = getattr(self, name)
            fine = isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)
            _check(bool(fine), name, names, "a list of names, at least one")
        _check(self.target is None or 0 < self.target <= 1, "target", self.target, "in (0, 1]")
        labels = [variant.name for variant in self.variants]
        _check(len(set(labels)) == len(labels), "variants", labels, "named differently")
        for settings in (self.train, *(variant.train for variant in self.variants)):
            taken = ", ".join(sorted(RESERVED & {*settings}))
            _check(not taken, "train", taken, "without what the study itself decides")
            from_dict(TrainConfig, settings)  # raises for unknown and misshapen settings

    def to_dict(self) -> dict[str, Any]:
        """Return the study in plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def study_from_dict(content: dict[str, Any], name: str = "") -> Study:
    """Build a study from the content of its file.

    Raises:
      UserError: a setting is unknown or out of range; the message names it.
    """
    settings = {"name": name, **content}
    variants = settings.pop("variants", None)
    if variants is not None:
        if not isinstance(variants, list | tuple) or not variants:
            raise UserError("variants is a list of tables, [[variants]], each with a name.")
        settings["variants"] = tuple(
            from_dict(Variant, dict(variant), f"variants[{i}].")
            for i, variant in enumerate(variants)
        )
    return from_dict(Study, settings)


def read_study(path: str | Path, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study from its TOML file.

    Args:
      path: the file.
      overrides: dotted names -> values, which replace those of the file.

    Raises:
      UserError: the file cannot be read or a setting is wrong.
    """
    path = Path(path)
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise UserError(f"The study {path} cannot be read: {reason}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The study {path} is not valid TOML: {error}.") from error
    for name, value in (overrides or {}).items():
        *tables, last = name.split(".")
        table = settings
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"--{name}: {part} is no table of settings.")
        table[last] = value
    try:
        return study_from_dict(settings, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def overrides_of(words: list[str]) -> dict[str, Any]:
    """Parse `--search.trials 9 --train.epochs=3 --backbones vit_mini,resnet_mini`.

    Returns:
      Dotted names -> values.

    Raises:
      UserError: a word is not an option, or an option lacks its value.
    """
    found: dict[str, Any] = {}
    words = list(words)
    while words:
        word = words.pop(0)
        name, equals, value = word.partition("=")
        if not name.startswith("--"):
            raise UserError(f"'{word}' is not understood; settings are given as --name value.")
        if not equals:
            if not words:
                raise UserError(f"{name} needs a value.")
            value = words.pop(0)
        found[name[2:].replace("-", "_")] = _value(value)
    for name in ("backbones", "optimizers"):
        if isinstance(found.get(name), str):
            found[name] = tuple(found[name].split(","))
    return found


def _value(text: str) -> Any:
    with contextlib.suppress(ValueError, SyntaxError):
        return ast.literal_eval(text)
    return {"true": True, "false": False}.get(text.lower(), text)
