"""From scores to a verdict: `bocb analyze RUNS`, `bocb analyze scores.csv`, `--published cifar100`.

Prints the verdict in words and writes a report; never imports JAX.
"""

import argparse
import functools
import sys
from pathlib import Path

from rich.progress import track

from bocb_jax.console import console
from bocb_jax.errors import UserError
from bocb_jax.storage.remote import brought

SCORES = {"accuracy": "test accuracy", "loss": "train loss", "log-odds": "log-odds"}


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        with brought(options.source) as source:
            options.source = source and Path(source)
            _run(options)
    except UserError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bocb analyze",
        description="Which optimizers suit which backbone, and how strongly the choice binds you.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "source",
        nargs="?",
        metavar="RUNS",
        help="a folder of runs, its results.parquet, or a CSV of scores; a path or a URL",
    )
    source.add_argument(
        "--published", metavar="NAME", help="a table of the paper: cifar100, imagenet or coco"
    )
    parser.add_argument(
        "--output", type=Path, default=Path("report"), metavar="DIR",
        help="folder of the report; one of an earlier analysis is replaced, anything else is "
        "refused. Default: report",
    )  # fmt: skip
    parser.add_argument("--no-report", action="store_true", help="only print the verdict")
    parser.add_argument(
        "--patterns", choices=("auto", "yes", "no"), default="auto",
        help="whether the report shows what the weights of the runs look like; auto, the default: "
        "where the checkpoints are there and few or small enough to take seconds",
    )  # fmt: skip
    parser.add_argument(
        "--rule", default="paper_marks",
        help="what marks an outlier: paper_marks, paper_eq1 or regret, or with a parameter, "
        "'regret(2)'. Default: paper_marks",
    )  # fmt: skip
    parser.add_argument(
        "--score", choices=list(SCORES), default="accuracy",
        help="accuracy (test split), loss (training, last epoch) or log-odds of the accuracy",
    )  # fmt: skip
    parser.add_argument("--dataset", help="which one, where the runs are on several")
    parser.add_argument("--chance", type=float, help="score of a guess, for diverged runs of a CSV")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals")
    parser.add_argument("--resamples", type=int, default=2000, help="of bootstrap and permutation")
    parser.add_argument("--seed", type=int, default=0, help="of the resamples")
    return parser


def _run(options: argparse.Namespace) -> None:
    # Imported here: --help answers at once.
    from bocb_jax.coupling import curves
    from bocb_jax.coupling.analysis import analyze
    from bocb_jax.report import summary, write

    if not options.no_report:
        write.check_folder(options.output)  # before the work, not after it
    table, workdir = read_table(options)
    analysis = analyze(
        table,
        rule=options.rule,
        confidence=options.confidence,
        resamples=options.resamples,
        seed=options.seed,
    )
    for line in summary.verdict(analysis):
        print(line)
    print()
    for name in table.backbones:
        print(f"- {summary.backbone_sentence(analysis, name)}")
    warnings = list(dict.fromkeys([*analysis.warnings, *table.notes]))
    if warnings:
        print("\nWhat these data cannot say:")
    for line in warnings:
        print(f"- {line}")
    if options.no_report:
        return
    found = curves.read(table, workdir) if workdir is not None else None
    weights = _weights(analysis, workdir, options.patterns)
    if weights is not None:
        print("\nWhat the weights look like:")
        for line in weights.sentences:
            print(f"- {line}")
    progress = functools.partial(track, description="pictures", console=console, transient=True)
    written = write.write(analysis, options.output, curves=found, weights=weights, track=progress)
    replaced = "An earlier report was replaced: " if written.replaced else "The report: "
    print(f"\n{replaced}{written.folder / 'index.html'} ({written.page_bytes / 1e6:.1f} MB)")


def _weights(analysis, workdir: Path | None, asked: str):
    """Figures of the runs' weights, or None where there are none or they are not wanted."""
    if workdir is None or asked == "no":
        return None
    from bocb_jax.patterns import cells

    folders = cells.find(analysis.table, workdir)
    if not folders:
        if asked == "yes":
            raise UserError(f"No run of this table has checkpoints/best in {workdir}.")
        return None
    if asked == "auto":
        size = cells.size(folders)
        if size > cells.CHEAP_BYTES or len(folders) > cells.CHEAP_CELLS:
            print(
                f"\nThe weights of {len(folders)} runs ({size / 1e9:.1f} GB) were not looked at; "
                "--patterns yes does."
            )
            return None
    try:
        return cells.read(analysis, folders, progress=True)
    except UserError as error:
        if asked == "yes":
            raise
        print(f"\nThe report shows nothing of the weights: {error}")
        return None


def read_table(options: argparse.Namespace):
    """The table of scores, and the folder of its runs if there is one."""
    from bocb_jax import results
    from bocb_jax.coupling.scores import from_csv, from_published, from_results

    score = SCORES[options.score]
    if options.published is not None:
        table = from_published(options.published)
        if score == "train loss":
            raise UserError("The paper gives no training losses; analyse accuracy or log-odds.")
        return (table.log_odds() if score == "log-odds" else table), None
    source = options.source
    if source.is_dir() or source.suffix == ".parquet":
        frame = results.load(source)
        workdir = source if source.is_dir() else source.parent
        return from_results(frame, score, dataset=options.dataset), workdir
    return from_csv(source, score=score, chance=options.chance), None


if __name__ == "__main__":
    sys.exit(main())
