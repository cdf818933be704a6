"""Hands the runs of a study to workers, and takes in how they end."""

import collections
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bocb_jax.errors import UserError
from bocb_jax.remote import Workdir, saved_steps
from bocb_jax.results import read_json
from bocb_jax.study.plan import Cell, Outcome, Planned
from bocb_jax.study.pool import Event, Pool
from bocb_jax.study.worker import record_failure

STILLBORN = 3  # so many for each worker, in a row, are no accident
TRAINING_STEP = "jit(train_step)"  # as XLA's events name it


class Board(Protocol):
    """Is told what happens, and shows it."""

    def started(self, cell: Cell, planned: Planned) -> None: ...

    def ended(self, cell: Cell, planned: Planned, outcome: Outcome, seconds: float) -> None: ...

    def lost(self, planned: Planned, how: str, starts: int) -> None: ...

    def tick(self) -> None: ...


@dataclasses.dataclass
class Counts:
    """What a sweep did, for its summary."""

    ended: int = 0
    failed: int = 0
    train_steps_compiled: int = 0  # how often XLA compiled a training step
    compiled: int = 0  # and any program
    loaded: int = 0  # programs that lay in the cache
    pairs: set[int] = dataclasses.field(default_factory=set)  # that had a run
    seconds: float = 0.0  # of all workers together


@dataclasses.dataclass
class _Job:
    cell: int
    planned: Planned
    since: float
    timed_out: bool = False


