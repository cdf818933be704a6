"""The runs of a study, pair by pair: the trials of the search, then the winner with every seed.

The plan is a function of the study and of how earlier runs ended, and of nothing else.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bocb_jax.config import TrainConfig, from_dict, run_id
from bocb_jax.study.resolve import Pair
from bocb_jax.study.search import Point, propose, shares_of_trials, winner
from bocb_jax.study.spec import Study


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, as far as planning needs it."""

    status: str
    final: float | None = None  # validation accuracy at the end
    best: float | None = None  # best validation accuracy


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run of a study."""

    run: str  # name of its run directory
    phase: str  # "search" or "final"
    point: Point
    seed: int
    config: dict[str, Any]  # what `config.from_dict` takes
    identity: dict[str, Any]  # what its `config.json` must hold


class Cell:
    """The runs of a pair.

    Args:
      pair: backbone, variant and optimizer.
      study: the study.
      workdir: the folder of runs; a path or a URL.
    """

    def __init__(self, pair: Pair, study: Study, workdir: str | Path):
        self.pair, self.study, self.workdir = pair, study, workdir
        self._made: dict[tuple[Point, int, bool], Planned] = {}

    @property
    def size(self) -> int:
        """The least number of runs."""
        return self.trials + len(self.study.final.seeds)

    @property
    def trials(self) -> int:
        """The least number of runs of the search."""
        return len(self.lengths)

    @property
    def length(self) -> float:
        """Epochs of the least number of runs, over those of a final run."""
        return sum(self.lengths) + len(self.study.final.seeds)

    @property
    def lengths(self) -> list[float]:
        """Epochs of each run of the search that is sure to be made, over those of a final run."""
        if not self.searches:
            return []
        shares = shares_of_trials(self.study.search, self.pair.center)
        return [self._epochs(share) / self.pair.epochs for share in shares]

    @property
    def searches(self) -> bool:
        """Whether there is a search: one of a single point has nothing to decide."""
        return self.study.search.kind not in ("default", "published")

    def planned(self, outcomes: Mapping[str, Outcome]) -> list[Planned]:
        """Return every run the pair asks for so far; once each has an outcome, the pair is done.

        Args:
          outcomes: of the runs that have ended, by name.
        """
        search, center, tuned = self.study.search, self.pair.center, self.pair.tuned
        if not self.searches:
            (point,) = propose(search, center, {}, tuned)
            return self._finals(point)
        scores: dict[Point, float] = {}
        while True:
            points = propose(search, center, scores, tuned)
            trials = [self._run(point, search.seed, test=False) for point in points]
            new = {
                trial.point: self._score(outcomes[trial.run])
                for trial in trials
                if trial.run in outcomes and trial.point not in scores
            }
            if not new:
                break
            scores |= new
        if any(trial.run not in outcomes for trial in trials):
            return trials
        # Where every trial failed, the table shows the one with the lowest learning rate.
        best = winner(points, scores) or min(
            (point for point in points if point.share == 1), key=lambda point: point.lr
        )
        return trials + self._finals(best)

    def _epochs(self, share: float) -> int:
        return max(1, round(share * self.pair.epochs))

    def _finals(self, point: Point) -> list[Planned]:
        return [self._run(point, seed, test=True) for seed in self.study.final.seeds]

    def _score(self, outcome: Outcome) -> float:
        score = outcome.best if self.study.search.select == "best" else outcome.final
        return score if outcome.status == "finished" and score is not None else -math.inf

    def _run(self, point: Point, seed: int, *, test: bool) -> Planned:
        key = point, seed, test
        if key not in self._made:
            pair = self.pair
            settings = {
                **pair.train,
                "model": pair.backbone,
                "opt": pair.optimizer,
                "lr": point.lr,
                "weight_decay": point.weight_decay,
                "seed": seed,
                "epochs": self._epochs(point.share),
                "test": test,
                "label": pair.label,
                "study": self.study.name,
                "workdir": str(self.workdir),
            }
            if not test and self.study.checkpoints == "final":
                settings["checkpoint"] = {**settings.get("checkpoint", {}), "discard": True}
            settings["log"] = {"progress": "none"} | settings.get("log", {})
            if pair.inits:
                turn = self.study.final.seeds.index(seed) if test else 0
                settings["init"] = pair.inits[turn % len(pair.inits)]
            config = from_dict(TrainConfig, settings)
            phase = "final" if test else "search"
            self._made[key] = Planned(
                run_id(config), phase, point, seed, settings, config.identity()
            )
        return self._made[key]
