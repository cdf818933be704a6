"""The table of results: a row for every run of a folder, made anew from the runs at any time.

    import pandas
    pandas.read_parquet("runs/results.parquet")

`polars.read_parquet` and DuckDB's `SELECT * FROM 'runs/results.parquet'` read it as well.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json

FILE = "results.parquet"

# The columns that every table has, whether or not a run has them; `config.*` follow.
COLUMNS = (
    "study",
    "run",  # the folder's name
    "phase",  # "search": a trial, the test split unread; "final"
    "model",  # with its variant, where a study has several
    "optimizer",
    "dataset",
    "recipe",
    "seed",
    "learning_rate",
    "weight_decay",
    "selected",  # whether the search chose these rates
    "status",  # finished, diverged, out_of_memory, crashed, timed_out; unfinished
    "diverged_at_step",
    "error",
    "bytes_asked",  # where memory ran out
    "validation_accuracy",  # at the end
    "best_validation_accuracy",
    "test_accuracy",
    "test_loss",
    "train_loss",  # mean over the last epoch
    "train_accuracy",
    "first_train_loss",
    "steps",
    "epochs",
    "parameters",
    "steps_to_target",
    "seconds_to_target",
    "wall_seconds",
    "seconds_to_first_step",
    "population",  # how many runs trained together with it, itself counted
    "device",
    "peak_memory_bytes",
    "num_classes",
    "protocol",
)
_WHOLE = ("seed", "diverged_at_step", "bytes_asked", "steps", "epochs", "parameters",
          "steps_to_target", "population", "peak_memory_bytes", "num_classes")  # fmt: skip


def read_runs(workdir: str | Path, *, track: Callable[[Iterable], Iterable] = iter) -> Any:
    """The runs in a folder as a `pandas.DataFrame`, sorted by name, with the columns `COLUMNS`.

    Args:
      workdir: a folder of runs, or one run.
      track: goes through the folders, to show progress.

    Raises:
      UserError: there is no such folder, no run in it, or a file of a run cannot be read.
    """
    import pandas

    workdir = Path(workdir)
    if not workdir.is_dir():
        raise UserError(f"There is no folder {workdir}.")
    if (workdir / "config.json").exists():
        folders = [workdir]
    else:
        entries = sorted(entry.path for entry in os.scandir(workdir) if entry.is_dir())
        folders = [Path(path) for path in entries if os.path.exists(f"{path}/config.json")]
    if not folders:
        raise UserError(f"There are no runs in {workdir}: no folder in it has a config.json.")
    target = (read_json(workdir / "study.json") or {}).get("target")
    rows = [_row(folder, target) for folder in track(folders)]
    extra = sorted({name for row in rows for name in row} - set(COLUMNS))
    frame = pandas.DataFrame(rows, columns=[*COLUMNS, *extra])
    frame = _typed(frame)
    rates = list(frame[_RATES].itertuples(index=False, name=None))
    final = frame["phase"] == "final"
    chosen = {key for key, is_final in zip(rates, final, strict=True) if is_final}
    # A lower rung of successive halving is shorter than the runs that it chose among.
    longest = frame.groupby(["model", "optimizer"])["epochs"].transform("max")
    frame["selected"] = (frame["epochs"] == longest) & pandas.Series(
        [key in chosen for key in rates], dtype=bool
    )
    return frame


_RATES = ["model", "optimizer", "learning_rate", "weight_decay"]


def load(path: str | Path) -> Any:
    """A table of results: from its Parquet file, or from a folder of runs.

    A folder's runs are read again if one of them ended after the file was written.

    Raises:
      UserError: there is nothing there, or it is no such table.
    """
    import pandas

    path = Path(path)
    if path.is_dir():
        return read_runs(path)
    if not path.exists():
        raise UserError(f"There is no {path}.")
    try:
        frame = pandas.read_parquet(path)
    except Exception as error:
        raise UserError(f"{path} is no Parquet file: {error}.") from error
    missing = [name for name in ("model", "optimizer", "status") if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path} is no table of results: it has no column {', '.join(missing)}. "
            f"`bocb sweep` writes such tables."
        )
    return frame


def save(frame: Any, workdir: str | Path) -> Path:
    """Writes the table into a folder of runs, in one piece; returns the file."""
    path = Path(workdir) / FILE
    beside = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        frame.to_parquet(beside, index=False)
        os.replace(beside, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        beside.unlink(missing_ok=True)
    return path


def _row(folder: Path, target: float | None) -> dict[str, Any]:
    record = read_json(folder / "config.json") or {}
    outcome = read_json(folder / "result.json") or {"status": "unfinished"}
    config, resolved = record.get("config") or {}, record.get("resolved") or {}
    if "model" not in config:
        raise UserError(f"{folder / 'config.json'} is not that of a run; move the folder away.")
    row = {name: outcome[name] for name in COLUMNS if name in outcome}
    row |= {
        "study": record.get("study"),
        "run": folder.name,
        "phase": "final" if config.get("test", True) else "search",
        "model": record.get("label") or config["model"],
        "optimizer": config["opt"],
        "dataset": config.get("dataset"),
        "recipe": resolved.get("recipe", config.get("recipe")),
        "seed": config.get("seed"),
        "learning_rate": resolved.get("learning_rate", config.get("lr")),
        "weight_decay": resolved.get("weight_decay", config.get("weight_decay")),
        "epochs": resolved.get("epochs", config.get("epochs")),
        "num_classes": resolved.get("num_classes"),
        "device": (record.get("device") or {}).get("kind"),
        "protocol": config.get("protocol"),
    }
    if "steps" in outcome:  # runs from before there were populations trained alone
        row.setdefault("population", 1)
    row |= _time_to(target, outcome)
    whole = {**config, "test": config.get("test", True)}  # left out where it is true
    row |= {f"config.{name}": value for name, value in _flat(whole)}
    return row


def _time_to(target: float | None, outcome: dict[str, Any]) -> dict[str, Any]:
    """The first evaluation at which the validation accuracy reached the target."""
    if target is None:
        return {}
    seconds = outcome.get("evaluation_seconds") or []
    for i, (step, accuracy) in enumerate(outcome.get("evaluations") or []):
        if accuracy >= target:
            reached = seconds[i] if i < len(seconds) else None
            return {"steps_to_target": step, "seconds_to_target": reached}
    return {}


def _flat(settings: dict[str, Any], where: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict) and not name.endswith("_args"):
            yield from _flat(value, f"{where}{name}.")
        elif isinstance(value, dict | list):
            yield where + name, json.dumps(value)
        else:
            yield where + name, value


def _typed(frame: Any) -> Any:
    """One type a column, so that two tables can be put together."""
    for name in COLUMNS:
        if name in _WHOLE:
            frame[name] = frame[name].astype("Int64")
        elif name in ("study", "run", "phase", "model", "optimizer", "dataset", "recipe", "status",
                      "error", "device", "protocol"):  # fmt: skip
            frame[name] = frame[name].astype("string")
        elif name != "selected":
            frame[name] = frame[name].astype("float64")
    for name in frame.columns[len(COLUMNS) :]:
        kinds = {type(value) for value in frame[name] if value is not None and value == value}
        if len(kinds) > 1 and kinds <= {int, float}:
            frame[name] = frame[name].astype("float64")
        elif len(kinds) > 1:
            frame[name] = [None if v is None or v != v else json.dumps(v) for v in frame[name]]
    return frame
