"""`ScoreTable`: which backbone reached what with which optimizer and seed."""

import dataclasses
from collections.abc import Iterable

import numpy as np
import pandas

from bocb_jax.errors import UserError

SCORES = {
    # score -> (unit, whether higher is better)
    "test accuracy": ("points", True),
    "train loss": ("nats", False),
    "log-odds": ("log-odds", True),
}
STATUSES = ("finished", "diverged", "out_of_memory", "crashed", "timed_out")
# Log-odds stay finite: an accuracy counts as at least 0.01 and at most 99.99 percent.
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
    score: str  # a key of SCORES
    unit: str  # "points" (accuracy in percent), "nats" or "log-odds"
    higher_is_better: bool
    chance: float | None  # score of a random guess, in the unit; None if not known
    source: str  # where the scores are from, in words
    dataset: str | None = None  # such as "cifar100", "imagenet"
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
        """Distances that count as close to the best and as fairly close, in the unit."""
        return {"points": (1.0, 2.0)}.get(self.unit, (0.05, 0.1))

    @property
    def one_seed(self) -> bool:
        """Whether no cell has two scores, so that noise cannot be told from coupling."""
        return int(self.counts().to_numpy().max(initial=0)) < 2

    @property
    def sign(self) -> int:
        """1 where higher is better, else -1: a score times it is larger the better."""
        return 1 if self.higher_is_better else -1

    def matrix(self) -> pandas.DataFrame:
        """Return means over seeds, optimizers x backbones, in the unit; NaN without a score."""
        return self._pivot(self.runs, "score", "mean")

    def goodness(self) -> pandas.DataFrame:
        """Return means over seeds times `sign`, optimizers x backbones: larger is better."""
        return self.sign * self.matrix()

    def counts(self) -> pandas.DataFrame:
        """Return the number of seeds with a score, optimizers x backbones."""
        return self._pivot(self.runs, "score", "count").fillna(0).astype(int)

    def failed(self) -> pandas.DataFrame:
        """Return whether there are runs and none of them finished, optimizers x backbones."""
        unfinished = self.runs.assign(unfinished=(self.runs["status"] != "finished").astype(float))
        return self._pivot(unfinished, "unfinished", "min") == 1

    def _pivot(self, runs: pandas.DataFrame, column: str, function: str) -> pandas.DataFrame:
        grid = runs.groupby(["optimizer", "backbone"], sort=False)[column].agg(function).unstack()
        return grid.reindex(index=self.optimizers, columns=self.backbones)

    def select(
        self, optimizers: Iterable[str] | None = None, backbones: Iterable[str] | None = None
    ) -> "ScoreTable":
        """Return the table of some optimizers and backbones; None takes all."""
        kept = {"optimizer": optimizers, "backbone": backbones}
        names = {column: list(values) for column, values in kept.items() if values is not None}

        def part(frame: pandas.DataFrame) -> pandas.DataFrame:
            rows = np.ones(len(frame), bool)
            for column, values in names.items():
                rows &= frame[column].isin(values).to_numpy()
            return frame[rows].reset_index(drop=True)

        return dataclasses.replace(
            self,
            runs=part(self.runs),
            trials=None if self.trials is None else part(self.trials),
        )

    def log_odds(self) -> "ScoreTable":
        """Return the same table in log-odds, ln(p / (1 - p)): 60 -> 62 is less than 96 -> 98.

        Raises:
          UserError: the scores are not accuracies.
        """
        if self.score != "test accuracy":
            raise UserError(
                f"Log-odds need accuracies in percent, and this is a table of {self.score}."
            )

        def transformed(frame: pandas.DataFrame) -> pandas.DataFrame:
            columns = [name for name in ("score", "validation_score") if name in frame]
            return frame.assign(**{name: _log_odds(frame[name]) for name in columns})

        return dataclasses.replace(
            self,
            runs=transformed(self.runs),
            trials=None if self.trials is None else transformed(self.trials),
            score="log-odds",
            unit="log-odds",
            chance=None if self.chance is None else float(_log_odds(self.chance)),
        )


def _log_odds(percent: pandas.Series | float) -> pandas.Series | float:
    share = np.clip(percent, _ODDS_LIMIT, 100 - _ODDS_LIMIT) / 100
    return np.log(share / (1 - share))


def regret_of(goodness: pandas.DataFrame) -> pandas.DataFrame:
    """Return the best of each backbone minus the cell, at least 0; optimizers x backbones.

    The best of noisy means is a little too good, so regrets are a little too large.
    """
    return goodness.max() - goodness
