"""Scores to verdict: `bocb analyze RUNS`, `bocb analyze scores.csv`, `--published cifar100`.

Prints the verdict in words and writes a report. Never imports JAX.
"""

import argparse
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from rich.progress import track

from bocb_jax.checked import Count, FilePath, Number, Rule, Seed, Text
from bocb_jax.command_line import Parser, path_of, value_of
from bocb_jax.console import console
from bocb_jax.errors import UserError
from bocb_jax.storage.remote import is_url, local_copy

if TYPE_CHECKING:
    from bocb_jax.coupling.analysis import Analysis
    from bocb_jax.coupling.metrics import Metric
    from bocb_jax.coupling.scores import ScoreTable
    from bocb_jax.patterns.cells import WeightPatterns
    from bocb_jax.report.more_runs import Sweep

Confidence = Annotated[Number, Field(gt=0, lt=1)]
# A percentage, or a loss in nats.
Chance = Annotated[Number, Field(ge=0, le=100)]
Positive = Annotated[Number, Field(gt=0, le=1e9), Rule("a positive number of at most 1e9")]
Name = Annotated[Text, Field(min_length=1, max_length=60), Rule("text of 1 to 60 characters")]
Resamples = Annotated[int, Field(ge=1, le=100_000)]
SCORES = {"accuracy": "test accuracy", "loss": "train loss", "log-odds": "log-odds"}


def main(arguments: list[str]) -> int:
    """Analyze the scores that the command line names, and return the exit code."""
    options = _parser().parse_args(arguments)
    given = options.source
    with local_copy(given) as source:
        options.source = source and Path(source)
        _run(options, given)
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="bocb analyze",
        description="Which optimizers suit which backbone, and how strongly the choice binds you.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "source",
        type=value_of(FilePath),
        nargs="?",
        metavar="RUNS",
        help="a folder of runs, its results.parquet, or a table of scores of any form (CSV, TSV, "
        "JSON, JSON lines, Parquet; long or wide); a path or a URL",
    )
    source.add_argument(
        "--published", metavar="NAME",
        help="a table of the paper: cifar100, imagenet, coco_box or coco_pose",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=path_of, default="report", metavar="DIR",
        help="folder for the report; an earlier report in it is replaced, a folder with anything "
        "else is refused. Default: report",
    )  # fmt: skip
    parser.add_argument("--no-report", action="store_true", help="only print the verdict")
    parser.add_argument(
        "--patterns", choices=("auto", "yes", "no"), default="auto",
        help="whether the report shows what the weights of the runs look like. Default: auto, if "
        "there are checkpoints, few and small enough to take seconds",
    )  # fmt: skip
    parser.add_argument(
        "--rule", default="paper_marks",
        help="rule that marks outliers: paper_marks, paper_eq1 or regret, optionally with a "
        "parameter as in 'regret(2)'. Default: paper_marks",
    )  # fmt: skip
    parser.add_argument(
        "--score", choices=list(SCORES), default="accuracy",
        help="accuracy (test split), loss (training, last epoch) or log-odds of the accuracy. "
        "Default: accuracy",
    )  # fmt: skip
    parser.add_argument("--dataset", help="which data set, if the runs are on several")
    _add_table_options(parser)
    parser.add_argument(
        "--confidence",
        type=value_of(Confidence),
        default=0.95,
        help="level of the intervals. Default: 0.95",
    )
    parser.add_argument(
        "--resamples", type=value_of(Resamples), default=2000,
        help="draws of every bootstrap and permutation test. Default: 2000",
    )  # fmt: skip
    parser.add_argument(
        "--seed", type=value_of(Seed), default=0, help="of the resamples. Default: 0"
    )
    return parser


