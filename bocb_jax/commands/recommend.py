"""What to try first: `bocb recommend --model resnet50 [--runs DIR]`.

Answers from your own runs and from the published tables, each with its evidence; never imports JAX.
"""

import argparse
import dataclasses
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from bocb_jax.checked import Count, FilePath
from bocb_jax.command_line import Parser, value_of
from bocb_jax.errors import UserError
from bocb_jax.storage.files import finite
from bocb_jax.storage.remote import local_copy

if TYPE_CHECKING:
    from bocb_jax.coupling.recommend import Choice


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
    parser.add_argument("--model", required=True, metavar="NAME", help="the backbone")
    parser.add_argument(
        "--runs", type=value_of(FilePath), metavar="DIR",
        help="your own runs: a folder, its results.parquet, or a CSV of scores; a path or a URL",
    )  # fmt: skip
    parser.add_argument("--dataset", help="which one, where the runs are on several")
    parser.add_argument(
        "--most", type=value_of(Count), default=3, metavar="N", help="choices; default: 3"
    )
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    return parser


def _run(options: argparse.Namespace) -> None:
    from bocb_jax import results
    from bocb_jax.coupling import recommend
    from bocb_jax.coupling.scores import from_csv, from_published, from_results

    if options.most < 1:
        raise UserError(f"--most is {options.most}; it must be at least 1.")
    tables = []
    if options.runs is not None:
        if options.runs.is_dir() or options.runs.suffix == ".parquet":
            own = from_results(results.load(options.runs), dataset=options.dataset)
        else:
            results.check_file(options.runs)
            own = from_csv(options.runs)
        tables.append((f"Your own runs ({own.source})", own))
    tables.append(("The paper, CIFAR-100", from_published("cifar100")))
    found = [
        (title, recommend.recommend(table, options.model, most=options.most))
        for title, table in tables
    ]
    if options.json:
        rows = [
            {"from": title, **finite(dataclasses.asdict(advice))}
            for title, advice in found
            if advice is not None
        ]
        print(json.dumps(rows, indent=1, allow_nan=False))
        return
    for title, advice in found:
        print(f"{title}:")
        if advice is None:
            print("  fewer than two optimizers have a score: nothing to choose among.")
        else:
            for line in recommend.sentences(advice):
                print(f"  {line}")
            print(f"  {_command(options.model, advice.choices[0])}")
        print()


def _command(model: str, choice: "Choice") -> str:
    """Return the command line that trains with a choice."""
    from bocb_jax.paper.categories import to_opt

    words = ["bocb", "train", "--model", model, "--opt", to_opt(choice.optimizer)]
    if choice.learning_rate is not None:
        words += ["--lr", f"{choice.learning_rate:g}"]
    if choice.weight_decay is not None:
        words += ["--weight-decay", f"{choice.weight_decay:g}"]
    return shlex.join(words)
