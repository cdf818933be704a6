"""A table of scores: which backbone reached what with which optimizer and seed.

Three ways to one: the published tables, a CSV of your own, the results of a sweep. A CSV is long
(columns backbone, optimizer, score and, where known, seed, learning_rate, weight_decay, train_loss,
train_accuracy, first_train_loss, validation_score, status, run) or wide (the first column is
"optimizer", every other column is a backbone). Lines that begin with # are comments.
"""

import dataclasses
from pathlib import Path

import numpy as np
import pandas

from bocb_jax.coupling import published
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
    matrix = published.table(name)
    runs = matrix.rename_axis(columns="backbone").stack().rename("score").reset_index()
    if name == "cifar100":
        tuned = published.table("hyperparameters")
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
    missing cell, unless its status is "diverged".

    Args:
      path: the file.
      score: "test accuracy" or "train loss".
      chance: the score of a guess, for runs that diverged.

    Raises:
      UserError: no such file, a missing column, a row twice, text in a score, a score that cannot
        be; the message names the line.
    """
    raise NotImplementedError


def from_results(
    frame: pandas.DataFrame, score: str = "test accuracy", *, dataset: str | None = None
) -> ScoreTable:
    """A table from the results of a sweep, as `bocb_jax.results.load` gives them.

    Args:
      frame: one row a run.
      score: "test accuracy", "train loss" or "log-odds".
      dataset: which one to take, if the runs are on several.

    Raises:
      UserError: no run, several datasets, a column is missing, a pair ran twice with a seed.
    """
    raise NotImplementedError
