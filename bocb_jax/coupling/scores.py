"""Tables of scores from the paper, from a CSV file of your own, or from the results of a sweep.

A CSV file is long or wide. A long one has the columns backbone, optimizer, score and, where known,
seed, learning_rate, weight_decay, train_loss, train_accuracy, first_train_loss, validation_score,
status and run. In a wide one the first column is "optimizer" and every other column a backbone.
Lines that begin with # are comments.
"""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.coupling.score_table import SCORES, STATUSES, ScoreTable
from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_text

__all__ = ["ScoreTable", "from_csv", "from_published", "from_results"]

MAX_BYTES = 2**30  # of a CSV file
# Scores of a random guess in percent; 0 for average precision.
_PUBLISHED_CHANCE = {"cifar100": 1.0, "imagenet": 0.1, "coco": 0.0}
_NUMBERS = (
    "learning_rate",
    "weight_decay",
    "train_loss",
    "train_accuracy",
    "first_train_loss",
    "validation_score",
)
_COLUMNS = ("backbone", "optimizer", "seed", "score", "status", "spread", *_NUMBERS, "run")


def from_published(name: str = "cifar100") -> ScoreTable:
    """Return a table of the paper: "cifar100", "imagenet" or "coco".

    Each cell is one score (on CIFAR-100 the mean of three trials), so the noise is not known. Tuned
    learning rates and weight decays are filled in where they were published.

    Raises:
      UserError: there is no such table of scores.
    """
    if name not in _PUBLISHED_CHANCE:
        raise UserError(
            f"There is no published table of scores '{name}'. There are: "
            f"{', '.join(_PUBLISHED_CHANCE)}."
        )
    matrix = paper.table(name)
    runs = matrix.reset_index().melt("optimizer", var_name="backbone", value_name="score")
    if name == "cifar100":
        tuned = paper.table("hyperparameters")
        runs = runs.merge(tuned, on=["optimizer", "backbone"], how="left")
    return ScoreTable(
        runs=_with_all_columns(runs),
        trials=None,
        score="test accuracy",
        unit="points",
        higher_is_better=True,
        chance=_PUBLISHED_CHANCE[name],
        source=f"Li et al., arXiv 2410.06373, published table '{name}'",
        dataset=name,
        notes=("The paper gives one figure per cell and no spread over seeds.",),
    )


def _with_all_columns(runs: pandas.DataFrame) -> pandas.DataFrame:
    missing = {"seed": 0, "status": "finished", "run": ""}
    for column in _COLUMNS:
        if column not in runs:
            runs[column] = missing.get(column, np.nan)
    return runs[list(_COLUMNS)]


# -- from a CSV file -------------------------------------------------------------------------------


def from_csv(
    path: str | Path, *, score: str = "test accuracy", chance: float | None = None
) -> ScoreTable:
    """Read a table from a CSV file, long or wide (see the top of this file).

    Accuracies are in percent; if none exceeds 1 they are taken for fractions. An empty score is a
    missing cell. A status ("diverged", "crashed", ...) may stand in place of a score.

    Args:
      path: the file.
      score: "test accuracy", "train loss" or "log-odds" (of accuracies in the file).
      chance: score of a random guess in percent or nats.

    Raises:
      UserError: the file cannot be read, lacks a column, repeats a row, or has a score that is text
        or out of range; the message names the line.
    """
    kind = _kind_of(score)
    header, lines = _lines(path)
    records = _records(header, lines, path)
    _refuse_repeated(records, path, seeds="seed" in header)
    runs = pandas.DataFrame.from_records(records)
    notes: list[str] = []
    if kind == "test accuracy":
        runs = _in_percent(runs, path, notes)
    runs = _without_unfinished(runs.drop(columns="line"), notes)
    if not runs["score"].notna().any():
        raise UserError(f"'{path}' holds no score.")
    unit, higher = SCORES[kind]
    table = ScoreTable(
        runs=_with_all_columns(runs),
        trials=None,
        score=kind,
        unit=unit,
        higher_is_better=higher,
        chance=chance,
        source=str(Path(path).name),
        notes=tuple(notes),
    )
    return table.log_odds() if score == "log-odds" else table


