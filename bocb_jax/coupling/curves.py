"""Training curves of a table's runs, thinned: one run a cell."""

import json
from pathlib import Path

import numpy as np
import pandas

from bocb_jax.coupling.scores import ScoreTable

POINTS = 60  # at most so many a run: more would not be seen, and a report holds hundreds of runs
COLUMNS = ("backbone", "optimizer", "run", "seed", "epoch", "loss", "accuracy", "failed")


def read(table: ScoreTable, workdir: str | Path) -> pandas.DataFrame:
    """Curves of the final runs of a folder of runs: of each cell the run with the middle score.

    Runs without a readable `metrics.jsonl` are left out; so is a line cut off by a kill.

    Args:
      table: whose `run` column names folders in `workdir`.
      workdir: the folder of runs.

    Returns:
      Columns backbone, optimizer, run, seed, epoch, loss (nats), accuracy (of the validation split,
      in percent; NaN where it was not measured) and failed; at most `POINTS` rows a cell.
    """
    workdir, parts = Path(workdir), []
    for (backbone, optimizer), cell in table.runs.groupby(["backbone", "optimizer"], sort=False):
        run = cell.sort_values("score", kind="stable", na_position="first").iloc[len(cell) // 2]
        name = str(run["run"])
        # The name of a folder, not a way out of it.
        if not name or Path(name).name != name:
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
        lines = path.read_text("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    # Evaluations if there are any: they hold the training loss as well.
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


def _parsed(line: str) -> dict | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and "epoch" in record else None


def _number(record: dict, name: str) -> float:
    value = record.get(name)
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else np.nan
