"""`ScoreTable`: which backbone reached what with which optimizer and seed."""

import dataclasses
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas

from bocb_jax.errors import UserError

SCORES = {
    # score -> (unit, whether higher is better)
    "test accuracy": ("points", True),
    "train loss": ("nats", False),
    "log-odds": ("log-odds", True),
}
# How a run may end. Only a finished run has a score. A run that was stopped before it reached the
# target of a time-to-target metric is "not_reached": its time is censored.
STATUSES = ("finished", "diverged", "out_of_memory", "crashed", "timed_out", "not_reached")
# Differences that count as equal, by unit; of other units, a share of the median best score.
_EQUAL = {"points": 1.0, "AP": 1.0, "log-odds": 0.05, "nats": 0.05, "log-ratio": 0.02}
_EQUAL_SHARE = 0.02
# Log-odds stay finite: an accuracy counts as at least 0.01 and at most 99.99 percent.
_ODDS_LIMIT = 0.01


@dataclasses.dataclass(frozen=True)
class ScoreTable:
    """Scores of backbones under optimizers.

    A run has a score only if it finished. What the others tell is in their status: nothing is
    scored at chance level.
    """

    # Final runs, one a row: backbone, optimizer, seed, score (NaN unless status is "finished"),
    # status (one of `STATUSES`), spread (standard deviation that the source gives for the figure),
    # learning_rate, weight_decay, train_loss, train_accuracy, first_train_loss,
    # validation_score, run; NaN where not known. Results of a sweep have seconds_to_target and
    # wall_seconds as well.
    runs: pandas.DataFrame
    # Runs of the search for learning rate and weight decay, the same columns; None without one.
    # Their score is that of the validation split.
    trials: pandas.DataFrame | None
    score: str  # what was measured: a key of SCORES, or the name of another metric, such as "AP"
    unit: str  # of scores and regrets: "points" (accuracy in percent), "nats", "s", "AP", ...
    higher_is_better: bool
    chance: float | None  # score of a random guess, in the unit; None if not known
    source: str  # where the scores are from, in words
    dataset: str | None = None  # such as "cifar100", "imagenet"
    notes: tuple[str, ...] = ()  # what a reader of any figure should know, in sentences
    noise: float | None = None  # standard deviation of one figure, as the user gives it
    # Difference that counts as equal, in the unit. By default 1 point (or 1 AP), 0.05 nats or
    # log-odds, 2 % of the median best score otherwise; never less than one test image.
    equal: float = math.nan
    test_images: int | None = None  # behind each accuracy, where known
    # Whether scores are natural logarithms of what was measured, so that regrets are log-ratios to
    # the best of the backbone: exp(0.1) is 1.105 times as long. `measured` undoes it.
    relative: bool = False
    measured_unit: str = ""  # of what was measured, such as "s", where it is not `unit`
    described: str = ""  # how the source was understood, in a line

    def __post_init__(self) -> None:
        if math.isnan(self.equal):
            object.__setattr__(self, "equal", self.default_equal())

    def default_equal(self) -> float:
        """Return the difference that counts as equal unless the user says otherwise."""
        if self.unit not in _EQUAL:
            best = float(np.abs(self.goodness().max()).median()) if len(self.runs) else math.nan
            return float(f"{_EQUAL_SHARE * best:.2g}") if best > 0 else 0.0
        image = 100 / self.test_images if self.unit == "points" and self.test_images else 0.0
        return max(_EQUAL[self.unit], image)

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
        """Distances that count as close to the best and as fairly close: `equal`, and twice it."""
        return self.equal, 2 * self.equal

    @property
    def is_accuracy(self) -> bool:
        """Whether scores are accuracies in percent, on whatever split."""
        return self.unit == "points"

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

        A noise in points becomes the spread of each figure, since log-odds stretch near the ends.

        Raises:
          UserError: the scores are not accuracies.
        """
        if not self.is_accuracy:
            raise UserError(
                f"Log-odds need accuracies in percent, and this is a table of {self.score}."
            )

        def transformed(frame: pandas.DataFrame) -> pandas.DataFrame:
            columns = [name for name in ("score", "validation_score") if name in frame]
            share = np.clip(frame["score"], _ODDS_LIMIT, 100 - _ODDS_LIMIT) / 100
            spread = self.figure_noise(frame) / (100 * share * (1 - share))
            return frame.assign(spread=spread, **{name: _log_odds(frame[name]) for name in columns})

        return dataclasses.replace(
            self,
            runs=transformed(self.runs),
            trials=None if self.trials is None else transformed(self.trials),
            score="log-odds",
            unit="log-odds",
            chance=None if self.chance is None else float(_log_odds(self.chance)),
            equal=math.nan,
            noise=None,
        )

    def figure_noise(self, frame: pandas.DataFrame | None = None) -> pandas.Series:
        """Return the standard deviation of each figure, as the source or else the user gives it.

        Args:
          frame: runs or trials; by default the runs with a score.
        """
        if frame is None:
            frame = self.runs[self.runs["score"].notna()]
        spread = frame["spread"] if "spread" in frame else pandas.Series(math.nan, frame.index)
        return spread if self.noise is None else spread.fillna(self.noise)

    def logarithms(self) -> "ScoreTable":
        """Return the same table relative to the best of each backbone: scores are ln(score).

        For columns that differ in scale, such as seconds to a target.

        Raises:
          UserError: a score is not positive.
        """
        scores = self.runs["score"]
        if not (scores.isna() | (scores > 0)).all():
            raise UserError(f"Ratios need positive scores, and a {self.score} is {scores.min():g}.")

        def transformed(frame: pandas.DataFrame) -> pandas.DataFrame:
            spread = self.figure_noise(frame) / frame["score"]
            return frame.assign(score=np.log(frame["score"]), spread=spread)

        return dataclasses.replace(
            self,
            runs=transformed(self.runs),
            trials=None if self.trials is None else transformed(self.trials),
            unit="log-ratio",
            measured_unit=self.unit,
            chance=None,
            equal=math.nan,
            noise=None,
            relative=True,
        )

    def measured(self) -> pandas.DataFrame:
        """Return `matrix` as it was measured, in `measured_unit` where the table is relative."""
        return self.as_measured(self.matrix())

    def as_measured(self, scores: Any) -> Any:
        """Return scores of this table, an array or frame of them, as they were measured."""
        return np.exp(scores) if self.relative else scores

    def share(self, distance: Any) -> Any:
        """Return a distance of a relative table as a share of the best: 0.4 is 40 % more, or less.

        Scores are logarithms: lower ones are better where exp(distance) times as much is worse.
        A lead, a negative distance, is as large as its counterpart behind.
        """
        size = np.minimum(np.abs(distance), 50)
        return np.sign(distance) * (-np.expm1(-size) if self.higher_is_better else np.expm1(size))

    @property
    def score_unit(self) -> str:
        """Unit of scores as they were measured."""
        return self.measured_unit or self.unit

    @property
    def distance_unit(self) -> str:
        """Unit in which `distances` are: "%" of the best where the table is relative."""
        return "%" if self.relative else self.unit

    def distances(self, values: Any) -> Any:
        """Return distances between scores, an array or frame of them, in `distance_unit`."""
        return 100 * self.share(values) if self.relative else values


def _log_odds(percent: pandas.Series | float) -> pandas.Series | float:
    share = np.clip(percent, _ODDS_LIMIT, 100 - _ODDS_LIMIT) / 100
    return np.log(share / (1 - share))


def regret_of(goodness: pandas.DataFrame) -> pandas.DataFrame:
    """Return the best of each backbone minus the cell, at least 0; optimizers x backbones.

    The best of noisy means is a little too good, so regrets are a little too large.
    """
    return goodness.max() - goodness
