"""Tables of scores of any source: a file of text, JSON or Parquet, or a data frame.

A long table has a row per run, with columns for backbone, optimizer, score and, where known, seed,
status, learning_rate, weight_decay, train_loss and others. A wide one has a row per optimizer and
a column per backbone, or the other way round.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling import reading
from bocb_jax.coupling.checked_runs import (
    check_name,
    checked_runs,
    name_of,
    plural,
    rounded,
    settings_of,
)
from bocb_jax.coupling.columns import BY_NAME, Columns, Runs, runs_of
from bocb_jax.coupling.metrics import Metric, metric_of
from bocb_jax.coupling.reading import RawTable, shown
from bocb_jax.coupling.scale import AS_MEASURED, Scale
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.errors import UserError


def from_file(path: str | Path, score: str = "test accuracy", **options: Any) -> ScoreTable:
    """Read a table of scores from a file, whatever its form; `described` says how.

    Args:
      path: text separated by commas, semicolons or tabs, JSON, JSON lines or Parquet.
      score: as for `from_frame`.
      options: as for `from_frame`.

    Raises:
      UserError: the file cannot be read, or does not fit; the message names the line.
    """
    return _table(reading.read_file(path), score, **options)


def from_frame(frame: pandas.DataFrame, score: str = "test accuracy", **options: Any) -> ScoreTable:
    """Return a table of scores from a data frame, long or wide.

    Accuracies are in percent; if none exceeds 1 they are taken for fractions. An empty score is a
    missing cell, or a run that did not reach its target if the metric is a time. A status such as
    "diverged" may stand in place of a score. Rows that repeat a pair without a seed are its seeds.
    Where the rows of a pair differ in learning rate or weight decay they are a search: the best
    setting makes the table, all rows its trials.

    Args:
      frame: the table.
      score: "test accuracy", "train loss" or "log-odds" (of accuracies).
      metric: a `Metric` in place of `score`, from `metrics.metric_of`.
      columns: names of columns where they cannot be told, `Columns`.
      dataset: which one to take, if there is a column of several.
      scale: noise, what counts as equal, and whether to compare ratios, `Scale`.
      chance: score of a random guess, in percent or in the unit of the metric.
      test_images: number of test images behind an accuracy.

    Raises:
      UserError: a column is missing, or a cell is not what it must be; the message names the row.
    """
    return _table(reading.read_frame(frame, "The data frame"), score, **options)


def _table(
    raw: RawTable,
    score: str,
    *,
    metric: Metric | None = None,
    columns: Columns = BY_NAME,
    dataset: str | None = None,
    scale: Scale = AS_MEASURED,
    chance: float | None = None,
    test_images: int | None = None,
) -> ScoreTable:
    if {"model", "phase", "test_accuracy", "status"} <= set(raw.columns) and not columns.given:
        raise UserError(
            f"'{raw.name}' is a table of results of bocb sweep: read it with bocb_jax.results.load "
            "and from_results."
        )
    if metric is None:
        metric = metric_of(score)
        scale = dataclasses.replace(scale, log_odds=scale.log_odds or score == "log-odds")
    if chance is not None and metric.is_accuracy and not 0 <= chance <= 100:
        raise UserError(
            f"The chance level is {chance:g}; an accuracy is between 0 and 100 percent."
        )
    found = runs_of(raw, metric, columns)
    notes: list[str] = []
    if found.left_out:
        listed = ", ".join(f"'{shown(name)}'" for name in found.left_out)
        notes.append(f"Left out: {listed}.")
    found, dataset = _of_one_dataset(found, dataset)
    metric = _named_by_column(metric, found)
    runs, percent = checked_runs(found, metric, notes)
    runs, trials = _searched(runs, metric, notes)
    described = describe(found, runs, trials, metric, percent)
    runs = without_unfinished(runs, notes)
    if not runs["score"].notna().any():
        raise UserError(f"'{raw.name}' holds no score.")
    table = ScoreTable(
        runs=runs,
        trials=trials,
        score=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        chance=chance,
        source=Path(raw.name).name,
        dataset=dataset,
        notes=tuple(notes),
        test_images=test_images,
        described=described,
    )
    return scale.apply(table)


def _named_by_column(metric: Metric, found: Runs) -> Metric:
    """Return the metric under the name that its column gives it."""
    validated = metric.name == "test accuracy" and "val" in found.headers.get("score", "").lower()
    return dataclasses.replace(metric, name="validation accuracy") if validated else metric


def _of_one_dataset(found: Runs, dataset: str | None) -> tuple[Runs, str | None]:
    cells = found.cells.get("dataset")
    if cells is None:
        return found, dataset
    texts = np.array([name_of(cell) for cell in cells], object)
    names = [name for name in dict.fromkeys(texts) if name]
    for name in names:
        check_name(name, "data set", f"'{found.raw.name}'")
    listed = ", ".join(names[:20])
    if dataset is None and len(names) > 1:
        raise UserError(
            f"The runs are on {len(names)} datasets: {listed}; choose one with --dataset."
        )
    if dataset is not None and dataset not in names:
        raise UserError(f"No run is on '{dataset}'. There are: {listed}.")
    if dataset is None:
        return found, names[0] if names else None
    return found.take(texts == dataset), dataset


# -- the search, and what did not finish -----------------------------------------------------------


def _searched(
    runs: pandas.DataFrame, metric: Metric, notes: list[str]
) -> tuple[pandas.DataFrame, pandas.DataFrame | None]:
    """Return the runs of the best setting of every pair, and all of them where there are others."""
    running = runs["status"] == "unfinished"
    if running.any():
        notes.append(f"{plural(running.sum(), 'run')} that did not end yet left out.")
    runs = runs[~running].reset_index(drop=True)
    settings = settings_of(runs)
    if not settings:
        return runs, None
    pairs = ["backbone", "optimizer"]
    texts = [rounded(runs[name]) for name in settings]
    keyed = runs.assign(setting=texts[0] if len(texts) == 1 else texts[0] + " " + texts[1])
    if keyed.groupby(pairs, sort=False)["setting"].nunique().max() < 2:
        return runs, None
    sign = 1 if metric.higher_is_better else -1
    goodness = sign * runs["score"].where(runs["status"] == "finished")
    means = goodness.groupby([keyed[name] for name in (*pairs, "setting")], sort=False).mean()
    best = means.fillna(-np.inf).groupby(pairs, sort=False).idxmax()
    chosen = pandas.MultiIndex.from_frame(keyed[[*pairs, "setting"]]).isin(best.tolist())
    trials = without_unfinished(runs.copy(), [])
    trials["validation_score"] = trials["validation_score"].fillna(trials["score"])
    notes.append(
        f"The rows of a pair differ in {' and '.join(settings).replace('_', ' ')}, so they are a "
        "search: each pair has its best setting, whose score is too good, the more so the more "
        "settings were tried."
    )
    return runs[chosen].reset_index(drop=True), trials


def without_unfinished(runs: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
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


# -- what was understood ---------------------------------------------------------------------------


def describe(
    found: Runs,
    runs: pandas.DataFrame,
    trials: pandas.DataFrame | None,
    metric: Metric,
    percent: bool,
) -> str:
    """Return in a line how a table was understood."""
    raw, headers = found.raw, found.headers
    kind = {"line": "row", "record": "record", "row": "row"}[raw.where]
    unit = "percent" if percent else "fractions" if metric.in_percent else metric.unit
    about = [unit] if unit != metric.name else []
    if not metric.is_accuracy:
        about.append(metric.direction)
    if metric.censored:
        about.append("empty: not reached")
    if runs["spread"].notna().any():
        about.append("± its spread")
    in_brackets = f" ({', '.join(about)})" if about else ""
    if found.form == "long":
        what = [f"{role} = {headers[role]}" for role in ("backbone", "optimizer")]
        what.append(f"score = {headers['score']}{in_brackets}")
    else:
        down, across = ("optimizer", "backbone")[:: 1 if found.form == "wide" else -1]
        name = headers[down] or "the first column"
        what = [
            f"{down}s down ({name})",
            f"{across}s across ({plural(runs[across].nunique(), 'column')})",
            f"score = {metric.name}{in_brackets}",
        ]
    searched = "" if trials is None else f", the best of {plural(len(trials), 'trial')}"
    return f"{plural(len(raw.at), kind)}: {', '.join(what)}, {per_cell(runs)}{searched}"


def per_cell(runs: pandas.DataFrame) -> str:
    """Return how many runs a cell has, in words."""
    counts: Iterable[int] = runs.groupby(["backbone", "optimizer"], sort=False).size()
    low, high = min(counts, default=0), max(counts, default=0)
    if high <= 1:
        return "1 figure a cell"
    return f"{high} seeds" if low == high else f"{low} to {high} seeds"
