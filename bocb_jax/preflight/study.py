"""Check every pair of a study before it is paid for: `bocb sweep STUDY --preflight v5e:4x4`."""

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

from bocb_jax import optim
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.console import console, output
from bocb_jax.preflight.check import use_cpu
from bocb_jax.preflight.many import FITS, Row, check_each
from bocb_jax.preflight.table import heading, line
from bocb_jax.preflight.wording import chips_text, hours_text
from bocb_jax.resolve import recorded_size
from bocb_jax.roofline.chips import GIB
from bocb_jax.roofline.topology import Topology, open_topology
from bocb_jax.storage.files import write_atomically
from bocb_jax.study.plan import Cell
from bocb_jax.study.spec import Study

_HEADINGS = (
    "backbone", "optimizers", "GiB a chip", "least ms", "bound by", "hours a run", "runs",
    "chip-hours", "verdict",
)  # fmt: skip
# Settings that no program is compiled for: inputs of it, or of the host alone.
_INPUTS = ("opt", "lr", "weight_decay", "seed", "test", "init", "init_ema", "log")


@dataclasses.dataclass(frozen=True)
class Program:
    """Pairs of a study whose training steps need the same.

    Attributes:
      cells: the pairs; the first is compiled.
    """

    cells: tuple[Cell, ...]

    @property
    def config(self) -> TrainConfig:
        """The first pair's run at full length."""
        return _run_of(self.cells[0])

    @property
    def name(self) -> str:
        """The pair that is compiled, and how many are like it."""
        pair, others = self.cells[0].pair, len(self.cells) - 1
        return f"{pair.label} + {pair.optimizer}" + (f" and {others} like it" if others else "")


def check_study(study: Study, cells: list[Cell], topology: str, *, path: Path, jobs: int) -> bool:
    """Compile what a study trains, write a table, and say what the whole study takes.

    Args:
      study: the study.
      cells: its pairs.
      topology: name of the chips.
      path: of the table; what was compiled is kept beside it, as `.jsonl`.
      jobs: how many are compiled at a time.

    Returns:
      Whether every pair fits as the study asks for it.

    Raises:
      UserError: a setting is wrong.
    """
    use_cpu()
    opened = open_topology(topology)
    programs = {program.name: program for program in distinct_programs(cells)}
    console.print(
        f"{study.name}: {len(cells)} pairs, {len(programs)} programs to compile for {topology}. "
        "Optimizers whose state is as large and whose update costs the same share one.",
        markup=False,
        soft_wrap=True,
    )

    def write(rows: dict[str, Row]) -> None:
        lines = [*_summary(study, programs, rows, opened), "", *heading(_HEADINGS)]
        known = {name: program for name, program in programs.items() if name in rows}
        lines += [
            row for name, program in known.items() for row in _table_rows(program, rows[name])
        ]
        write_atomically(path, "\n".join(lines) + "\n")

    rows = check_each(
        {name: program.config for name, program in programs.items()},
        topology,
        kept=path.with_suffix(".jsonl"),
        jobs=jobs,
        search=True,
        on_rows=write,
    )
    output.print("\n".join(_summary(study, programs, rows, opened)), markup=False, soft_wrap=True)
    console.print(str(path), markup=False)
    return all(row["verdict"] == FITS for row in rows.values())


