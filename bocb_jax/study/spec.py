"""A study: the backbones, optimizers and settings of a sweep, read from one TOML file.

The same names work on the command line: `--search.kind halton`.
"""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bocb_jax.checked import (
    Decay,
    FilePath,
    Number,
    Rate,
    Rule,
    Seed,
    Share,
    Table,
    Text,
    check,
    read_toml,
    settings,
)
from bocb_jax.config import TrainConfig, from_dict, settings_in
from bocb_jax.errors import UserError

# Settings of a run that [train] may not hold: the study, or the sweep, decides them.
RESERVED = {
    "model", "opt", "opt_args", "lr", "weight_decay", "seed", "test", "label", "study",
    "hparams", "workdir", "run_id", "resume", "max_minutes",
}  # fmt: skip
MOST_TRIALS = 10_000  # of a pair; what asks for more is a slip
_NAMES = "a list of names, at least one"

Names = Annotated[tuple[Annotated[Text, Field(min_length=1)], ...], Rule(_NAMES)]
Trials = Annotated[int, Field(ge=1, le=MOST_TRIALS)]
Steps = Annotated[int, Field(ge=1, le=100)]
Span = Annotated[Number, Field(gt=1, le=1e6)]
Hours = Annotated[Number, Field(gt=0, le=1e9)]
Factors = tuple[Rate, ...]


@settings("search")
class Search:
    """Which learning rates and weight decays each pair is tried with."""

    kind: Literal["default", "published", "grid", "around", "halton"] = "grid"
    lr: tuple[Rate, ...] = ()  # grid: the learning rates,
    lr_factors: Factors = ()  # or factors of the optimizer's usual one
    weight_decay: tuple[Decay, ...] = ()  # grid; empty: the optimizer's usual one
    weight_decay_factors: Factors = ()
    lr_steps: Steps = 5  # around: consecutive steps of 1, 2, 5, 10, ... around the usual one
    weight_decay_steps: Steps = 5
    # around: how often an axis may grow where the best lies at its edge.
    moves: Annotated[int, Field(ge=0, le=100)] = 3
    trials: Trials = 5  # halton: number of points of every pair
    lr_span: Span = 10.0  # halton: the usual rate divided by this to the rate times this
    weight_decay_span: Span = 10.0
    # Above 1: successive halving that keeps one in this many.
    halving: Annotated[Number, Field(ge=0, le=1e6)] = 0.0
    rungs: Annotated[int, Field(ge=1, le=100)] = 2  # successive halving: how often
    select: Literal["final", "best"] = "final"  # by the last or the best validation accuracy
    seed: Seed = 0  # of the runs of the search, and of the Halton sequence

    def __post_init__(self) -> None:
        for name in ("lr", "lr_factors", "weight_decay", "weight_decay_factors"):
            values = getattr(self, name)
            check(len(values) <= MOST_TRIALS, f"search.{name}", values,
                   f"a list of at most {MOST_TRIALS:,}")  # fmt: skip
            check(len(set(values)) == len(values), f"search.{name}", values, "without repetition")
        for name in ("lr", "weight_decay"):
            both = getattr(self, name) and getattr(self, f"{name}_factors")
            check(not both, f"search.{name}", getattr(self, name),
                   f"left out where search.{name}_factors is given")  # fmt: skip
        check(self.halving == 0 or self.halving > 1, "search.halving", self.halving,
               "0 or above 1")  # fmt: skip


@settings("final")
class Final:
    """How the winner of each search is trained again and tested."""

    seeds: tuple[Seed, ...] = (0,)

    def __post_init__(self) -> None:
        distinct = len(set(self.seeds)) == len(self.seeds)
        check(0 < len(self.seeds) <= MOST_TRIALS and distinct, "final.seeds", self.seeds,
               f"a list of different seeds, at least one and at most {MOST_TRIALS:,}")  # fmt: skip


@settings("budget")
class Budget:
    """Limits of a sweep; None: no limit."""

    runs: Annotated[int, Field(ge=1, le=10**9)] | None = None  # a study that plans more is refused
    device_hours: Hours | None = None  # no run starts once this is spent
    minutes_per_run: Hours | None = None  # a run that takes longer ends as "timed_out"


@settings("variants")
class Variant:
    """One change to the backbones: the tables call them "NAME (variant)"."""

    name: Text = ""  # empty: the backbone as it is
    backbones: tuple[Text, ...] = ()  # that it applies to; empty: all
    train: Table = dataclasses.field(default_factory=dict)  # settings that differ


