"""The table of results: a row per run of a folder, which can be rebuilt from the runs.

    import pandas
    pandas.read_parquet("runs/results.parquet")

`polars.read_parquet` and DuckDB's `SELECT * FROM 'runs/results.parquet'` read it as well.
"""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bocb_jax.config import with_omitted
from bocb_jax.errors import UserError
from bocb_jax.run_files import read_config, read_result, read_study
from bocb_jax.storage.files import check_regular

FILE = "results.parquet"
MAX_SETTINGS = 1000  # in the configs of a table
# A table has a row per run, each with a name of its own, so it has fewer rows than bytes.
MAX_TABLE = 2**30  # bytes

# The columns of every table; those of the config follow, as `config.*`.
COLUMNS = (
    "study",
    "run",  # name of the run directory
    "phase",  # "search" for a trial, whose test split is not read, or "final"
    "model",  # with the name of its variant, if it has one
    "optimizer",
    "dataset",
    "recipe",
    "seed",
    "learning_rate",
    "weight_decay",
    "selected",  # whether the search chose this learning rate and weight decay
    "status",  # finished, diverged, out_of_memory, crashed, timed_out or unfinished
    "diverged_at_step",
    "error",
    "bytes_asked",  # by the allocation that failed
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
    "population",  # number of runs that trained together, itself included
    "device",
    "peak_memory_bytes",
    "num_classes",
    "protocol",
)
# Columns that follow these in tables with runs that start from weights of a known optimizer.
START_COLUMNS = ("pretrained_with",)
# Columns that follow these where a run is scored by AP (detection, pose): fractions, as accuracies.
AP_COLUMNS = ("validation_AP", "best_validation_AP", "test_AP", "test_AP50", "test_AP75")
_INTEGERS = ("seed", "diverged_at_step", "bytes_asked", "steps", "epochs", "parameters",
          "steps_to_target", "population", "peak_memory_bytes", "num_classes")  # fmt: skip
_TEXTS = ("study", "run", "phase", "model", "optimizer", "dataset", "recipe", "status", "error",
          "device", "protocol")  # fmt: skip


