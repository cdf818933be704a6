"""Tables of scores from the paper, from a source of any kind, or from the results of a sweep."""

import dataclasses
import math
from typing import Any

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.coupling.checked_runs import RUN_COLUMNS, check_name, plural
from bocb_jax.coupling.columns import Columns
from bocb_jax.coupling.figures import status_of
from bocb_jax.coupling.metrics import Metric, metric_of, plain_name
from bocb_jax.coupling.own_scores import from_file, from_frame, per_cell, without_unfinished
from bocb_jax.coupling.replicates import with_pretraining, without_pretraining
from bocb_jax.coupling.scale import AS_MEASURED, Scale
from bocb_jax.coupling.score_table import SCORES, ScoreTable
from bocb_jax.errors import UserError
from bocb_jax.paper.pretraining import starts as paper_starts

__all__ = [
    "Columns",
    "Metric",
    "Scale",
    "ScoreTable",
    "from_csv",
    "from_file",
    "from_frame",
    "from_published",
    "from_results",
    "metric_of",
]

from_csv = from_file  # its name when it read no other form

_CIFAR100, _IMAGENET = "top-1 accuracy, mean of three trials", "top-1 accuracy"
_PUBLISHED = {
    # table -> what its figures are, name and unit of the score, chance, number of test images
    "cifar100": (_CIFAR100, "test accuracy", "points", 1.0, 10_000),
    "imagenet": (_IMAGENET, "top-1 accuracy", "points", 0.1, 50_000),
    "coco_box": ("box AP of RetinaNet", "box AP", "AP", 0.0, None),
    "coco_pose": ("keypoint AP of TopDown", "pose AP", "AP", 0.0, None),
}
_RECIPES = (
    "Its pre-trainings of R-50 differ in recipe and length (100 to 600 epochs) and not in the "
    "optimizer alone; three of them have the same one, LAMB (RSB A1, A2 and A3)."
)
_TASKS = {"coco_box": "detection", "coco_pose": "pose"}
_FRACTIONS = (
    "test_accuracy", "validation_accuracy", "best_validation_accuracy", "train_accuracy",
    "test_AP", "validation_AP", "best_validation_AP",
)  # fmt: skip
# COCO's average precision, of runs of detection and pose estimation.
_AP = Metric("AP", "AP", True, False, ("test_ap",))
_PLURAL = {"accuracy": "accuracies", "AP": "APs"}


def from_published(name: str = "cifar100", *, scale: Scale = AS_MEASURED) -> ScoreTable:
    """Return a table of the paper: "cifar100", "imagenet", "coco_box" or "coco_pose".

    Each cell is one score (on CIFAR-100 the mean of three trials), so the noise is not known. Tuned
    learning rates and weight decays are filled in where they were published.

    Args:
      name: of the table.
      scale: noise, what counts as equal, and whether in log-odds.

    Raises:
      UserError: there is no such table of scores.
    """
    if name == "coco":
        raise UserError(
            "The paper's COCO table holds two metrics that do not compare: choose coco_box (box AP "
            "of RetinaNet) or coco_pose (keypoint AP)."
        )
    if name not in _PUBLISHED:
        raise UserError(
            f"There is no published table of scores '{name}'. There are: {', '.join(_PUBLISHED)}."
        )
    what, score, unit, chance, test_images = _PUBLISHED[name]
    matrix = paper.table(name)
    runs = matrix.reset_index().melt("optimizer", var_name="backbone", value_name="score")
    if name == "cifar100":
        tuned = paper.table("hyperparameters")
        runs = runs.merge(tuned, on=["optimizer", "backbone"], how="left")
    runs = runs.assign(seed=0, status="finished", run="")
    for column in RUN_COLUMNS:
        if column not in runs:
            runs[column] = np.nan
    rows, columns = matrix.shape
    runs = runs[list(RUN_COLUMNS)]
    task = _TASKS.get(name)
    table = ScoreTable(
        runs=runs if task is None else _with_starts(runs, task),
        trials=None,
        score=score,
        unit=unit,
        higher_is_better=True,
        chance=chance,
        source=f"Li et al., arXiv 2410.06373, published table '{name}'",
        dataset=name.partition("_")[0],
        notes=(
            "The paper gives one figure per cell and no spread over seeds.",
            *[_RECIPES] * (name == "coco_box"),
        ),
        test_images=test_images,
        described=f"the paper's table {name}: {rows} optimizers x {columns} backbones, {what}",
    )
    return scale.apply(table)


