"""A table of scores: which backbone reached what with which optimizer and seed.

Three ways to one: the published tables, a CSV of your own, the results of a sweep. A CSV is long
(columns backbone, optimizer, score and, where known, seed, learning_rate, weight_decay, train_loss,
train_accuracy, first_train_loss, validation_score, status, run) or wide (the first column is
"optimizer", every other column is a backbone). Lines that begin with # are comments.
"""

import csv
import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.errors import UserError

SCORES = {
    # score -> (unit, whether higher is better)
    "test accuracy": ("points", True),
    "train loss": ("nats", False),
    "log-odds": ("log-odds", True),
}
STATUSES = ("finished", "diverged", "out_of_memory", "crashed", "timed_out")
_NUMBERS = (
    "learning_rate",
    "weight_decay",
    "train_loss",
    "train_accuracy",
    "first_train_loss",
    "validation_score",
)
_COLUMNS = ("backbone", "optimizer", "seed", "score", "status", *_NUMBERS, "run")
# Log-odds are finite: an accuracy counts as at least 0.01 and at most 99.99 percent.
_ODDS_LIMIT = 0.01


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores of backbones under optimizers.

    A run that diverged scores chance level. One that ended for another reason (out of memory,
    crashed, timed out) says nothing about the optimizer: its cell is missing.
    """

    # Final runs, one a row: backbone, optimizer, seed, score, status, learning_rate, weight_decay,
    # train_loss, train_accuracy, first_train_loss, validation_score, run; NaN where not known.
    # Results of a sweep have seconds_to_target and wall_seconds as well.
    runs: pandas.DataFrame
    # Runs of the search for learning rate and weight decay, the same columns; None without one.
    # Their score is that of the validation split.
    trials: pandas.DataFrame | None
    score: str  # "test accuracy", "train loss" or "log-odds"
    unit: str  # "points" (accuracy in percent), "nats" or "log-odds"
    higher_is_better: bool
    chance: float | None  # score of a guess, in the unit; None if not known
    source: str  # where the scores are from, in words
    dataset: str | None = None  # e.g. "cifar100", "imagenet"
    notes: tuple[str, ...] = ()  # what a reader of any figure should know, in sentences

    @property
    def optimizers(self) -> list[str]:
        """Names of the rows, in the order of the source."""
        return list(pandas.unique(self.runs["optimizer"]))

    @property
    def backbones(self) -> list[str]:
        """Names of the columns, in the order of the source."""
        return list(pandas.unique(self.runs["backbone"]))

    @property
    def within(self) -> tuple[float, float]:
        """What counts as close to the best and as fairly close, in the unit."""
        return {"points": (1.0, 2.0)}.get(self.unit, (0.05, 0.1))

    @property
    def one_seed(self) -> bool:
        """Whether no cell has two scores, so that noise cannot be told from coupling."""
        return int(self.counts().to_numpy().max(initial=0)) < 2

    def matrix(self) -> pandas.DataFrame:
        """Mean over seeds, optimizers by backbones, in the unit; NaN where there is no score."""
        return self._pivot("score", "mean")

    def counts(self) -> pandas.DataFrame:
        """Number of seeds with a score, optimizers by backbones."""
        return self._pivot("score", "count").fillna(0).astype(int)

    def failed(self) -> pandas.DataFrame:
        """Whether there are runs and none of them finished, optimizers by backbones."""
        unfinished = self.runs.assign(unfinished=(self.runs["status"] != "finished").astype(float))
        return self._pivot("unfinished", "min", unfinished) == 1

    def _pivot(self, column: str, function: str, runs=None) -> pandas.DataFrame:
        runs = self.runs if runs is None else runs
        grid = runs.groupby(["optimizer", "backbone"], sort=False)[column].agg(function).unstack()
        return grid.reindex(index=self.optimizers, columns=self.backbones)

    def select(self, optimizers=None, backbones=None) -> "ScoreTable":
        """The table of some of the optimizers and backbones; None takes all."""

        def kept(frame):
            if frame is None:
                return None
            rows = np.ones(len(frame), bool)
            if optimizers is not None:
                rows &= frame["optimizer"].isin(list(optimizers)).to_numpy()
            if backbones is not None:
                rows &= frame["backbone"].isin(list(backbones)).to_numpy()
            return frame[rows].reset_index(drop=True)

        return dataclasses.replace(self, runs=kept(self.runs), trials=kept(self.trials))

    def log_odds(self) -> "ScoreTable":
        """The same table in log-odds, ln(p / (1 - p)): 60 -> 62 is less than 96 -> 98.

        Raises:
          UserError: the scores are not accuracies.
        """
        if self.score != "test accuracy":
            raise UserError(
                f"Log-odds are made of accuracies, and this is a table of {self.score}."
            )

        def transformed(frame):
            if frame is None:
                return None
            changed = {"score": _log_odds(frame["score"])}
            if "validation_score" in frame:
                changed["validation_score"] = _log_odds(frame["validation_score"])
            return frame.assign(**changed)

        return dataclasses.replace(
            self,
            runs=transformed(self.runs),
            trials=transformed(self.trials),
            score="log-odds",
            unit="log-odds",
            chance=None if self.chance is None else float(_log_odds(self.chance)),
        )


def _log_odds(percent):
    share = np.clip(percent, _ODDS_LIMIT, 100 - _ODDS_LIMIT) / 100
    return np.log(share / (1 - share))


def from_published(name: str = "cifar100") -> ScoreTable:
    """A table of the paper: "cifar100", "imagenet" or "coco".

    Each cell is one score (on CIFAR-100 the mean of three trials), so noise is not known. Tuned
    learning rates and weight decays are filled in where they were published.

    Raises:
      UserError: there is no such table of scores.
    """
    chances = {"cifar100": 1.0, "imagenet": 0.1, "coco": 0.0}
    if name not in chances:
        raise UserError(
            f"There is no published table of scores '{name}'. There are: {', '.join(chances)}."
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
        chance=chances[name],
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


def from_csv(
    path: str | Path, *, score: str = "test accuracy", chance: float | None = None
) -> ScoreTable:
    """A table from a CSV file, long or wide (see the top of this file).

    Accuracies are in percent; if none exceeds 1 they are taken for fractions. An empty score is a
    missing cell. A status ("diverged", "crashed", ...) may stand in the place of a score.

    Args:
      path: the file.
      score: "test accuracy", "train loss" or "log-odds" (of accuracies in the file).
      chance: the score of a guess in percent or nats, for runs that diverged.

    Raises:
      UserError: no such file, a missing column, a row twice, text in a score, a score that cannot
        be; the message names the line.
    """
    if score not in SCORES:
        raise UserError(f"There is no score '{score}'. There are: {', '.join(SCORES)}.")
    kind = "test accuracy" if score == "log-odds" else score
    header, lines = _lines(path)
    if {"backbone", "optimizer", "score"} <= set(header):
        records = [_record(dict(zip(header, row, strict=True)), at) for at, row in lines]
    elif header[0] == "optimizer" and not {"backbone", "score"} & set(header):
        records = [
            _record({"optimizer": row[0], "backbone": backbone, "score": value}, at)
            for at, row in lines
            for backbone, value in zip(header[1:], row[1:], strict=True)
        ]
    else:
        missing = [name for name in ("backbone", "optimizer", "score") if name not in header]
        raise UserError(
            f"'{path}' has no column '{missing[0]}'; its columns are: {', '.join(header)}. A long "
            "table has the columns backbone, optimizer, score; a wide one has 'optimizer' first "
            "and then a column for each backbone."
        )
    _refuse_twice(records, path, seeds="seed" in header)
    runs = pandas.DataFrame.from_records(records)
    notes = []
    if kind == "test accuracy":
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
    runs = _with_diverged_at_chance(runs.drop(columns="line"), kind, chance, notes)
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


def _lines(path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header, and (number, values) of every line that is neither empty nor a comment."""
    try:
        text = Path(path).read_text("utf-8-sig")
    except OSError as reason:
        raise UserError(f"'{path}' cannot be read: {reason.strerror or reason}.") from None
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not text in UTF-8; save it as CSV in UTF-8.") from None
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