def _add_table_options(parser: Parser) -> None:
    """Add the options on what a table holds, and on which scale scores are compared."""
    metric = parser.add_argument_group("another metric than accuracy")
    metric.add_argument(
        "--metric", type=value_of(Name), metavar="NAME",
        help="name of the metric, such as perplexity; its column may be called so, or score",
    )  # fmt: skip
    metric.add_argument(
        "--unit", type=value_of(Name), help="unit of the metric, such as s. Default: its name"
    )
    direction = metric.add_mutually_exclusive_group()
    direction.add_argument(
        "--lower-is-better", dest="higher_is_better", action="store_false", default=None,
        help="of the metric. Default: told by its name and unit",
    )  # fmt: skip
    direction.add_argument(
        "--higher-is-better", dest="higher_is_better", action="store_true", default=None,
        help="of the metric",
    )  # fmt: skip
    metric.add_argument(
        "--missing", choices=("missing", "not-reached"),
        help="what an empty score is: no run, or a run that did not reach its target. Default: "
        "not-reached if the metric is a time, else missing",
    )  # fmt: skip
    metric.add_argument(
        "--relative", choices=("auto", "yes", "no"), default="auto",
        help="whether to compare ratios to the best of each backbone. Default: auto, if the best "
        "scores differ more than threefold",
    )  # fmt: skip
    table = parser.add_argument_group("a table of your own")
    for role in ("backbone", "optimizer", "score"):
        table.add_argument(
            f"--{role}-column", type=value_of(Text), metavar="NAME",
            help=f"column of the {role}s. Default: told by its name",
        )  # fmt: skip
    table.add_argument(
        "--test-images", type=value_of(Count), metavar="N",
        help="images behind an accuracy: differences below one image count as equal",
    )  # fmt: skip
    table.add_argument("--chance", type=value_of(Chance), help="score of a random guess")
    scale = parser.add_argument_group("noise (in the unit of the score; of ratios, as a share)")
    scale.add_argument(
        "--noise", type=value_of(Positive), metavar="SD",
        help="standard deviation of one figure, for tables without seeds",
    )  # fmt: skip
    scale.add_argument(
        "--within", type=value_of(Positive), metavar="DELTA",
        help="difference that counts as equal. Default: 1 point, 0.05 nats or log-odds, 2 %% of "
        "the median best of another metric",
    )  # fmt: skip


def _run(options: argparse.Namespace, given: str | None) -> None:
    """Print the verdict and write the report.

    Args:
      options: of the command line; their source is on this machine.
      given: the source as the command line names it, a path or a URL.
    """
    # Imported here, so that --help is fast.
    from bocb_jax.coupling import curves
    from bocb_jax.coupling.analysis import analyze
    from bocb_jax.report import write
    from bocb_jax.report.plots import predictions

    if not options.no_report:
        write.check_folder(options.output)  # before minutes of work, not after
    table, workdir = read_table(options)
    if table.described:
        print(f"Read: {table.described}.\n")
    analysis = analyze(
        table,
        rule=options.rule,
        confidence=options.confidence,
        resamples=options.resamples,
        seed=options.seed,
    )
    sweep = find_sweep(workdir, given if is_url(given or "") else None)
    _print_verdict(analysis, sweep)
    if options.no_report:
        return
    found = curves.read(table, workdir) if workdir is not None else None
    found_by = predictions.read(table, workdir) if workdir is not None else None
    patterns = _weight_patterns(analysis, workdir, options.patterns)
    if patterns is not None:
        print("\nWhat the weights look like:")
        for line in patterns.sentences:
            print(f"- {line}")
    progress = functools.partial(track, description="pictures", console=console, transient=True)
    written = write.write(
        analysis,
        options.output,
        curves=found,
        patterns=patterns,
        found_by=found_by,
        sweep=sweep,
        track=progress,
    )
    replaced = "An earlier report was replaced: " if written.replaced else "The report: "
    print(f"\n{replaced}{written.folder / 'index.html'} ({written.page_bytes / 1e6:.1f} MB)")


def _print_verdict(analysis: "Analysis", sweep: "Sweep | None") -> None:
    from bocb_jax.report import summary
    from bocb_jax.report.more_runs import more_runs

    for line in summary.verdict(analysis):
        print(line)
    print()
    for name in analysis.table.backbones:
        print(f"- {summary.backbone_sentence(analysis, name)}")
    for wanted in more_runs(analysis, sweep):
        print(f"\n{wanted.sentence}")
        if wanted.command:
            print(f"    {wanted.command}")
    _print_listed("The statistics behind this:", summary.statistics(analysis))
    _print_listed("What these data cannot say:", summary.warnings(analysis))


def _print_listed(title: str, lines: Sequence[str]) -> None:
    if lines:
        print(f"\n{title}")
    for line in lines:
        print(f"- {line}")


def find_sweep(workdir: Path | None, url: str | None = None) -> "Sweep | None":
    """Return the sweep that wrote a folder, if the file of its study is found.

    The folder holds what was swept, but not from which file: a file of the study's name, here or in
    experiments/, counts if it asks for the same but for backbones, optimizers and final seeds.

    Args:
      workdir: the folder, on this machine.
      url: of which it is a copy, if it is one.
    """
    from bocb_jax.report.more_runs import Sweep
    from bocb_jax.run_files import read_study
    from bocb_jax.study.spec import read_study as read_study_file

    if workdir is None:
        return None
    try:
        swept = read_study(workdir)
        for folder in (Path(), Path("experiments")):
            path = folder / f"{swept.get('name')}.toml"
            if path.is_file():
                content = read_study_file(path).to_dict()
                if _without_pairs(content) == _without_pairs(swept):
                    return Sweep(str(path), url or str(workdir), content["search"]["seed"])
    except UserError:
        pass  # a study of another version; the report does without
    return None