def _with_starts(runs: pandas.DataFrame, task: str) -> pandas.DataFrame:
    """Return runs of the paper with `replicates.START_COLUMNS`."""
    known = paper_starts(task)
    starts = [known[column] for column in runs["backbone"]]
    return runs.assign(
        base_backbone=[start.backbone for start in starts],
        pretrained_with=[start.pretrained_with for start in starts],
        start=runs["backbone"],
    )


# -- from the results of a sweep -------------------------------------------------------------------


def from_results(
    frame: pandas.DataFrame,
    score: str = "test accuracy",
    *,
    metric: Metric | None = None,
    dataset: str | None = None,
    scale: Scale = AS_MEASURED,
) -> ScoreTable:
    """Return a table from the results of a sweep, as `bocb_jax.results.load` gives them.

    Final runs make the table, and the runs of the search its trials. Without final runs the best
    trial of every pair stands in, and a note says that such scores are too good. Runs that have no
    accuracy but an AP are scored by it.

    Args:
      frame: one row a run.
      score: "test accuracy", "train loss" or "log-odds".
      metric: another column of the results in place of `score`, such as
        `metric_of(name="seconds_to_target")`; final runs only.
      dataset: which one to take, if the runs are on several.
      scale: noise, what counts as equal, and whether to compare ratios.

    Raises:
      UserError: there is no run, a column is missing or holds what it cannot, the runs are on
        several datasets, or a pair ran twice with one seed.
    """
    if metric is None and score == "test accuracy" and _has_only_ap(frame):
        metric = _AP
    elif metric is None:
        metric = metric_of(score)
        scale = dataclasses.replace(scale, log_odds=scale.log_odds or score == "log-odds")
    for column in ("model", "optimizer", "status"):
        if column not in frame:
            raise UserError(f"The results have no column '{column}'; are they of bocb sweep?")
    notes: list[str] = []
    frame = _checked(frame, notes)
    frame, dataset = _one_dataset(frame, dataset)
    if frame.empty:
        raise UserError("There are no runs to analyse.")
    frame = _ended(frame, notes)
    searched = np.zeros(len(frame), bool)
    if "phase" in frame:
        searched = (frame["phase"] == "search").fillna(False).to_numpy(bool)
    trials = None
    if searched.any() and (metric.name in SCORES or metric is _AP):
        trials = without_unfinished(_runs(frame[searched], metric, validation=True), [])
    runs, source = _final_runs(frame[~searched], trials, metric, notes)
    _refuse_seed_twice(runs)
    runs = without_unfinished(runs, notes)
    if not runs["score"].notna().any():
        raise UserError(
            f"No run has a {metric.name}: {len(runs)} runs, none of which finished with one."
        )
    table = ScoreTable(
        runs=runs,
        trials=trials,
        score=metric.name,
        unit=metric.unit,
        higher_is_better=metric.higher_is_better,
        chance=_chance(frame, metric.name),
        source=source + (f" on {dataset}" if dataset else ""),
        dataset=dataset,
        notes=tuple(notes),
        described=_described(source, runs, metric),
    )
    return scale.apply(table)


def _has_only_ap(frame: pandas.DataFrame) -> bool:
    """Whether no run has an accuracy, but some an AP."""
    return not _has_any(frame, "accuracy") and _has_any(frame, "AP")


def _has_any(frame: pandas.DataFrame, score: str) -> bool:
    names = {f"test_{score}", f"validation_{score}", f"best_validation_{score}"}
    return any(frame[name].notna().any() for name in names & {*frame.columns})


def _described(source: str, runs: pandas.DataFrame, metric: Metric) -> str:
    unit = "percent" if metric.is_accuracy else metric.unit
    return (
        f"{source} of a sweep: score = {metric.name} ({unit}, {metric.direction}), {per_cell(runs)}"
    )