def _record(values: dict[str, str], at: int) -> dict:
    """One run from the text of its line."""
    record = {"line": at, "run": values.get("run", "")}
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


def _refuse_twice(records: list[dict], path, *, seeds: bool) -> None:
    seen = {}
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


def _with_diverged_at_chance(runs, score: str, chance: float | None, notes: list[str]):
    """Diverged runs score chance; others that did not finish score nothing."""
    unfinished = runs["status"] != "finished"
    diverged = runs["status"] == "diverged"
    runs["score"] = runs["score"].mask(unfinished)
    if diverged.any():
        if chance is None:
            chance = 0.0 if score == "test accuracy" else runs["score"].max()
            notes.append(
                f"{diverged.sum()} runs diverged and chance level is not known: they score "
                f"{chance:g}."
            )
        runs["score"] = runs["score"].mask(diverged, chance)
    if (unfinished & ~diverged).any():
        notes.append(
            f"{(unfinished & ~diverged).sum()} runs ended for a reason that is not the "
            "optimizer's (memory, crash, time): they have no score."
        )
    return runs


def from_results(
    frame: pandas.DataFrame, score: str = "test accuracy", *, dataset: str | None = None
) -> ScoreTable:
    """A table from the results of a sweep, as `bocb_jax.results.load` gives them.

    Final runs make the table, and the runs of the search its trials. Without final runs the best
    trial of every pair stands in, and a note says that such scores are too good.

    Args:
      frame: one row a run.
      score: "test accuracy", "train loss" or "log-odds".
      dataset: which one to take, if the runs are on several.

    Raises:
      UserError: no run, several datasets, a column is missing, a pair ran twice with a seed.
    """
    if score not in SCORES:
        raise UserError(f"There is no score '{score}'. There are: {', '.join(SCORES)}.")
    kind = "test accuracy" if score == "log-odds" else score
    for column in ("model", "optimizer", "status"):
        if column not in frame:
            raise UserError(f"The results have no column '{column}'; are they of bocb sweep?")
    frame, dataset = _one_dataset(frame, dataset)
    if frame.empty:
        raise UserError("There are no runs to analyse.")
    search = (frame["phase"] == "search").to_numpy() if "phase" in frame else False
    search = np.broadcast_to(search, len(frame))
    chance = _chance(frame, kind)
    notes: list[str] = []
    trials = _runs(frame[search], kind, validation=True)
    trials = _with_diverged_at_chance(trials, kind, chance, []) if len(trials) else None
    final = frame[~search]
    if len(final):
        runs = _runs(final, kind)
        source = f"{len(final)} runs"
        if (
            kind == "test accuracy"
            and not final.get("test_accuracy", pandas.Series()).notna().any()
        ):
            runs = _runs(final, kind, validation=True)
            notes.append("No run was tested: these are accuracies on the validation split.")
    elif trials is not None:
        best = trials["score"] if SCORES[kind][1] else -trials["score"]
        keys = [trials["backbone"], trials["optimizer"]]
        runs = trials.loc[best.fillna(-np.inf).groupby(keys, sort=False).idxmax()]
        runs = runs.reset_index(drop=True)
        source = f"the best of {len(trials)} trials of a search"
        notes.append(
            "There are no final runs: each pair has the best score of its search, which is too "
            "good, the more so the more trials it had."
        )
    keys = ["backbone", "optimizer", "seed"]
    twice = runs.duplicated(keys)
    if twice.any():
        first = runs[twice].iloc[0]
        both = runs[(runs[keys] == first[keys]).all(axis=1)]["run"].head(2)
        raise UserError(
            f"{first['backbone']} ran twice with {first['optimizer']} and seed {first['seed']}: "
            f"{' and '.join(map(str, both))}. Analyse one study at a time."
        )
    runs = _with_diverged_at_chance(runs, kind, chance, notes)
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


def _one_dataset(frame, dataset):
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


def _chance(frame, score: str) -> float | None:
    classes = frame["num_classes"].dropna() if "num_classes" in frame else ()
    if len(classes) == 0:
        return None
    number = float(classes.iloc[0])
    return 100 / number if score == "test accuracy" else math.log(number)


def _runs(frame, score: str, *, validation: bool = False) -> pandas.DataFrame:
    """Rows of a results table under this file's names; accuracies in percent."""

    def numbers(*names):
        for name in names:
            if name in frame and frame[name].notna().any():
                return pandas.to_numeric(frame[name], errors="coerce").to_numpy(float)
        return np.full(len(frame), np.nan)

    checked = 100 * numbers("best_validation_accuracy", "validation_accuracy")
    scores = checked if validation else 100 * numbers("test_accuracy")
    if score == "train loss":
        scores = numbers("train_loss")
    status = frame["status"].to_numpy(str)
    return pandas.DataFrame(
        {
            "backbone": frame["model"].to_numpy(str),
            "optimizer": frame["optimizer"].to_numpy(str),
            "seed": frame["seed"].to_numpy() if "seed" in frame else 0,
            "score": np.where(np.isfinite(scores), scores, np.nan),
            "status": status,
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
