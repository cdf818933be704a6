"""Your own backbone or optimizer in minutes: `bocb probe --model mypkg:MyNet`, or `--opt`.

A backbone is trained with a few optimizers beside two known backbones; an optimizer is trained
against the same optimizers on small backbones of both camps. Every pair has the same number of
learning rates and seeds. More seeds are added until the answer is decided or the budget is spent.
This process never imports JAX; the sweep's workers do.
"""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from bocb_jax.checked import Count, FilePath, Pixels, Workers
from bocb_jax.command_line import Parser, value_of
from bocb_jax.errors import UserError
from bocb_jax.storage.remote import local_copy

if TYPE_CHECKING:
    from bocb_jax.coupling.score_table import ScoreTable
    from bocb_jax.study.spec import Study

Seeds = Annotated[int, Field(ge=1, le=30)]
ANCHORS = ("resnet_mini", "vit_mini")  # one of either camp, beside a backbone of the user's
# For an optimizer of the user's: two classic CNNs, and three nets that the paper calls modern.
BACKBONES = ("resnet_mini", "repvgg_mini", "convnext_mini", "mixer_mini", "vit_mini")
FIRST_SEEDS = 2  # of every pair; below, no noise is known


def main(arguments: list[str]) -> int:
    """Train the study of a backbone or an optimizer and report on it; return the exit code."""
    return _run(_parser().parse_args(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="bocb probe",
        description="Measure what the optimizer costs on a backbone of yours, or where an "
        "optimizer of yours helps and fails.",
    )
    probed = parser.add_mutually_exclusive_group(required=True)
    probed.add_argument("--model", help="a backbone: a name, or module:attribute")
    probed.add_argument("--opt", help="an optimizer: a name, or module:function")
    parser.add_argument(
        "--budget",
        default="30m",
        help="device time after which no run starts: 90s, 30m, 2h; default: 30m",
    )
    parser.add_argument("--dataset", default="digits", help="default: digits")
    parser.add_argument(
        "--epochs", type=value_of(Count),
        help="of each run; default: 20 for a backbone, 8 for an optimizer",
    )  # fmt: skip
    parser.add_argument(
        "--image-size", type=value_of(Pixels), default=16, help="pixels; default: 16"
    )
    parser.add_argument(
        "--seeds", type=value_of(Seeds), default=5,
        help="most final runs per pair; fewer where they decide; default: 5",
    )  # fmt: skip
    parser.add_argument(
        "--workdir",
        type=value_of(FilePath),
        metavar="DIR",
        help="a path or a URL; default: runs/probe and the name",
    )
    parser.add_argument("--workers", type=value_of(Workers), help="runs at a time")
    return parser


def hours(budget: str) -> float:
    """Return the hours in "90s", "30m" or "2h".

    Raises:
      UserError: it is none of these.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", budget.strip())
    if not found or float(found[1]) == 0:
        raise UserError(f"--budget is '{budget}'; it must be a time such as 90s, 30m or 2h.")
    return float(found[1]) / {"s": 3600, "m": 60, "h": 1}[found[2]]


def optimizers() -> tuple[str, ...]:
    """Return the optimizers of a probe: SGD, AdamW, and the best two to try on the paper's table.

    SGD and AdamW are what most users start from, one of either camp.
    """
    from bocb_jax.coupling.costs import costs_of
    from bocb_jax.coupling.features import features_of
    from bocb_jax.coupling.portfolio import portfolio
    from bocb_jax.coupling.scores import from_published
    from bocb_jax.paper.categories import to_opt

    table = from_published("cifar100")
    families = features_of(table.backbones)["family"]
    best = portfolio(costs_of(table), families, largest=2)["optimizers"][2]
    return tuple(dict.fromkeys(["sgd", "adamw", *map(to_opt, best)]))


def study_for(options: argparse.Namespace, seeds: int, device_hours: float) -> "Study":
    """Return the study, with the user's own first so that a small budget is spent on it.

    Args:
      options: of the command line.
      seeds: final runs of each pair.
      device_hours: after which no run starts.
    """
    from bocb_jax.study.spec import Budget, Final, Search, Study

    backbones, compared, epochs = BACKBONES, optimizers(), 8
    if options.model is not None:
        backbones, epochs = tuple(dict.fromkeys([options.model, *ANCHORS])), 20
    else:
        compared = tuple(dict.fromkeys([options.opt, *compared]))
    return Study(
        name="probe",
        backbones=backbones,
        optimizers=compared,
        train={
            "dataset": options.dataset,
            "epochs": options.epochs or epochs,
            "image_size": options.image_size,
            "batch_size": 16,
            # In so few steps a ViT learns little from mixed and erased images, and the noise
            # between seeds would hide the differences between optimizers.
            "augment": {"only": True},
            "parallel": {"devices": 1},
        },
        search=Search(kind="grid", lr_factors=(0.1, 1, 10)),
        final=Final(seeds=tuple(range(1, seeds + 1))),
        budget=Budget(device_hours=device_hours),
    )


def _run(options: argparse.Namespace) -> int:
    from bocb_jax.sweep import sweep

    if options.workdir is None:
        name = options.model or options.opt
        options.workdir = f"runs/probe-{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}"
    left, before = hours(options.budget), _taken(options.workdir)
    for seeds in range(min(FIRST_SEEDS, options.seeds), options.seeds + 1):
        code = sweep(study_for(options, seeds, left), options.workdir, workers=options.workers)
        if code not in (0, 1):
            return code
        left = hours(options.budget) - (_taken(options.workdir) - before)
        with local_copy(options.workdir) as here:
            done = code == 0 and (seeds == options.seeds or decided(Path(here), options))
            if code == 1 or done or left <= 0:
                report(Path(here), options, spent=not done)
                return 0
    return 0


def _taken(workdir: str) -> float:
    """Return the device hours of the runs in a folder that have ended; 0 without any."""
    from bocb_jax import results

    try:
        with local_copy(workdir) as here:
            return float(results.load(Path(here))["wall_seconds"].sum()) / 3600
    except UserError:
        return 0.0


def decided(workdir: Path, options: argparse.Namespace) -> bool:
    """Return whether more seeds would tell no more than those there are.

    Args:
      workdir: folder of the runs, or their table of results.
      options: of the command line.
    """
    table = _table(workdir, options)
    if options.opt is not None:
        from bocb_jax.coupling.paired import compare_paired, judge_paired

        found = judge_paired(table, options.opt, compare_paired(table, options.opt))
        needed = found.loc[found["verdict"] == "undecided", "seeds"]
        return not (needed <= options.seeds).any()
    from bocb_jax.coupling.best import compare_with_best
    from bocb_jax.coupling.choice import freedom
    from bocb_jax.coupling.noise import estimate_noise

    noise = estimate_noise(table)
    row = freedom(table, compare_with_best(table, noise), noise).loc[options.model]
    return row["word"] != "undecided" or not row["seeds"] <= options.seeds


def _table(workdir: Path, options: argparse.Namespace) -> "ScoreTable":
    """Return the scores of the runs in a folder.

    Raises:
      UserError: there are too few to compare.
    """
    from bocb_jax import results
    from bocb_jax.coupling.costs import diverged
    from bocb_jax.coupling.scores import from_results

    table = from_results(results.load(workdir))
    told = (table.counts() > 0) | diverged(table)
    if options.model is not None:
        tried = int(told[options.model].sum()) if options.model in told else 0
        least, of = 2, f"{len(optimizers())} optimizers"
    else:
        tried = int(told.loc[options.opt].sum()) if options.opt in told.index else 0
        least, of = 1, f"{len(BACKBONES)} backbones"
    if tried < least:
        raise UserError(
            f"{options.model or options.opt} has ended runs with {tried} of {of} in {workdir}: too "
            "few to compare. The same command with a larger --budget continues from there."
        )
    return table


def report(workdir: Path, options: argparse.Namespace, *, spent: bool = False) -> None:
    """Print what the runs in a folder say about a backbone or an optimizer.

    Args:
      workdir: folder of the runs, or their table of results.
      options: of the command line.
      spent: whether the budget ended the sweep.

    Raises:
      UserError: there are too few scores to compare.
    """
    from bocb_jax.coupling.analysis import analyze
    from bocb_jax.report.probed import model_lines, optimizer_lines

    analysis = analyze(_table(workdir, options))
    if spent:
        print(
            "The budget was spent before all runs were done; what follows is based on those done. "
            "The same command with a larger --budget continues."
        )
    lines = (
        model_lines(analysis, options.model)
        if options.model is not None
        else optimizer_lines(analysis, options.opt)
    )
    for line in lines:
        print(line)