def _checked(frame: pandas.DataFrame, notes: list[str]) -> pandas.DataFrame:
    """Return the results without blank rows, every row with names, a status and fractions.

    Raises:
      UserError: a row lacks a name, or holds an accuracy that is no fraction; it says which.
    """
    frame = frame.reset_index(drop=True)
    blank = frame[["model", "optimizer", "status"]].isna().all(axis=1)
    if blank.any():
        notes.append(f"{plural(int(blank.sum()), 'blank row')} of the results left out.")
        frame = frame[~blank]
    for column in ("model", "optimizer"):
        nameless = frame[column].isna() | (frame[column].astype(str).str.strip() == "")
        if nameless.any():
            raise UserError(f"Row {nameless.idxmax() + 1} of the results names no {column}.")
        for name in frame[column].astype(str).unique():
            check_name(name, column, "The results")
    known = [name for name in (*_FRACTIONS, "train_loss") if name in frame]
    scored = frame[known].notna().any(axis=1)
    statuses = []
    for row, word in frame["status"].items():
        status = status_of(None if pandas.isna(word) else word)
        if status is None:
            raise UserError(f"Row {row + 1} of the results: there is no status '{word}'.")
        statuses.append(status or ("finished" if scored[row] else "unfinished"))
    without = int(frame["status"].isna().sum())
    if without:
        notes.append(f"{plural(without, 'run')} without a status: finished if it has results.")
    frame = frame.assign(status=statuses)
    finished = frame["status"] == "finished"
    for column in (name for name in _FRACTIONS if name in frame):
        values = pandas.to_numeric(frame[column], errors="coerce").astype("float64")
        wrong = finished & ~((values >= 0) & (values <= 1 + 1e-6)) & values.notna()
        if wrong.any():
            row = wrong.idxmax()
            raise UserError(
                f"Row {row + 1} of the results ({frame.at[row, 'model']} with "
                f"{frame.at[row, 'optimizer']}) has the {column} {values[row]:g}; results hold "
                "fractions between 0 and 1. Divide percentages by 100."
            )
    return frame


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
        count = int(going.sum())
        notes.append(f"{plural(count, 'run')} that did not end yet left out.")
    return frame[~going]


def _chance(frame: pandas.DataFrame, score: str) -> float | None:
    if score == _AP.name:
        return 0.0
    if score not in SCORES or "num_classes" not in frame or not frame["num_classes"].notna().any():
        return None
    number = float(frame["num_classes"].dropna().iloc[0])
    if number < 1:
        raise UserError(f"num_classes of the runs is {number:g}; it must be at least 1.")
    return 100 / number if score == "test accuracy" else math.log(number)


def _final_runs(
    final: pandas.DataFrame, trials: pandas.DataFrame | None, metric: Metric, notes: list[str]
) -> tuple[pandas.DataFrame, str]:
    """Return the runs that make the table, or the best trials instead, and what they are."""
    if len(final) or trials is None:
        runs = _runs(final, metric)
        name = "AP" if metric is _AP else "accuracy"
        untested = not final.get(f"test_{name}", pandas.Series()).notna().any()
        if metric.name in ("test accuracy", _AP.name) and untested:
            runs = _runs(final, metric, validation=True)
            notes.append(f"No run was tested: these are {_PLURAL[name]} on the validation split.")
        return runs, f"{len(final)} runs"
    best = trials["score"] if metric.higher_is_better else -trials["score"]
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


