"""Patterns in trained weights: `python -m bocb_jax.patterns PATH... [--output FILE] [--plot FILE]`.

PATH is a run, a folder of runs, or a .safetensors, .pth, .pt or .bin file of any framework; or the
URL of one.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from bocb_jax.errors import UserError
from bocb_jax.patterns.checkpoints import analyze_checkpoints
from bocb_jax.patterns.spectra import THRESHOLDS
from bocb_jax.storage.remote import brought

_SHOWN = ("alpha", "entropy", "l2_norm", "pca_ratio", "stable_rank")
_NARROW, _SHOWN_IN_NARROW = 110, ("alpha", "entropy", "stable_rank")  # room for the names


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="bocb patterns", description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, folders of runs, or files")
    parser.add_argument("--output", metavar="FILE", help="a row a layer: .csv or .parquet")
    parser.add_argument("--plot", metavar="FILE", help="ridges over the layers: .svg or .png")
    parser.add_argument("--jobs", type=int, help="processes; default: one a core")
    options = parser.parse_args(arguments)
    try:
        _check(options.output, (".csv", ".parquet"))
        _check(options.plot, (".svg", ".png"))
        with contextlib.ExitStack() as stack:
            places = {
                str(stack.enter_context(brought(path, weights=True))): path
                for path in options.paths
            }
            frame = analyze_checkpoints(places, jobs=options.jobs)
            for here, path in places.items():
                frame["source"] = frame["source"].str.replace(here, path, regex=False)
        if options.output:
            _write(frame, Path(options.output))
        if options.plot:
            from bocb_jax.report.ridges import plot

            plot(frame, options.plot)
        console = Console(highlight=False)
        console.print(_table(frame, console.width))
    except UserError as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    return 0


def _check(path, suffixes):
    if path and (Path(path).suffix not in suffixes or not Path(path).absolute().parent.is_dir()):
        raise UserError(
            f"{path} cannot be written: its folder must exist and its name end in "
            f"{' or '.join(suffixes)}."
        )


def _write(frame, path):
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    else:
        frame.assign(shape=frame["shape"].map(list)).to_parquet(path, index=False)


def _table(frame, width: int) -> Table:
    sources = frame["source"].unique()
    several = len(sources) > 1
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in sources])
    table = Table(
        title="Patterns of weights", title_justify="left", caption_justify="left", box=SIMPLE_HEAD
    )
    table.add_column("source" if several else "layer", overflow="fold")
    shown = _SHOWN_IN_NARROW if width < _NARROW else _SHOWN
    for name in ("layers" if several else "shape", *shown):
        table.add_column(name, justify="right", no_wrap=True)
    if several:  # medians over the layers
        for source, part in frame.groupby("source", sort=False):
            figures = (_pair(part[n].median(), part[f"{n}_init"].median()) for n in shown)
            table.add_row(os.path.relpath(source, common), str(len(part)), *figures)
    else:
        for _, row in frame.iterrows():
            figures = (_pair(row[n], row[f"{n}_init"]) for n in shown)
            table.add_row(row["layer"], "x".join(map(str, row["shape"])), *figures)
    low, high = THRESHOLDS
    table.caption = (
        f"in brackets: random initialization; alpha under {low:g}: over-trained, over {high:g}: "
        f"under-trained, by WeightWatcher{'; medians over the layers' if several else ''}"
    )
    return table


def _pair(value, reference):
    return "-" if value != value else f"{value:.3g} ({reference:.3g})"


if __name__ == "__main__":
    sys.exit(main())
