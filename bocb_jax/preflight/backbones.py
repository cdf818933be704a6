"""The table of the paper's backbones with one optimizer: `bocb preflight --all`."""

import dataclasses
from pathlib import Path

import jax

from bocb_jax import __version__, paper
from bocb_jax.config import TrainConfig
from bocb_jax.console import console, duration
from bocb_jax.preflight.many import FITS, Row, check_each
from bocb_jax.preflight.table import markdown
from bocb_jax.storage.files import write_atomically


def write_table(
    base: TrainConfig, topology: str, *, path: str | Path, jobs: int, search: bool
) -> bool:
    """Check the paper's backbones, and write a table in Markdown.

    A backbone that was checked before, by the same version and command, is taken from the lines
    beside the table.

    Args:
      base: the run, but for its backbone.
      topology: name of the chips.
      path: of the table; the lines lie beside it, as `.jsonl`.
      jobs: how many are compiled at a time.
      search: whether to look for a setting that fits where a backbone does not.

    Returns:
      Whether every backbone fits as it was asked for.
    """
    path = Path(path)
    runs = {name: dataclasses.replace(base, model=name) for name in paper.backbones()}

    def write(rows: dict[str, Row]) -> None:
        known = {name: rows[name] for name in runs if name in rows}
        write_atomically(path, markdown(_title(base, topology, known), known))

    rows = check_each(
        runs, topology, kept=path.with_suffix(".jsonl"), jobs=jobs, search=search, on_rows=write
    )
    console.print(str(path), markup=False)
    return all(row["verdict"] == FITS for row in rows.values())


def _title(base: TrainConfig, topology: str, rows: dict[str, Row]) -> str:
    batch = f"{base.batch_size:,}" if base.batch_size else "the recipe's batch"
    spent = duration(sum(row.get("seconds", 0) for row in rows.values()))
    return (
        f"Training steps with {base.opt}, global batch {batch}, compiled for {topology} by "
        f"bocb_jax {__version__} with JAX {jax.__version__}; {spent} of compiling. Times are the "
        "least at published peaks."
    )
