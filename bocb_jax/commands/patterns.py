"""Patterns in trained weights: `bocb patterns PATH... [--output FILE] [--plot FILE]`.

PATH is a run directory, a folder of them, or a .safetensors, .pth, .pt, .bin or .ckpt file of any
framework; or the URL of one of these.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

import pandas
from rich.box import SIMPLE_HEAD
from rich.table import Table

from bocb_jax.checked import FilePath, Workers
from bocb_jax.command_line import Parser, value_of
from bocb_jax.console import output
from bocb_jax.errors import UserError
from bocb_jax.patterns.checkpoints import analyze_checkpoints
from bocb_jax.patterns.spectra import ALPHA_THRESHOLDS, MAIN_METRICS
from bocb_jax.storage.remote import RUN_FILES, local_copy
from bocb_jax.weight_files.read import files_of, is_weight_file

# On terminals narrower than this, fewer metrics are shown, to leave room for the names.
_NARROW, _NARROW_METRICS = 110, ("alpha", "entropy", "stable_rank")


def main(arguments: list[str]) -> int:
    """Print, write or draw what the command line asks for; return the exit code."""
    parser = Parser(
        prog="bocb patterns",
        description="What trained weights look like, layer by layer, beside their initialization.",
    )
    parser.add_argument(
        "paths", type=value_of(FilePath), nargs="+", metavar="PATH",
        help="run directories, folders of them, or files of weights; paths or URLs",
    )  # fmt: skip
    parser.add_argument(
        "--output",
        type=value_of(FilePath),
        metavar="FILE",
        help="write a table with a row per layer: .csv or .parquet",
    )
    parser.add_argument(
        "--plot",
        type=value_of(FilePath),
        metavar="FILE",
        help="draw alpha over the layers of one backbone: .svg or .png",
    )
    parser.add_argument(
        "--init-ema",
        action="store_true",
        help="of files that hold both, take the averaged weights",
    )
    parser.add_argument(
        "--jobs", type=value_of(Workers), help="number of processes. Default: one per core"
    )
    options = parser.parse_args(arguments)
    _check(options.output, (".csv", ".parquet"))
    _check(options.plot, (".svg", ".png"))
    with contextlib.ExitStack() as stack:
        local = {str(stack.enter_context(_local_copy(path))): path for path in options.paths}
        frame = analyze_checkpoints(local, ema=options.init_ema, jobs=options.jobs)
        for copy, path in local.items():
            frame["source"] = frame["source"].str.replace(copy, path, regex=False)
    if options.output:
        _write(frame, Path(options.output))
    if options.plot:
        from bocb_jax.report.plots import ridges

        ridges.write(frame, options.plot)
    output.print(_table(frame, output.width))
    return 0


def _local_copy(path: str) -> contextlib.AbstractContextManager[str | Path]:
    return local_copy(path, is_file=is_weight_file, parts=files_of, wanted=_is_needed)


def _is_needed(file: Path) -> bool:
    """Whether a file of a folder is one of weights, or one of a run that is read beside them."""
    best = "checkpoints/best/" in file.as_posix()
    return best or file.name in RUN_FILES or is_weight_file(file)


def _check(path: str | None, suffixes: Collection[str]) -> None:
    """Raise a UserError unless a file with one of the suffixes can be written to a path."""
    if path and (Path(path).suffix not in suffixes or not Path(path).absolute().parent.is_dir()):
        raise UserError(
            f"{path} cannot be written: its folder must exist, and its name must end in "
            f"{' or '.join(suffixes)}."
        )


def _write(frame: pandas.DataFrame, path: Path) -> None:
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.assign(shape=frame["shape"].map(list)).to_parquet(path, index=False)


def _table(frame: pandas.DataFrame, width: int) -> Table:
    """Return a row per layer for one set of weights, or a row of medians for each of several."""
    sources = frame["source"].unique()
    several = len(sources) > 1
    table = Table(
        title="Patterns of weights", title_justify="left", caption_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("source" if several else "layer", overflow="fold")
    shown = _NARROW_METRICS if width < _NARROW else MAIN_METRICS
    for name in ("layers" if several else "shape", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    if several:
        common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in sources])
        for source, part in frame.groupby("source", sort=False):
            texts = (_pair(part[n].median(), part[f"{n}_init"].median()) for n in shown)
            table.add_row(os.path.relpath(str(source), common), str(len(part)), *texts)
    else:
        for _, row in frame.iterrows():
            texts = (_pair(row[n], row[f"{n}_init"]) for n in shown)
            table.add_row(row["layer"], "x".join(map(str, row["shape"])), *texts)
    low, high = ALPHA_THRESHOLDS
    table.caption = (
        f"in brackets: at initialization; WeightWatcher calls alpha under {low:g} over-trained and "
        f"over {high:g} under-trained{'; medians over the layers' if several else ''}"
    )
    return table


def _pair(value: float, initial: float) -> str:
    return "-" if value != value else f"{value:.3g} ({initial:.3g})"