def _kind_of(score: str) -> str:
    """Return the score that a file must hold: log-odds are computed from accuracies."""
    if score not in SCORES:
        raise UserError(f"There is no score '{score}'. There are: {', '.join(SCORES)}.")
    return "test accuracy" if score == "log-odds" else score


def _lines(path: str | Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Return the header, and (number, values) of every line that has values."""
    try:
        text = read_text(path, MAX_BYTES)
    except FileNotFoundError as reason:
        raise UserError(f"'{path}' cannot be read: {reason.strerror}.") from None
    rows = []
    reader = csv.reader(
        "" if line.startswith("#") else line for line in text.splitlines(keepends=True)
    )
    for row in reader:
        values = [value.strip() for value in row]
        if any(values):
            rows.append((reader.line_num, values))
    if len(rows) < 2:
        raise UserError(f"'{path}' holds no score: it needs a line of names and a line of values.")
    (_, header), *rest = rows
    if len(set(header)) < len(header) or "" in header:
        twice = next((name for name in header if header.count(name) > 1 or not name), "")
        raise UserError(f"'{path}' has {'two columns' if twice else 'a column'} named '{twice}'.")
    for at, values in rest:
        if len(values) != len(header):
            raise UserError(
                f"'{path}', line {at}: {len(values)} values, but the first line names "
                f"{len(header)} columns."
            )
    return header, rest


def _records(
    header: list[str], lines: list[tuple[int, list[str]]], path: str | Path
) -> list[dict[str, Any]]:
    """Return one record a run from the lines of a long or a wide table."""
    if {"backbone", "optimizer", "score"} <= set(header):
        return [_record(dict(zip(header, row, strict=True)), at) for at, row in lines]
    if header[0] == "optimizer" and not {"backbone", "score"} & set(header):
        return [
            _record({"optimizer": row[0], "backbone": backbone, "score": value}, at)
            for at, row in lines
            for backbone, value in zip(header[1:], row[1:], strict=True)
        ]
    missing = [name for name in ("backbone", "optimizer", "score") if name not in header]
    raise UserError(
        f"'{path}' has no column '{missing[0]}'; its columns are: {', '.join(header)}. A long "
        "table has the columns backbone, optimizer, score; a wide one has 'optimizer' first and "
        "then a column for each backbone."
    )


def _record(values: dict[str, str], at: int) -> dict[str, Any]:
    record: dict[str, Any] = {"line": at, "run": values.get("run", "")}
    for name in ("backbone", "optimizer"):
        if not values[name]:
            raise UserError(f"Line {at} names no {name}.")
        record[name] = values[name]
    status = values.get("status") or "finished"
    if values["score"] in STATUSES:
        status, values = values["score"], values | {"score": ""}
    if status not in STATUSES:
        raise UserError(
            f"Line {at}: there is no status '{status}'. There are: {', '.join(STATUSES)}."
        )
    for name in ("score", *_NUMBERS):
        if name in values:
            record[name] = _number(values[name], name, at)
    if "seed" in values:
        record["seed"] = values["seed"]
    return record | {"status": status}


def _number(text: str, name: str, at: int) -> float:
    if not text:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        raise UserError(f"Line {at}: the {name} '{text}' is not a number.") from None
    if math.isinf(value):
        raise UserError(f"Line {at}: the {name} is infinite; give the run status 'diverged'.")
    return value


def _refuse_repeated(records: list[dict[str, Any]], path: str | Path, *, seeds: bool) -> None:
    seen: dict[tuple[str, str, str | None], int] = {}
    for record in records:
        key = (record["backbone"], record["optimizer"], record.get("seed"))
        if key in seen:
            about = f", seed {key[2]}" if seeds else ""
            cure = "keep one of them" if seeds else "give the seeds a column 'seed', or keep one"
            raise UserError(
                f"'{path}', line {record['line']} repeats line {seen[key]}: backbone {key[0]}, "
                f"optimizer {key[1]}{about}; {cure}."
            )
        seen[key] = record["line"]


def _in_percent(runs: pandas.DataFrame, path: str | Path, notes: list[str]) -> pandas.DataFrame:
    """Return the runs with fractions turned into percent, which a note then says."""
    columns = [name for name in ("score", "validation_score") if name in runs]
    if runs[columns].max().max() <= 1:
        runs[columns] = 100 * runs[columns]
        notes.append(
            "No score exceeds 1, so they were taken for fractions and are shown in percent."
        )
    wrong = ((runs[columns] < 0) | (runs[columns] > 100)).any(axis=1).to_numpy()
    if wrong.any():
        at = runs["line"].iloc[wrong.argmax()]
        raise UserError(
            f"'{path}', line {at}: an accuracy is between 0 and 100 percent. For losses, say "
            "score='train loss'."
        )
    return runs


def _without_unfinished(runs: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    """Return the runs with the scores of finished ones only; a note counts the others."""
    unfinished = runs["status"] != "finished"
    runs["score"] = runs["score"].mask(unfinished)
    if unfinished.any():
        counts = runs.loc[unfinished, "status"].value_counts(sort=False)
        listed = ", ".join(f"{n} {status.replace('_', ' ')}" for status, n in counts.items())
        notes.append(
            f"{unfinished.sum()} of {len(runs)} runs did not finish ({listed}): they have no score."
        )
    return runs


# -- from the results of a sweep -------------------------------------------------------------------


def from_results(
    frame: pandas.DataFrame, score: str = "test accuracy", *, dataset: str | None = None
) -> ScoreTable:
    """Return a table from the results of a sweep, as `bocb_jax.results.load` gives them.

    Final runs make the table, and the runs of the search its trials. Without final runs the best
    trial of every pair stands in, and a note says that such scores are too good.

    Args:
      frame: one row a run.
      score: "test accuracy", "train loss" or "log-odds".
      dataset: which one to take, if the runs are on several.

    Raises:
      UserError: there is no run, a column is missing, the runs are on several datasets, or a pair
        ran twice with one seed.
    """
    kind = _kind_of(score)
    for column in ("model", "optimizer", "status"):
        if column not in frame:
            raise UserError(f"The results have no column '{column}'; are they of bocb sweep?")
    frame, dataset = _one_dataset(frame, dataset)
    if frame.empty:
        raise UserError("There are no runs to analyse.")
    notes: list[str] = []
    frame = _ended(frame, notes)
    searched = (frame["phase"] == "search").to_numpy() if "phase" in frame else False
    searched = np.broadcast_to(searched, len(frame))
    chance = _chance(frame, kind)
    trials = _runs(frame[searched], kind, validation=True)
    trials = _without_unfinished(trials, []) if len(trials) else None
    runs, source = _final_runs(frame[~searched], trials, kind, notes)
    _refuse_seed_twice(runs)
    runs = _without_unfinished(runs, notes)
    if not runs["score"].notna().any():
        raise UserError(f"No run has a {kind}: {len(runs)} runs, none of which finished with one.")
    unit, higher = SCORES[kind]
    table = ScoreTable(
        runs=runs,
        trials=trials,
        score=kind,
        unit=unit,
        higher_is_better=higher,
        chance=chance,
        source=source + (f" on {dataset}" if dataset else ""),
        dataset=dataset,
        notes=tuple(notes),
    )
    return table.log_odds() if score == "log-odds" else table


def _one_dataset(
    frame: pandas.DataFrame, dataset: str | None
) -> tuple[pandas.DataFrame, str | None]:
    if "dataset" not in frame:
        return frame, dataset
    names = [str(name) for name in pandas.unique(frame["dataset"].dropna())]
    if dataset is not None:
        if dataset not in names:
            raise UserError(f"No run is on '{dataset}'. There are: {', '.join(names)}.")
        return frame[frame["dataset"] == dataset], dataset
    if len(names) > 1:
        raise UserError(f"The runs are on {len(names)} datasets: {', '.join(names)}; choose one.")
    return frame, names[0] if names else None


def _ended(frame: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    """Return the runs that ended: one that still trains, or was killed, is no failure."""
    going = (frame["status"] == "unfinished").fillna(False).to_numpy(bool)
    if going.all():
        raise UserError(f"There are no runs to analyse: none of {len(frame)} has ended yet.")
    if going.any():
        count = going.sum()
        verbs = "run has not ended and is" if count == 1 else "runs have not ended and are"
        notes.append(f"{count} {verbs} left out.")
    return frame[~going]


def _chance(frame: pandas.DataFrame, score: str) -> float | None:
    if "num_classes" not in frame or not frame["num_classes"].notna().any():
        return None
    number = float(frame["num_classes"].dropna().iloc[0])
    if number < 1:
        raise UserError(f"num_classes of the runs is {number:g}; it must be at least 1.")
    return 100 / number if score == "test accuracy" else math.log(number)


def _final_runs(
    final: pandas.DataFrame, trials: pandas.DataFrame | None, score: str, notes: list[str]
) -> tuple[pandas.DataFrame, str]:
    """Return the runs that make the table, or the best trials instead, and what they are."""
    if len(final) or trials is None:
        runs = _runs(final, score)
        untested = not final.get("test_accuracy", pandas.Series()).notna().any()
        if score == "test accuracy" and untested:
            runs = _runs(final, score, validation=True)
            notes.append("No run was tested: these are accuracies on the validation split.")
        return runs, f"{len(final)} runs"
    best = trials["score"] if SCORES[score][1] else -trials["score"]
    keys = [trials["backbone"], trials["optimizer"]]
    runs = trials.loc[best.fillna(-np.inf).groupby(keys, sort=False).idxmax()]
    notes.append(
        "There are no final runs: each pair has the best score of its search, which is too "
        "good, the more so the more trials it had."
    )
    return runs.reset_index(drop=True), f"the best of {len(trials)} trials of a search"


def _refuse_seed_twice(runs: pandas.DataFrame) -> None:
    keys = ["backbone", "optimizer", "seed"]
    twice = runs.duplicated(keys)
    if twice.any():
        first = runs[twice].iloc[0]
        both = runs[(runs[keys] == first[keys]).all(axis=1)]["run"].head(2)
        raise UserError(
            f"{first['backbone']} ran twice with {first['optimizer']} and seed {first['seed']}: "
            f"{' and '.join(map(str, both))}. Analyse one study at a time."
        )


def _runs(frame: pandas.DataFrame, score: str, *, validation: bool = False) -> pandas.DataFrame:
    """Return the rows of a results table under this file's names, accuracies in percent."""

    def numbers(*names: str) -> np.ndarray:
        for name in names:
            if name in frame and frame[name].notna().any():
                return pandas.to_numeric(frame[name], errors="coerce").to_numpy(float)
        return np.full(len(frame), np.nan)

    checked = 100 * numbers("best_validation_accuracy", "validation_accuracy")
    scores = checked if validation else 100 * numbers("test_accuracy")
    if score == "train loss":
        scores = numbers("train_loss")
    return pandas.DataFrame(
        {
            "backbone": frame["model"].to_numpy(str),
            "optimizer": frame["optimizer"].to_numpy(str),
            "seed": frame["seed"].to_numpy() if "seed" in frame else 0,
            "score": np.where(np.isfinite(scores), scores, np.nan),
            "status": frame["status"].to_numpy(str),
            "spread": np.nan,
            "learning_rate": numbers("learning_rate"),
            "weight_decay": numbers("weight_decay"),
            "train_loss": numbers("train_loss"),
            "train_accuracy": 100 * numbers("train_accuracy"),
            "first_train_loss": numbers("first_train_loss"),
            "validation_score": numbers("train_loss") if score == "train loss" else checked,
            "run": frame["run"].to_numpy(str) if "run" in frame else "",
            "seconds_to_target": numbers("seconds_to_target"),
            "wall_seconds": numbers("wall_seconds"),
        }
    )