@settings("pretrained")
class Pretrained:
    """Whose weights the runs start from: each optimizer that trained some is a third factor.

    The run with the first of `final.seeds` starts from the weights with the least seed, the second
    from the next, and so on in turn; the search starts from the first.
    """

    runs: FilePath | None = None  # a folder of runs; None: random weights, or `train.init`
    optimizers: tuple[Text, ...] = ()  # names, patterns, "category:b", or "paper"; none: all there


@settings()
class Study:
    """Backbones x variants x optimizers, each pair with its search and its final runs."""

    name: Text = ""
    backbones: Names = ()  # names, patterns such as "conv*_mini", or "paper"
    optimizers: Names = ()  # names, patterns, "category:b", or "paper"
    variants: tuple[Variant, ...] = (Variant(),)
    pretrained: Pretrained = Pretrained()
    target: Share | None = None  # validation accuracy whose "time to target" the table gives
    train: Table = dataclasses.field(default_factory=dict)  # settings of every run
    opt_args: Table = dataclasses.field(default_factory=dict)  # of each optimizer, by name
    checkpoints: Literal["final", "all"] = "final"  # which runs keep theirs
    search: Search = Search()
    final: Final = Final()
    budget: Budget = Budget()

    def __post_init__(self) -> None:
        for name in ("backbones", "optimizers"):
            check(bool(getattr(self, name)), name, getattr(self, name), _NAMES)
        for optimizer, given in self.opt_args.items():
            check(isinstance(given, dict), f"opt_args.{optimizer}", given, "a table of settings")
        if self.pretrained.runs is not None:
            for where in (self.train, *(variant.train for variant in self.variants)):
                twice = ", ".join(sorted({"init", "pretrained_with"} & {*where}))
                check(not twice, "train", twice, "left out where pretrained.runs is given")
        labels = [variant.name for variant in self.variants]
        check(len(set(labels)) == len(labels), "variants", labels, "named differently")
        _check_train("train", self.train)
        for variant in self.variants:
            _check_train(f"variants.train of {variant.name!r}", variant.train)

    def to_dict(self) -> dict[str, Any]:
        """Return the study in plain JSON types."""
        return json.loads(json.dumps(dataclasses.asdict(self)))


def _check_train(where: str, given: dict[str, Any]) -> None:
    """Refuse settings of runs that are unknown, misshapen, or for the study to decide."""
    taken = ", ".join(sorted(RESERVED & {*given}))
    check(not taken, where, taken, "without what the study itself decides")
    try:
        from_dict(TrainConfig, given)
    except UserError as error:
        raise UserError(f"In [{where}], {error}") from error


def study_from_dict(content: dict[str, Any], name: str = "") -> Study:
    """Build a study from the content of its file.

    Raises:
      UserError: a setting is unknown or out of range; the message names it.
    """
    given = {"name": name, **content}
    variants = given.pop("variants", None)
    if variants is not None:
        if not isinstance(variants, list | tuple) or not variants:
            raise UserError("variants is a list of tables, [[variants]], each with a name.")
        given["variants"] = tuple(
            from_dict(Variant, variant, f"variants[{i}].") for i, variant in enumerate(variants)
        )
    return from_dict(Study, given)


def read_study(path: str | Path, overrides: dict[str, Any] | None = None) -> Study:
    """Read a study from its TOML file.

    Args:
      path: the file.
      overrides: dotted names -> values, which replace those of the file.

    Raises:
      UserError: the file cannot be read or a setting is wrong.
    """
    given = read_toml(path, "study")
    for name, value in (overrides or {}).items():
        *tables, last = name.split(".")
        table = given
        for part in tables:
            table = table.setdefault(part, {})
            if not isinstance(table, dict):
                raise UserError(f"--{name}: {part} is no table of settings.")
        table[last] = value
    try:
        return study_from_dict(given, Path(path).stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def overrides_of(words: list[str]) -> dict[str, Any]:
    """Parse `--search.trials 9 --train.epochs=3 --backbones vit_mini,resnet_mini`.

    Returns:
      Dotted names -> values.

    Raises:
      UserError: a word is not an option, or an option lacks its value.
    """
    found, remaining = settings_in(words)
    if remaining:
        raise UserError(f"'{remaining[0]}' is not understood; settings are given as --name value.")
    for name in ("backbones", "optimizers"):
        if isinstance(found.get(name), str):
            found[name] = tuple(found[name].split(","))
    return found
