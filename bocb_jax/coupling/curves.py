"""Training curves of a table's runs, thinned: one run per cell."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.storage.files import is_plain_name

MAX_BYTES, MAX_VALUE = 2**30, 1e100  # of a file, and in it
POINTS = 60  # per run at most: more would not show, and a report holds hundreds of runs
COLUMNS = ("backbone", "optimizer", "run", "seed", "epoch", "loss", "accuracy", "failed")


def read(table: ScoreTable, workdir: str | Path) -> pandas.DataFrame:
    """Read the training curves of a table: those of the run with the middle score of each cell.

    Runs without a readable `metrics.jsonl` are left out, and so are lines cut off by a kill.

    Args:
      table: whose `run` column names run directories in `workdir`.
      workdir: the folder that holds them.

    Returns:
      Columns backbone, optimizer, run, seed, epoch, loss (nats), accuracy (of the validation split,
      in percent; NaN where it was not measured) and failed; at most `POINTS` rows per cell.
    """
    workdir, parts = Path(workdir), []
    for (backbone, optimizer), cell in table.runs.groupby(["backbone", "optimizer"], sort=False):
        run = cell.sort_values("score", kind="stable", na_position="first").iloc[len(cell) // 2]
        name = str(run["run"])
        if not is_plain_name(name):
            continue
        points = _points(workdir / name / "metrics.jsonl")
        if points is None:
            continue
        keys = {"backbone": backbone, "optimizer": optimizer, "run": name, "seed": run["seed"]}
        parts.append(points.assign(**keys, failed=run["status"] != "finished"))
    if not parts:
        return pandas.DataFrame(columns=list(COLUMNS))
    return pandas.concat(parts, ignore_index=True)[list(COLUMNS)]


def _points(path: Path) -> pandas.DataFrame | None:
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            return None
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    # Lines of evaluations, where there are any, hold the training loss as well.
    evaluations = [line for line in lines if '"validation_accuracy"' in line]
    lines = evaluations if len(evaluations) > 1 else lines
    chosen = np.unique(np.linspace(0, len(lines) - 1, min(POINTS, len(lines))).round().astype(int))
    records = [record for record in map(_parsed, (lines[i] for i in chosen)) if record]
    if not records:
        return None
    accuracy = np.array([_number(record, "validation_accuracy") for record in records])
    return pandas.DataFrame(
        {
            "epoch": [_number(record, "epoch") for record in records],
            "loss": [_number(record, "loss") for record in records],
            "accuracy": 100 * accuracy,
        }
    )


def _parsed(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and "epoch" in record else None


def _number(record: dict[str, Any], name: str) -> float:
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or abs(value) > MAX_VALUE:
        return np.nan
    return float(value)
