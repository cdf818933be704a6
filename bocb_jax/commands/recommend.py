"""What to try first: `bocb recommend --model resnet50 [--runs DIR]`, or `--portfolio 2`.

`--task detection --pretrained-with adamw` answers for fine-tuning.

Answers from your own runs and from the published tables, each with its evidence. Imports JAX only
to look for a name that is in none of them.
"""

import argparse
import dataclasses
import difflib
import json
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

from pydantic import Field

from bocb_jax.checked import Count, FilePath
from bocb_jax.command_line import Parser, value_of
from bocb_jax.errors import UnknownName, UserError
from bocb_jax.storage.files import finite
from bocb_jax.storage.remote import local_copy

if TYPE_CHECKING:
    from bocb_jax.coupling.fine_tuning import FineTuning
    from bocb_jax.coupling.recommend import Advice, Choice, Portfolio
    from bocb_jax.coupling.score_table import ScoreTable

T = TypeVar("T", bound="Advice | Portfolio | FineTuning")
# Task -> the paper's table of it.
_TASKS = {"detection": "coco_box", "pose": "coco_pose"}
_TOO_FEW = "fewer than two optimizers have a score: nothing to choose among."
PortfolioSize = Annotated[int, Field(ge=1, le=10)]


def main(arguments: list[str]) -> int:
    """Print what to try first for a backbone, and return the exit code."""
    options = _parser().parse_args(arguments)
    with local_copy(options.runs) as runs:
        options.runs = runs and Path(runs)
        _run(options)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="bocb recommend",
        description="Which optimizer, learning rate and weight decay to try first, and why.",
    )
    parser.add_argument("--model", metavar="NAME", help="the backbone")
    parser.add_argument(
        "--runs", type=value_of(FilePath), metavar="DIR",
        help="your own runs: a folder, its results.parquet, or a table of scores; a path or a URL",
    )  # fmt: skip
    parser.add_argument("--dataset", help="which one, where the runs are on several")
    parser.add_argument(
        "--most", type=value_of(Count), default=3, metavar="N", help="choices; default: 3"
    )
    parser.add_argument(
        "--portfolio", type=value_of(PortfolioSize), metavar="K",
        help="instead: the best K optimizers to try, over all backbones",
    )  # fmt: skip
    parser.add_argument(
        "--tuning-budget", type=value_of(Count), metavar="N",
        help="what a search of N trials can be expected to reach; needs --runs of a sweep",
    )  # fmt: skip
    parser.add_argument(
        "--task", choices=list(_TASKS), help="fine-tuning for this task; --model may be left out"
    )
    parser.add_argument(
        "--pretrained-with", metavar="OPTIMIZER", help="with --task: what trained the weights"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    return parser


def _run(options: argparse.Namespace) -> None:
    if options.task is None and options.pretrained_with is not None:
        raise UserError("--pretrained-with is about fine-tuning; add --task detection or pose.")
    if options.task is not None:
        _show_fine_tuning(options)
        return
    if options.model is None and options.portfolio is None:
        raise UserError("Name the backbone with --model NAME, or ask for --portfolio K.")
    tables = list(_tables(options))
    if options.model is not None:
        _check_name(options.model, tables)
    if options.portfolio is not None:
        _show_portfolios(tables, options)
    else:
        _show_advice(tables, options)


def _tables(options: argparse.Namespace) -> "Iterator[tuple[str, ScoreTable]]":
    """Yield the tables to answer from, each with its title."""
    from bocb_jax.coupling.recommend import at_budget, stand_in
    from bocb_jax.coupling.scores import from_published

    if options.runs is not None:
        own = _own(options)
        if options.tuning_budget is not None:
            own = at_budget(own, options.tuning_budget)
        yield f"Your own runs ({own.source})", own
    elif options.tuning_budget is not None:
        raise UserError(
            "--tuning-budget needs --runs with the trials of a search; the paper gives only the "
            "best of all."
        )
    yield "The paper, CIFAR-100", from_published("cifar100")
    if options.model is not None and options.portfolio is None:
        imagenet = _by_backbone(from_published("imagenet"))
        if stand_in(imagenet, options.model)[0] is not None:
            yield "The paper, ImageNet", imagenet


def _own(options: argparse.Namespace) -> "ScoreTable":
    """Return the table of `--runs`."""
    from bocb_jax import results
    from bocb_jax.coupling.scores import from_file, from_results

    if options.runs.is_dir() or results.is_results(options.runs):
        return from_results(results.load(options.runs), dataset=options.dataset)
    results.check_file(options.runs)
    return from_file(options.runs, dataset=options.dataset)


def _show_fine_tuning(options: argparse.Namespace) -> None:
    """Print what to fine-tune with after a pre-training."""
    from bocb_jax.coupling import fine_tuning, recommend
    from bocb_jax.coupling.scores import from_published

    if options.portfolio is not None or options.tuning_budget is not None:
        raise UserError("--task goes with neither --portfolio nor --tuning-budget; leave it out.")
    tables = [(f"The paper, {options.task}", from_published(_TASKS[options.task]))]
    if options.runs is not None:
        own = _own(options)
        tables.insert(0, (f"Your own runs ({own.source})", own))
    if options.model is not None:
        _check_name(options.model, tables, by="base_backbone")
    start = f"bocb transfer --task {options.task} --init WEIGHTS"

    def advise(table: "ScoreTable") -> "FineTuning | None":
        return fine_tuning.advise(table, options.model, options.pretrained_with, most=options.most)

    def lines(found: "FineTuning") -> list[str]:
        advice, model = found.advice, options.model
        command = [] if model is None else [f"{start} {_settings(model, advice.choices[0])}"]
        return [*recommend.sentences(advice), *found.lines, *command]

    _show(tables, advise, lines, _TOO_FEW, options)


def _by_backbone(table: "ScoreTable") -> "ScoreTable":
    """Return the paper's table for ImageNet with the names of its backbones alone.

    Its columns are named as "R-50_RSB-A2_300ep".
    """
    names = table.runs["backbone"].str.partition("_")[0]
    return dataclasses.replace(table, runs=table.runs.assign(backbone=names))


def _show_advice(tables: "list[tuple[str, ScoreTable]]", options: argparse.Namespace) -> None:
    from bocb_jax.coupling import recommend

    def advise(table: "ScoreTable") -> "Advice | None":
        return recommend.recommend(table, options.model, most=options.most)

    def lines(advice: "Advice") -> list[str]:
        command = f"bocb train {_settings(options.model, advice.choices[0])}"
        return [*recommend.sentences(advice), command]

    _show(tables, advise, lines, _TOO_FEW, options)


def _show_portfolios(tables: "list[tuple[str, ScoreTable]]", options: argparse.Namespace) -> None:
    from bocb_jax.coupling import recommend

    def choose(table: "ScoreTable") -> "Portfolio | None":
        return recommend.choose_portfolio(table, options.portfolio, options.model)

    too_few = f"it has no {options.portfolio} optimizers to choose among."
    _show(tables, choose, recommend.portfolio_sentences, too_few, options)


def _show(
    tables: "list[tuple[str, ScoreTable]]",
    ask: "Callable[[ScoreTable], T | None]",
    lines: "Callable[[T], Sequence[str]]",
    too_few: str,
    options: argparse.Namespace,
) -> None:
    """Print the answer of each table, as sentences or as JSON.

    Args:
      tables: each with its title.
      ask: returns the answer of a table, a dataclass, or None where it has none.
      lines: returns what is printed of an answer.
      too_few: printed where there is none.
      options: of the command line.
    """
    found = [(title, ask(table)) for title, table in tables]
    if options.json:
        rows = [
            {"from": title, **finite(dataclasses.asdict(one))}
            for title, one in found
            if one is not None
        ]
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    for title, one in found:
        print(f"{title}:")
        for line in [too_few] if one is None else lines(one):
            print(f"  {line}")
        print()


def _check_name(model: str, tables: "list[tuple[str, ScoreTable]]", by: str = "backbone") -> None:
    """Raise UnknownName for a backbone that neither is registered nor has a stand-in in a table.

    An import path, module:name, may be any net; it is not followed. `by` is the column that names
    the backbones.
    """
    from bocb_jax.coupling.recommend import stand_in

    tables = [
        (title, dataclasses.replace(table, runs=table.runs.assign(backbone=table.runs[by])))
        for title, table in tables
        if by in table.runs
    ]

    if ":" in model or any(stand_in(table, model)[0] is not None for _, table in tables):
        return
    from bocb_jax.models.factory import MODELS

    known = [name for _, table in tables for name in table.backbones]
    near = difflib.get_close_matches(model, known, n=3, cutoff=0.5)
    if near and model not in MODELS:
        raise UnknownName(
            f"There is no model '{model}', neither in the tables of scores nor in `bocb models "
            f"--all`. Did you mean {' or '.join(near)}? Your own net is given as module:name."
        )
    MODELS.get(model)


def _settings(model: str, choice: "Choice") -> str:
    """Return the options of `bocb train` and `bocb transfer` for a choice."""
    from bocb_jax.paper.categories import to_opt

    words = ["--model", model, "--opt", to_opt(choice.optimizer)]
    if choice.learning_rate is not None:
        words += ["--lr", f"{choice.learning_rate:g}"]
    if choice.weight_decay is not None:
        words += ["--weight-decay", f"{choice.weight_decay:g}"]
    return shlex.join(words)
