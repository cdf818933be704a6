"""The runs of a study, pair by pair: the trials of the search, then the winner under every seed.

What is planned follows from the study and from how earlier runs ended, and from nothing else.
"""

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bocb_jax.config import TrainConfig, from_dict, run_id
from bocb_jax.study.resolve import Pair
from bocb_jax.study.search import Point, number_of_trials, propose, winner
from bocb_jax.study.spec import Study


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a run ended, as far as planning goes."""

    status: str
    final: float | None = None  # validation accuracy at the end
    best: float | None = None  # and at its best


@dataclasses.dataclass(frozen=True)
class Planned:
    """A run of a study."""

    run: str  # its folder's name
    phase: str  # "search" or "final"
    point: Point
    seed: int
    settings: dict[str, Any]  # of `TrainConfig`
    identity: dict[str, Any]  # what `config.json` must hold


class Cell:
    """A pair's runs.

    Args:
      pair: backbone, variant and optimizer.
      study: the study.
      workdir: where the folders of the runs lie.
    """

    def __init__(self, pair: Pair, study: Study, workdir: str | Path):
        self.pair, self.study, self.workdir = pair, study, workdir
        self._made: dict[tuple[Point, int, bool], Planned] = {}

    @property
    def size(self) -> int:
        """How many runs there are at least."""
        return self.trials + len(self.study.final.seeds)

    @property
    def trials(self) -> int:
        """How many of these belong to the search."""
        return number_of_trials(self.study.search, self.pair.center) if self.searches else 0

    @property
    def searches(self) -> bool:
        """A search of one point has nothing to decide, and is left out."""
        return self.study.search.kind not in ("default", "published")

    def planned(self, outcomes: Mapping[str, Outcome]) -> list[Planned]:
        """Every run that the pair asks for by now; with an outcome for each, it is done.

        Args:
          outcomes: of the runs that have ended, by name.
        """
        search, center, published = self.study.search, self.pair.center, self.pair.published
        if not self.searches:
            (point,) = propose(search, center, {}, published)
            return self._finals(point)
        scores: dict[Point, float] = {}
        while True:
            points = propose(search, center, scores, published)
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
        # Where every trial failed, the gentlest is what the table shows.
        best = winner(points, scores) or min(
            (point for point in points if point.share == 1), key=lambda point: point.lr
        )
        return trials + self._finals(best)

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
                **pair.settings,
                "model": pair.backbone,
                "opt": pair.optimizer,
                "lr": point.lr,
                "weight_decay": point.weight_decay,
                "seed": seed,
                "epochs": max(1, round(point.share * pair.epochs)),
                "test": test,
                "label": pair.label,
                "study": self.study.name,
                "workdir": str(self.workdir),
            }
            if not test and self.study.checkpoints == "final":
                settings["checkpoint"] = {**settings.get("checkpoint", {}), "discard": True}
            settings["log"] = {"progress": "none"} | settings.get("log", {})
            config = from_dict(TrainConfig, settings)
            phase = "final" if test else "search"
            self._made[key] = Planned(
                run_id(config), phase, point, seed, settings, config.identity()
            )
        return self._made[key]
