"""How strongly the optimizer binds a backbone: `bocb probe --model mypkg:MyNet --budget 30m`.

Trains the backbone and two known ones on small data, with four optimizers at three learning rates
each. Then says how strongly the backbone depends on the optimizer, and which published backbones
have similar regrets. This process never imports JAX; the sweep's workers do.
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
    from bocb_jax.study.spec import Study

Seeds = Annotated[int, Field(ge=1, le=1000)]
OPTIMIZERS = ("sgd", "adamw", "lamb", "lion")
ANCHORS = ("resnet_mini", "vit_mini")  # weakly and strongly dependent on the optimizer


def main(arguments: list[str]) -> int:
    """Train the study of one backbone and report on it; return the exit code."""
    return _run(_parser().parse_args(arguments))


def _parser() -> Parser:
    parser = Parser(
        prog="bocb probe", description="Measure how strongly the optimizer binds a backbone."
    )
    parser.add_argument("--model", required=True, help="a name, or module:attribute")
    parser.add_argument(
        "--budget",
        default="30m",
        help="device time after which no run starts: 90s, 30m, 2h; default: 30m",
    )
    parser.add_argument("--dataset", default="digits", help="default: digits")
    parser.add_argument(
        "--epochs", type=value_of(Count), default=20, help="of each run; default: 20"
    )
    parser.add_argument(
        "--image-size", type=value_of(Pixels), default=16, help="pixels; default: 16"
    )
    parser.add_argument(
        "--seeds", type=value_of(Seeds), default=2, help="final runs per pair; default: 2"
    )
    parser.add_argument(
        "--workdir",
        type=value_of(FilePath),
        default="runs/probe",
        metavar="DIR",
        help="a path or a URL",
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


def study_for(options: argparse.Namespace) -> "Study":
    """Return the study, with the backbone first so that a small budget is spent on it."""
    from bocb_jax.study.spec import Budget, Final, Search, Study

    known = [name for name in ANCHORS if name != options.model]
    return Study(
        name="probe",
        backbones=(options.model, *known),
        optimizers=OPTIMIZERS,
        train={
            "dataset": options.dataset,
            "epochs": options.epochs,
            "image_size": options.image_size,
            "batch_size": 16,
            # In so few steps a ViT learns little from mixed and erased images, and the noise
            # between seeds would hide the differences between optimizers.
            "augment": {"only": True},
            "parallel": {"devices": 1},
        },
        search=Search(kind="grid", lr_factors=(0.1, 1, 10)),
        final=Final(seeds=tuple(range(1, options.seeds + 1))),
        budget=Budget(device_hours=hours(options.budget)),
    )


def _run(options: argparse.Namespace) -> int:
    from bocb_jax.sweep import sweep

    code = sweep(study_for(options), options.workdir, workers=options.workers)
    if code not in (0, 1):
        return code
    with local_copy(options.workdir) as here:
        report(Path(here), options.model, spent=code == 1)
    return 0


def report(workdir: Path, model: str, *, spent: bool = False) -> None:
    """Print what the runs in a folder say about a model.

    Args:
      workdir: folder of the runs, or their table of results.
      model: the backbone.
      spent: whether the budget ended the sweep.

    Raises:
      UserError: the model has scores with fewer than two optimizers.
    """
    from bocb_jax import results
    from bocb_jax.coupling.analysis import analyze
    from bocb_jax.coupling.placement import place
    from bocb_jax.coupling.scores import from_results
    from bocb_jax.report import summary

    table = from_results(results.load(workdir))
    scored = int((table.counts()[model] > 0).sum()) if model in table.backbones else 0
    if scored < 2:
        raise UserError(
            f"{model} has a score with {scored} of {len(OPTIMIZERS)} optimizers in {workdir}: too "
            "few to compare. The same command with a larger --budget continues from there."
        )
    analysis = analyze(table)
    if spent:
        print(
            "The budget was spent before all runs were done; what follows is based on those done."
        )
    for name in [model, *(name for name in table.backbones if name != model)]:
        print(summary.backbone_sentence(analysis, name))
    regret = analysis.regret[model]
    counts = table.counts()[model]
    words = [f"{opt} {regret[opt]:.2f} (n = {counts[opt]})" for opt in regret.dropna().index]
    print(f"{model}, points behind its best: {', '.join(words)}.")
    alike = place(regret).head(3)
    if len(alike):
        names = [f"{name} ({row.distance:.2f})" for name, row in alike.iterrows()]
        print(
            f"Published backbones with the most similar regrets: {', '.join(names)}; in brackets "
            "the root mean square difference in points. Their scores are from CIFAR-100 after 200 "
            "epochs, unlike these: take it for a hint."
        )
    for line in analysis.warnings:
        print(f"- {line}")
