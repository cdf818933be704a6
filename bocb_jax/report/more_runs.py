"""Which further runs would decide what is undecided, as a command that can be pasted."""

import dataclasses
import re
import shlex

import pandas

from bocb_jax.coupling.choice import MOST_SEEDS
from bocb_jax.coupling.result import Analysis
from bocb_jax.report import wording
from bocb_jax.report.style import label

_MOST_COMMANDS = 3
_VARIANT = re.compile(r"(.*) \((.*)\)")  # how tables name a variant of a backbone


@dataclasses.dataclass(frozen=True)
class Sweep:
    """The sweep that a table comes from."""

    study: str  # path of its file
    workdir: str  # a path or a URL
    search_seed: int  # of its trials


@dataclasses.dataclass(frozen=True)
class MoreRuns:
    """Runs that would decide something."""

    sentence: str
    command: str  # "" where the sweep is not known


def more_runs(analysis: Analysis, sweep: Sweep | None = None) -> list[MoreRuns]:
    """Return what would decide on which backbones the choice is free or bound.

    Args:
      analysis: of any table.
      sweep: that made the table, if it is known.
    """
    table, free = analysis.table, analysis.free
    if not table.runs["score"].notna().any():
        return []
    if table.one_seed and free["word"].isna().all():
        if sweep is None or analysis.noise["sd"].notna().any():
            return []
        text = "Two more seeds of every cell would give the noise, which the verdict needs."
        return [MoreRuns(text, _command(analysis, sweep, table.backbones, 2))]
    undecided = free[free["word"] == "undecided"]
    found = []
    for seeds, group in undecided[undecided["seeds"].notna()].groupby("seeds"):
        names = list(group.index)
        cells = table.counts()[names]
        more = int(seeds) - int(cells.where(cells > 0).min().min())
        count = int((cells > 0).to_numpy().sum())
        found.append(
            MoreRuns(
                f"{wording.counted(more, 'more seed')} of the {wording.counted(count, 'cell')} of "
                f"{wording.listed(wording.labels(names))} would decide whether the choice is free "
                "or bound there, if means and noise stay as they are.",
                _command(analysis, sweep, names, more),
            )
        )
    rest = list(undecided.index[undecided["seeds"].isna()])
    if rest:
        text = (
            f"No number of seeds up to {MOST_SEEDS} would be expected to decide whether the choice "
            f"is free or bound on {_names(rest)}."
        )
        found.append(MoreRuns(text, ""))
    return found[:_MOST_COMMANDS]


def _names(names: list[str]) -> str:
    return wording.listed([label(name) for name in names])


def _command(analysis: Analysis, sweep: Sweep | None, backbones: list[str], more: int) -> str:
    """Return the command that trains cells of some backbones with more seeds; "" if unknown.

    New seeds come after all that these backbones were trained with, diverged runs included, and
    after that of the search: a final run with it would repeat the trial that was chosen.
    """
    if sweep is None or any(_VARIANT.fullmatch(name) for name in backbones):
        return ""
    table = analysis.table
    own = table.runs.loc[table.runs["backbone"].isin(backbones), "seed"]
    known = sorted(set(pandas.to_numeric(own, errors="coerce").dropna().astype(int)))
    last = max([*known, sweep.search_seed])
    wanted = [*known, *range(last + 1, last + 1 + more)]
    words = ["bocb", "sweep", sweep.study, "--workdir", sweep.workdir]
    words += ["--backbones", ",".join(backbones), "--optimizers", ",".join(table.optimizers)]
    words += ["--final.seeds", str(wanted)]
    return shlex.join(words)
