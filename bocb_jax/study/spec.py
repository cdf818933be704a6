"""A study: which backbones, optimizers and settings a sweep goes through. Read from one TOML file.

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

# Settings of a run that the study decides elsewhere, and where its folder goes.
DECIDED = {
    "model", "opt", "opt_args", "lr", "weight_decay", "seed", "test", "label", "study",
    "hparams", "workdir", "run_id", "resume",
}  # fmt: skip
KINDS = ("default", "published", "grid", "around", "halton")


def _check(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value!r}; it must be {rule}.")


@dataclasses.dataclass(frozen=True)
class Search:
    """Which learning rates and weight decays are tried for each pair."""

    kind: Literal["default", "published", "grid", "around", "halton"] = "grid"
    lr: tuple[float, ...] = ()  # grid: the rates themselves,
    lr_factors: tuple[float, ...] = ()  # or what the optimizer's usual one is multiplied by
    weight_decay: tuple[float, ...] = ()  # grid; empty: the optimizer's usual one
    weight_decay_factors: tuple[float, ...] = ()
    lr_steps: int = 5  # around: consecutive steps of 1, 2, 5, 10, ... with the usual one amid
    weight_decay_steps: int = 5
    moves: int = 3  # around: how often a side may grow when the best lies at its edge
    trials: int = 5  # halton: points, the same number for every pair
    lr_span: float = 10.0  # halton: from the usual rate divided by so much to it times so much
    weight_decay_span: float = 10.0
    halving: float = 0.0  # above 1: successive halving, keeping one in so many at each rung
    rungs: int = 2  # successive halving: how often the field is thinned
    select: Literal["final", "best"] = "final"  # validation accuracy at the end, or at its best
    seed: int = 0  # of the runs of the search, and of the Halton sequence

    def __post_init__(self):
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
    """How the winner of each pair's search is trained again, and tested once."""

    seeds: tuple[int, ...] = (0,)

    def __post_init__(self):
        distinct = len(set(self.seeds)) == len(self.seeds)
        _check(bool(self.seeds) and distinct, "final.seeds", list(self.seeds),
               "a list of different seeds, at least one")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Budget:
    """Where a sweep ends; None: nowhere."""

    runs: int | None = None  # a study that plans more is refused
    device_hours: float | None = None  # no run is started once so much is spent
    minutes_per_run: float | None = None  # a run that takes longer is ended: "timed_out"

    def __post_init__(self):
        for name in ("runs", "device_hours", "minutes_per_run"):
            value = getattr(self, name)
            _check(value is None or value > 0, f"budget.{name}", value, "positive")


@dataclasses.dataclass(frozen=True)
class Variant:
    """One change to the backbones: the tables call them "NAME (variant)"."""

    name: str = ""  # empty: the backbone as it is
    backbones: tuple[str, ...] = ()  # which it applies to; empty: all
    train: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings that differ


@dataclasses.dataclass(frozen=True)
class Study:
    """What a sweep goes through: backbones x variants x optimizers, each with its search."""

    name: str = ""
    backbones: tuple[str, ...] = ()  # names, patterns such as "conv*_mini", or "paper"
    optimizers: tuple[str, ...] = ()  # names, patterns, "category:b", or "paper"
    variants: tuple[Variant, ...] = (Variant(),)
    target: float | None = None  # validation accuracy that "time to target" is about
    train: dict[str, Any] = dataclasses.field(default_factory=dict)  # settings of every run
    opt_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # optimizer -> its settings
    checkpoints: Literal["final", "all"] = "final"  # of which runs these are kept
    search: Search = Search()
    final: Final = Final()
    budget: Budget = Budget()

    def __post_init__(self):
        for name in ("backbones", "optimizers"):
            names = getattr(self, name)
            fine = isinstance(names, tuple) and names and all(isinstance(n, str) for n in names)
            _check(bool(fine), name, names, "a list of names, at least one")
        _check(self.target is None or 0 < self.target <= 1, "target", self.target, "in (0, 1]")
        labels = [variant.name for variant in self.variants]
        _check(len(set(labels)) == len(labels), "variants", labels, "named differently")
        for settings in (self.train, *(variant.train for variant in self.variants)):
            taken = ", ".join(sorted(DECIDED & {*settings}))
            _check(not taken, "train", taken, "without what the study itself decides")
            from_dict(TrainConfig, settings)  # finds unknown and misshapen settings

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def study_from_dict(settings: dict[str, Any], name: str = "") -> Study:
    """A study from the content of its file.

    Raises:
      UserError: a setting is unknown or cannot be; the message names it.
    """
    settings = {"name": name, **settings}
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
    """A study from its TOML file.

    Args:
      path: the file.
      overrides: dotted names to values, which win over the file.

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
    """The values of `--search.trials 9`, `--train.epochs=3`, `--backbones vit_mini,resnet_mini`.

    Raises:
      UserError: a word is no option, or has no value.
    """
    found, words = {}, list(words)
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