def read_runs(
    workdir: str | Path, *, track: Callable[[Iterable[Path]], Iterable[Path]] = iter
) -> Any:
    """Read the runs in a folder into a `pandas.DataFrame`, sorted by name.

    Args:
      workdir: a folder of runs, or one run directory.
      track: wraps the iteration over the runs, to show progress.

    Returns:
      A row per run, with `COLUMNS` and the config as `config.*`.

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
    target = read_study(workdir).get("target")
    rows = [_row(folder, target) for folder in track(folders)]
    found = {name for row in rows for name in row}
    extra = [name for name in (*START_COLUMNS, *AP_COLUMNS) if name in found]
    extra += sorted(found - set(COLUMNS) - set(extra))
    if len(extra) > MAX_SETTINGS:
        raise UserError(
            f"The config.json files in {workdir} have {len(extra)} different settings, which no "
            "version of bocb has; move the folders aside that are not of your runs."
        )
    frame = pandas.DataFrame(rows, columns=[*COLUMNS, *extra])
    frame = _typed(frame)
    rates = list(frame[_RATES].itertuples(index=False, name=None))
    final = frame["phase"] == "final"
    chosen = {key for key, is_final in zip(rates, final, strict=True) if is_final}
    # On the lower rungs of successive halving runs are shorter; none of these was selected.
    longest = frame.groupby(["model", "optimizer"])["epochs"].transform("max")
    frame["selected"] = (frame["epochs"] == longest) & pandas.Series(
        [key in chosen for key in rates], dtype=bool
    )
    return frame


_RATES = ["model", "optimizer", "learning_rate", "weight_decay"]


def load(path: str | Path) -> Any:
    """Read a table of results from its Parquet file, or from the runs of a folder.

    Raises:
      UserError: there is nothing at the path, or it is not a table of results.
    """
    from pyarrow import parquet

    path = Path(path)
    if path.is_dir():
        return read_runs(path)
    check_file(path)
    try:
        table = parquet.ParquetFile(path)
        rows, columns = table.metadata.num_rows, table.metadata.num_columns
        if rows > path.stat().st_size or columns > len(COLUMNS) + MAX_SETTINGS:
            raise UserError(
                f"{path} is not a table of results: it has {rows} rows of {columns} columns in "
                f"{path.stat().st_size} bytes."
            )
        content = table.read()
        content.validate(full=True)  # texts are UTF-8
        frame = content.to_pandas()
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"{path} is not a Parquet file: {reason}.") from error
    missing = [name for name in ("model", "optimizer", "status") if name not in frame.columns]
    if missing:
        raise UserError(
            f"{path} is not a table of results: it has no column {', '.join(missing)}. "
            f"`bocb sweep` writes such tables."
        )
    return _checked(frame, path)


def is_results(path: Path) -> bool:
    """Return whether a file is a Parquet file with the columns of a table of results.

    A file with the name of such tables counts, whatever is in it, so that what is wrong with it
    is said.
    """
    from pyarrow import parquet

    if path.name == FILE or path.suffix != ".parquet":
        return path.name == FILE
    check_file(path)
    try:
        names = parquet.ParquetFile(path).schema_arrow.names
    except Exception:  # `load` says what is wrong
        return True
    return {"model", "optimizer", "status", "phase"} <= set(names)


def check_file(path: Path) -> None:
    """Raise UserError unless a table is a regular file of at most `MAX_TABLE` bytes."""
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"There is no {path} that can be read: {reason}.") from error
    check_regular(path, status, MAX_TABLE)


def _checked(frame: Any, path: Path) -> Any:
    """Return a table with the types of `COLUMNS` in those that it has.

    Raises:
      UserError: a column holds something else.
    """
    for name in frame.columns.intersection(COLUMNS):
        try:
            _convert(frame, name)
        except (TypeError, ValueError, OverflowError) as error:
            reason = str(error).partition("\n")[0][:200]
            raise UserError(
                f"{path} is not a table of results: its column {name} is of another type "
                f"({reason})."
            ) from error
    return frame


def save(frame: Any, workdir: str | Path) -> Path:
    """Write the table into a folder of runs, atomically; return the file."""
    path = Path(workdir) / FILE
    temporary = path.with_name(f".{FILE}.{os.getpid()}")
    try:
        frame.to_parquet(temporary, index=False)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path


def _row(folder: Path, target: float | None) -> dict[str, Any]:
    stored = read_config(folder)
    if stored is None:  # it was there a moment ago
        raise UserError(f"{folder / 'config.json'} is gone; move the folder away.")
    result = read_result(folder) or {"status": "unfinished"}
    config, resolved = with_omitted(stored["config"]), stored.get("resolved") or {}
    if "opt" not in config:
        raise UserError(f"{folder} holds no run, but imported weights; move the folder away.")
    row = {name: result[name] for name in (*COLUMNS, *AP_COLUMNS) if name in result}
    row |= {
        "study": stored.get("study"),
        "run": folder.name,
        "phase": "final" if config["test"] else "search",
        "model": stored.get("label") or config["model"],
        "optimizer": config["opt"],
        "dataset": config.get("dataset"),
        "recipe": resolved.get("recipe", config.get("recipe")),
        "seed": config.get("seed"),
        "learning_rate": resolved.get("learning_rate", config.get("lr")),
        "weight_decay": resolved.get("weight_decay", config.get("weight_decay")),
        "epochs": resolved.get("epochs", config.get("epochs")),
        "num_classes": resolved.get("num_classes"),
        "device": (stored.get("device") or {}).get("kind"),
        "protocol": config.get("protocol"),
    }
    if stored.get("pretrained_with"):
        row["pretrained_with"] = stored["pretrained_with"]
    if "steps" in result:  # absent in runs of versions that trained each run alone
        row.setdefault("population", 1)
    row |= _time_to(target, result)
    row |= {f"config.{name}": value for name, value in _flat(config)}
    return row


def _time_to(target: float | None, result: dict[str, Any]) -> dict[str, Any]:
    """Return step and seconds of the first evaluation whose accuracy reached the target."""
    if target is None:
        return {}
    seconds = result.get("evaluation_seconds") or []
    for i, (step, accuracy) in enumerate(result.get("evaluations") or []):
        if step is not None and accuracy is not None and accuracy >= target:
            reached = seconds[i] if i < len(seconds) else None
            return {"steps_to_target": int(step), "seconds_to_target": reached}
    return {}


def _flat(settings: dict[str, Any], where: str = "") -> Iterable[tuple[str, Any]]:
    """Yield dotted names and values."""
    for name, value in settings.items():
        if isinstance(value, dict) and not name.endswith("_args") and where.count(".") < 3:
            yield from _flat(value, f"{where}{name}.")
        elif isinstance(value, dict | list):
            yield where + name, json.dumps(value)
        elif isinstance(value, int) and abs(value) >= 2**63:  # of a setting that is not ours
            yield where + name, str(value)
        else:
            yield where + name, value


def _convert(frame: Any, name: str) -> None:
    """Give one of `COLUMNS` its type, in place."""
    if name in _INTEGERS:
        with np.errstate(invalid="ignore"):  # pandas refuses what an integer cannot hold
            frame[name] = frame[name].astype("Int64")
    elif name in _TEXTS:
        frame[name] = frame[name].astype("string")
    elif name != "selected":
        frame[name] = frame[name].astype("float64")


def _typed(frame: Any) -> Any:
    """Give each column one type, so that tables can be concatenated."""
    for name in COLUMNS:
        _convert(frame, name)
    for name in frame.columns[len(COLUMNS) :]:
        kinds = {type(value) for value in frame[name] if value is not None and value == value}
        if len(kinds) > 1 and kinds <= {int, float}:
            frame[name] = frame[name].astype("float64")
        elif len(kinds) > 1:
            frame[name] = [None if v is None or v != v else json.dumps(v) for v in frame[name]]
    return frame