def _runs(frame: pandas.DataFrame, metric: Metric, *, validation: bool = False) -> pandas.DataFrame:
    """Return the rows of a results table under this room's names, accuracies in percent."""

    def numbers(*names: str) -> np.ndarray:
        for name in names:
            if name in frame and frame[name].notna().any():
                return pandas.to_numeric(frame[name], errors="coerce").to_numpy(
                    float, na_value=np.nan
                )
        return np.full(len(frame), np.nan)

    score = "AP" if metric is _AP else "accuracy"
    checked = 100 * numbers(f"best_validation_{score}", f"validation_{score}")
    if metric.name in ("test accuracy", _AP.name):
        scores = checked if validation else 100 * numbers(f"test_{score}")
    elif metric.name == "train loss":
        scores = numbers("train_loss")
    else:
        scores = numbers(_column_of(frame, metric))
    scores = np.where(np.isfinite(scores), scores, np.nan)
    status = frame["status"].to_numpy(object)
    if metric.censored:
        status = np.where((status == "finished") & np.isnan(scores), "not_reached", status)
    found = pandas.DataFrame(
        {
            "backbone": frame["model"].astype(str).to_numpy(object),
            "optimizer": frame["optimizer"].astype(str).to_numpy(object),
            "seed": _seeds(frame),
            "score": scores,
            "status": status,
            "spread": np.nan,
            "learning_rate": numbers("learning_rate"),
            "weight_decay": numbers("weight_decay"),
            "train_loss": numbers("train_loss"),
            "train_accuracy": 100 * numbers("train_accuracy"),
            "first_train_loss": numbers("first_train_loss"),
            "validation_score": numbers("train_loss") if metric.name == "train loss" else checked,
            "run": frame["run"].astype(str).to_numpy(object) if "run" in frame else "",
            "seconds_to_target": numbers("seconds_to_target"),
            "wall_seconds": numbers("wall_seconds"),
        }
    )
    return _started(found, frame)


def _nets(runs: pandas.DataFrame, frame: pandas.DataFrame) -> list[str | None]:
    """Return the backbone of each run, whatever its variant, as far as its config tells.

    None where variants of one backbone are different nets: there the variant is the backbone.
    """
    if "config.model" not in frame:
        return [None] * len(runs)
    model = frame["config.model"].reset_index(drop=True)
    arguments = frame.get("config.model_args", pandas.Series("", index=frame.index))
    kinds = arguments.reset_index(drop=True).fillna("").groupby(model).nunique()
    return [None if pandas.isna(name) or kinds[name] > 1 else str(name) for name in model]


def _started(runs: pandas.DataFrame, frame: pandas.DataFrame) -> pandas.DataFrame:
    """Return runs with `replicates.START_COLUMNS`, if some start from weights of an optimizer.

    A backbone counts once for each optimizer that pre-trained it, and is called so.
    """
    if "pretrained_with" not in frame or not frame["pretrained_with"].notna().any():
        return runs
    known = frame["pretrained_with"].notna().to_numpy(bool)
    for name in frame["pretrained_with"][known].unique():
        check_name(str(name), "pretrained_with", "The results")
    names = frame["pretrained_with"].astype(object).where(known, None).to_numpy(object)
    base, called = [], []
    nets = _nets(runs, frame)
    for label, name, net in zip(runs["backbone"], names, nets, strict=True):
        plain = label if name is None else without_pretraining(label)
        base.append(net or plain)
        called.append(plain if name is None else with_pretraining(plain, name))
    unknown = pandas.Series("", index=frame.index, dtype=object)
    start = frame.get("config.init", unknown).astype(object).fillna("").astype(str).to_numpy(object)
    return runs.assign(
        backbone=called,
        base_backbone=[
            name if is_known else None for name, is_known in zip(base, known, strict=True)
        ],
        pretrained_with=names,
        start=[f"{name}: {one}" if one else name for name, one in zip(names, start, strict=True)],
    )


def _column_of(frame: pandas.DataFrame, metric: Metric) -> str:
    """Return the column of the results that holds another metric."""
    found = [name for name in frame if plain_name(str(name)) in metric.columns[:2]]
    kinds = [name for name in found if pandas.api.types.is_numeric_dtype(frame[name])]
    if not kinds:
        raise UserError(
            f"The results have no column of figures '{plain_name(metric.name)}'. They have, among "
            "others: seconds_to_target, steps_to_target, wall_seconds, test_loss, "
            "peak_memory_bytes."
        )
    return str(kinds[0])


def _seeds(frame: pandas.DataFrame) -> Any:
    """Return the seeds of the runs; one that is not known differs from all others."""
    if "seed" not in frame:
        return 0
    seeds = frame["seed"].astype(object)
    return [f"row {i}" if pandas.isna(seed) else seed for i, seed in enumerate(seeds)]