def distinct_programs(cells: Sequence[Cell]) -> list[Program]:
    """Return the pairs in groups whose training steps need the same, in the study's order.

    Within a group all settings are equal that a program is compiled for, but for the optimizer: its
    state is as large and its update costs the same, as the catalog says. The user's own optimizers
    and those with arguments are alone.
    """
    groups: dict[str, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(_needs(cell), []).append(cell)
    return [Program(tuple(group)) for group in groups.values()]


def _needs(cell: Cell) -> str:
    """Return what decides the cost of a training step, as text."""
    config = _run_of(cell)
    settings = config.identity()
    for name in _INPUTS:
        settings.pop(name, None)
    info = optim.optimizer_info(config.opt)
    update = [info.cost, info.state_per_parameter]
    if info.own or config.opt_args:
        update = [config.opt]
    # Where weights come from decides the size of the images in some recipes.
    start = [config.init is not None, recorded_size(config.init)]
    return json.dumps([settings, update, start], sort_keys=True)


def _run_of(cell: Cell) -> TrainConfig:
    """Return a run of a pair at full length."""
    found = from_dict(TrainConfig, cell.planned({})[0].config)
    return dataclasses.replace(found, epochs=cell.pair.epochs)


# --- In words -------------------------------------------------------------------------------------


def _summary(
    study: Study, programs: dict[str, Program], rows: dict[str, Row], topology: Topology
) -> list[str]:
    """Return what the whole study takes, as far as it has been compiled, and what does not fit."""
    search = final = 0.0  # chip-hours
    lines, left_out = [], list[str]()
    for name, program in programs.items():
        row = rows.get(name)
        hours = row["chip_hours"] if row and "chip_hours" in row else math.nan
        for cell in program.cells:
            if math.isnan(hours):
                left_out.append(f"{cell.pair.label} + {cell.pair.optimizer}")
            else:
                search += hours * sum(cell.lengths)
                final += hours * len(study.final.seeds)
        if row and row["verdict"] != FITS:
            lines.append(f"{_pairs(program)}: {row['verdict']}")
    chips, total = topology.num_chips, search + final
    runs = sum(cell.size for program in programs.values() for cell in program.cells)
    parts = f": {search:,.0f} for the search, {final:,.0f} for the final runs" if search else ""
    said = [
        f"{study.name} on {topology.name} ({chips_text(topology)}): {runs:,} runs take at least "
        f"{hours_text(total / chips)}, {total:,.1f} chip-hours{parts}. Training steps alone, "
        "at published peaks: a real step takes longer, and evaluation, saving and compilation are "
        "not counted."
    ]
    if study.search.kind == "around" and study.search.moves:
        said.append("There will be more runs where the best lies at the edge of a search.")
    limit = study.budget.device_hours
    if limit is not None and total > limit:
        said.append(f"That exceeds budget.device_hours, {limit:g}: the sweep will stop early.")
    missing = sorted(
        {
            str(cell.pair.train.get("dataset", "digits"))
            for program in programs.values()
            for cell in program.cells
            if not cell.pair.has_data
        }
    )
    if missing:
        said.append(
            f"{' and '.join(missing)} is not on this machine: the published number of images was "
            "assumed."
        )
    if left_out:
        said.append(f"Left out of the hours: {', '.join(left_out)}.")
    said += lines
    if any(row.get("flags") for row in rows.values()):
        said.append(
            "Settings that fit go into [train] of the study, or into [[variants]] for some "
            "backbones alone."
        )
    if not lines and len(rows) == len(programs):
        said.append("All pairs fit.")
    return said


def _pairs(program: Program) -> str:
    """Return the names of the pairs of a program, backbone by backbone."""
    return "; ".join(
        f"{label} + {', '.join(cell.pair.optimizer for cell in cells)}"
        for label, cells in _by_label(program).items()
    )


def _by_label(program: Program) -> dict[str, list[Cell]]:
    found: dict[str, list[Cell]] = {}
    for cell in program.cells:
        found.setdefault(cell.pair.label, []).append(cell)
    return found


def _table_rows(program: Program, row: Row) -> list[str]:
    """Return a line of the table for each backbone."""
    found = []
    for label, cells in _by_label(program).items():
        optimizers = ", ".join(cell.pair.optimizer for cell in cells)
        runs = sum(cell.size for cell in cells)
        length = sum(cell.length for cell in cells)
        figures = [""] * 4
        hours = ""
        if "memory" in row:
            hours = f"{row['chip_hours'] * length:,.1f}"
            figures = [
                f"{row['memory'] / GIB:.2f}",
                f"{1e3 * row['least']:,.4g}",
                row["bound"],
                f"{row['hours']:,.3g}",
            ]
        found.append(line([label, optimizers, *figures, f"{runs:,}", hours, row["verdict"]]))
    return found