def _without_pairs(study: dict[str, Any]) -> dict[str, Any]:
    return {key: study[key] for key in study if key not in ("backbones", "optimizers", "final")}


def _weight_patterns(
    analysis: "Analysis", workdir: Path | None, wanted: str
) -> "WeightPatterns | None":
    """Return the patterns of the runs' weights, or None if there are none or they are not wanted.

    Args:
      analysis: of the runs.
      workdir: folder of the runs, if there is one.
      wanted: "yes", "no", or "auto" for only if it takes seconds.

    Raises:
      UserError: the weights were asked for with "yes" and there are none, or cannot be read.
    """
    if workdir is None or wanted == "no":
        return None
    from bocb_jax.patterns import cells

    runs = cells.find_runs(analysis.table, workdir)
    if not runs:
        if wanted == "yes":
            raise UserError(f"No run of this table has checkpoints/best in {workdir}.")
        return None
    if wanted == "auto":
        size = cells.checkpoint_bytes(runs)
        if size > cells.AUTO_BYTES or len(runs) > cells.AUTO_CELLS:
            print(
                f"\nThe weights of {len(runs)} runs ({size / 1e9:.1f} GB) were not analyzed; "
                "--patterns yes analyzes them."
            )
            return None
    try:
        return cells.analyze_runs(analysis, runs, progress=True)
    except UserError as error:
        if wanted == "yes":
            raise
        print(f"\nThe report leaves the weights out: {error}")
        return None


def read_table(options: argparse.Namespace) -> "tuple[ScoreTable, Path | None]":
    """Return the table of scores, and the folder of its runs if there is one.

    Raises:
      UserError: the scores cannot be read, or are not of the kind that was asked for.
    """
    from bocb_jax import results
    from bocb_jax.coupling import scores

    score = SCORES[options.score]
    relative = {"auto": None, "yes": True, "no": False}[options.relative]
    scale = scores.Scale(options.noise, options.within, relative, score == "log-odds")
    metric = _metric(options)
    if options.published is not None:
        _refuse_options(options, (*_OF_METRIC, *_OF_TABLES), "the paper's tables")
        if score == "train loss":
            raise UserError("The paper gives no training losses; use --score accuracy or log-odds.")
        return scores.from_published(options.published, scale=scale), None
    source = options.source
    folder = source if source.is_dir() else source.parent
    if source.is_dir() or results.is_results(source):
        _refuse_options(options, _OF_TABLES, "runs of a sweep, whose columns are known")
        frame = results.load(source)
        found = scores.from_results(
            frame, score, metric=metric, dataset=options.dataset, scale=scale
        )
        return found, folder
    results.check_file(source)
    found = scores.from_file(
        source,
        score,
        metric=metric,
        columns=scores.Columns(
            options.backbone_column, options.optimizer_column, options.score_column
        ),
        dataset=options.dataset,
        scale=scale,
        chance=options.chance,
        test_images=options.test_images,
    )
    return found, None


# Options by the attributes that argparse gives them.
_OF_METRIC = ("metric", "unit", "higher_is_better", "missing")
_OF_TABLES = ("backbone_column", "optimizer_column", "score_column", "test_images", "chance")


def _refuse_options(options: argparse.Namespace, names: Sequence[str], about: str) -> None:
    given = [name for name in names if getattr(options, name) is not None]
    if given:
        flag = {"higher_is_better": "lower-is-better"}.get(given[0], given[0].replace("_", "-"))
        raise UserError(f"--{flag} is for tables of your own, not for {about}.")


def _metric(options: argparse.Namespace) -> "Metric | None":
    """Return the metric that the options name; None for that of --score."""
    from bocb_jax.coupling.metrics import metric_of

    if options.metric is None:
        given = [name for name in _OF_METRIC[1:] if getattr(options, name) is not None]
        if given:
            flag = {"higher_is_better": "lower-is-better"}.get(given[0], given[0])
            raise UserError(f"--{flag} needs --metric, the name of the metric that it is about.")
        return None
    if options.score != "accuracy":
        raise UserError("Give --score or --metric, not both: each names what is compared.")
    reached = None if options.missing is None else options.missing == "not-reached"
    return metric_of(
        name=options.metric,
        unit=options.unit,
        higher_is_better=options.higher_is_better,
        not_reached=reached,
    )


if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