class Scheduler:
    """Goes through the cells until each has all its runs.

    A pair's first run compiles its programs; only then do other workers help with that pair, and
    find them in the cache. So each is compiled once.

    Args:
      cells: the pairs.
      outcomes: of the runs that have ended already; filled as others end.
      pool: the workers.
      board: is told what happens.
      workdir: where the folders of the runs lie.
      retries: how often a run whose worker dies without getting on is started again.
      minutes_per_run: a run that takes longer is ended.
      device_seconds: no run is started once the workers have spent so much.
    """

    def __init__(
        self,
        cells: list[Cell],
        outcomes: dict[str, Outcome],
        pool: Pool,
        board: Board,
        *,
        workdir: Workdir,
        retries: int = 3,
        minutes_per_run: float | None = None,
        device_seconds: float | None = None,
    ):
        self.cells, self.outcomes, self.pool, self.board = cells, outcomes, pool, board
        self.workdir, self.retries = workdir, retries
        self.minutes_per_run, self.device_seconds = minutes_per_run, device_seconds
        self.counts = Counts()
        self._todo = [self._unfinished(cell) for cell in cells]
        self._opened = [False] * len(cells)  # a worker has begun with it
        self._warm = [False] * len(cells)  # its programs are compiled
        self._free: set[int] = set()
        self._last: dict[int, int] = {}  # the cell that a worker was at
        self._jobs: dict[int, _Job] = {}
        self._deaths: collections.Counter[str] = collections.Counter()
        self._stillborn = 0  # workers in a row that ended before they were ready
        self._reached: dict[str, int] = {}  # the step a run was at when its worker died

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Works until everything has ended; False if `stop` said so, or the budget was spent."""
        while not stop():
            for worker in sorted(self._free):
                self._assign(worker)
            if not self._jobs and not any(self._todo):
                return True
            if not self._jobs and self._is_spent():
                return False
            for event in self.pool.events(timeout=0.25):
                self._take(event)
            self._end_overdue()
            self.board.tick()
        return False

    # --- Giving ---------------------------------------------------------------------------------

    def _unfinished(self, cell: Cell) -> collections.deque[Planned]:
        return collections.deque(
            planned for planned in cell.planned(self.outcomes) if planned.run not in self.outcomes
        )

    def _is_spent(self) -> bool:
        limit = self.device_seconds
        return limit is not None and self.counts.seconds >= limit

    def _assign(self, worker: int) -> None:
        cell = self._choose(worker)
        if cell is None or self._is_spent():
            return
        planned = self._todo[cell].popleft()
        self._free.discard(worker)
        self._opened[cell], self._last[worker] = True, cell
        self._jobs[worker] = _Job(cell, planned, time.monotonic())
        self.pool.start(worker, planned.settings)
        self.board.started(self.cells[cell], planned)

    def _choose(self, worker: int) -> int | None:
        """The cell the worker was at, else one that nobody has begun, else the longest queue."""
        last = self._last.get(worker)
        if last is not None and self._todo[last]:
            return last
        waiting = [i for i, todo in enumerate(self._todo) if todo]
        fresh = [i for i in waiting if not self._opened[i]]
        if fresh:
            return fresh[0]
        warm = [i for i in waiting if self._warm[i] or not self._is_running(i)]
        return max(warm, key=lambda i: len(self._todo[i]), default=None)

    def _is_running(self, cell: int) -> bool:
        return any(job.cell == cell for job in self._jobs.values())

    # --- Taking ---------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        worker = event.worker
        if event.kind == "ready":
            self._free.add(worker)
            self._stillborn = 0
            return
        job = self._jobs.pop(worker, None)
        if event.kind == "died":
            is_new = worker not in self._free
            self._free.discard(worker)
            self._last.pop(worker, None)
            if job:
                self._died(job, event.content)
            elif is_new:
                self._stillborn += 1
                if self._stillborn > STILLBORN * self.pool.size:
                    raise UserError(
                        f"No worker comes to be ready. {event.content} What the workers print is "
                        "in .workers in the folder of the runs; on a cluster, bocb_jax must be "
                        "installed on each node."
                    )
            return
        if job is None:
            return
        self._free.add(worker)
        self._count(job, event.content)
        if event.content["status"] == "interrupted":
            self._todo[job.cell].appendleft(job.planned)
        else:
            self._ended(job, event.content)

    def _count(self, job: _Job, answer: dict[str, Any]) -> None:
        counts = self.counts
        counts.compiled += len(answer["compiled"])
        counts.loaded += len(answer["loaded"])
        counts.train_steps_compiled += answer["compiled"].count(TRAINING_STEP)
        counts.pairs.add(job.cell)
        counts.seconds += time.monotonic() - job.since

    def _ended(self, job: _Job, answer: dict[str, Any]) -> None:
        self.workdir.fetch(job.planned.run)
        folder = self.workdir.path / job.planned.run
        outcome = read_outcome(folder) or Outcome(answer["status"])
        self.outcomes[job.planned.run] = outcome
        self._warm[job.cell] = True
        self.counts.ended += 1
        self.counts.failed += outcome.status != "finished"
        seconds = time.monotonic() - job.since
        self.board.ended(self.cells[job.cell], job.planned, outcome, seconds)
        if not self._todo[job.cell]:
            running = {other.planned.run for other in self._jobs.values()}
            following = self._unfinished(self.cells[job.cell])
            self._todo[job.cell] = collections.deque(p for p in following if p.run not in running)

    def _died(self, job: _Job, how: str) -> None:
        planned, folder = job.planned, self.workdir.path / job.planned.run
        self.workdir.fetch(planned.run)
        finished = read_outcome(folder)
        if finished and finished.status in ("finished", "diverged"):  # its last words were lost
            self._ended(job, {"status": finished.status})
            return
        self.counts.seconds += time.monotonic() - job.since
        reached = max(saved_steps(folder), default=-1)
        if reached > self._reached.get(planned.run, -1):
            self._deaths[planned.run] = 0
        self._reached[planned.run] = reached
        self._deaths[planned.run] += 1
        if not job.timed_out and self._deaths[planned.run] <= self.retries:
            self._todo[job.cell].appendleft(planned)
            self.board.lost(planned, how, self._deaths[planned.run])
            return
        if job.timed_out:
            error = f"It took longer than {self.minutes_per_run:g} minutes."
            record = {"status": "timed_out", "error": error}
        else:
            times = self._deaths[planned.run]
            error = (
                f"{how} That came {times} times in a row without the run getting on; memory may "
                "have run out."
            )
            record = {"status": "crashed", "error": error}
        record_failure(self.workdir, planned.run, planned.settings, record)
        self._ended(job, record)

    def _end_overdue(self) -> None:
        if self.minutes_per_run is None:
            return
        for worker, job in self._jobs.items():
            late = time.monotonic() - job.since > 60 * self.minutes_per_run
            if late and not job.timed_out:
                job.timed_out = True
                self.pool.kill(worker)


def read_outcome(folder: Path) -> Outcome | None:
    """How the run in a folder ended; None if it has not."""
    found = read_json(folder / "result.json")
    if not found or "status" not in found:
        return None
    return Outcome(
        found["status"],
        found.get("validation_accuracy"),
        found.get("best_validation_accuracy"),
    )
