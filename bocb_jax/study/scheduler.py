"""Hands the runs of a study to workers, and takes in how they end."""

import collections
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json
from bocb_jax.storage.remote import Workdir, saved_steps
from bocb_jax.study.grouping import Populations
from bocb_jax.study.plan import Cell, Outcome, Planned
from bocb_jax.study.pool import Event, Pool
from bocb_jax.study.worker import record_failure

STILLBORN = 3  # so many for each worker, in a row, are no accident
# As XLA's events name them.
TRAINING_STEP = "jit(train_step)"
TRAINING_STEP_TOGETHER = "jit(train_step_together)"


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
    together_compiled: int = 0  # how many of these were of several runs together
    compiled: int = 0  # and any program
    loaded: int = 0  # programs that lay in the cache
    pairs: set[int] = dataclasses.field(default_factory=set)  # that had a run
    seconds: float = 0.0  # of all workers together


@dataclasses.dataclass
class _Job:
    cell: int
    runs: list[Planned]  # one, or those that train together
    kind: str  # what the worker is asked: "config", "configs" or "compare"
    since: float
    timed_out: bool = False

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self.since


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
      minutes_per_run: a run that takes longer is ended. Runs that train together have so many
        each; where these do not suffice, they go on one by one.
      device_seconds: no run is started once the workers have spent so much.
      populations: which runs train together; None: none.
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
        populations: Populations | None = None,
    ):
        self.cells, self.outcomes, self.pool, self.board = cells, outcomes, pool, board
        self.workdir, self.retries = workdir, retries
        self.minutes_per_run, self.device_seconds = minutes_per_run, device_seconds
        self.populations = populations or Populations("off", workdir)
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
        self._alone: set[str] = set()  # runs that training together did not get on with

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
        job, settings = self._take_up(cell)
        self._free.discard(worker)
        self._opened[cell], self._last[worker] = True, cell
        self._jobs[worker] = job
        self.pool.start(worker, settings, kind=job.kind)
        if job.kind != "compare":
            for planned in job.runs:
                self._todo[cell].remove(planned)
                self.board.started(self.cells[cell], planned)

    def _take_up(self, cell: int) -> tuple[_Job, dict[str, Any]]:
        """What a worker is to do next for a cell, and how it is told."""
        todo, now = self._todo[cell], time.monotonic()
        alone = _Job(cell, [todo[0]], "config", now), todo[0].settings
        if todo[0].run in self._alone:
            return alone
        group = self.populations.group([run for run in todo if run.run not in self._alone])
        if len(group) == 1:
            return alone
        members = self.populations.places(self.cells[cell], group)
        kind = "configs" if members else "compare"
        group = group[:members]
        if members and (members == 1 or 2 * len(group) < members):
            return alone
        configs = [planned.settings for planned in group]
        told = {"configs": configs, "members": members or len(group)}
        return _Job(cell, group, kind, now), told

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
        if job.kind == "compare":
            cell = self.cells[job.cell]
            self.populations.choose(cell, job.runs, **event.content["choice"])
            return
        if event.content.get("error_together"):
            error = event.content["error_together"]
            self.populations.choose(self.cells[job.cell], job.runs, 1, error=error)
        statuses = event.content.get("statuses") or [event.content["status"]]
        ended = dict(zip((planned.run for planned in job.runs), statuses, strict=True))
        for planned in reversed(job.runs):
            if ended[planned.run] == "interrupted":
                self._todo[job.cell].appendleft(planned)
                del ended[planned.run]
        self._ended(job, ended)

    def _count(self, job: _Job, answer: dict[str, Any]) -> None:
        counts = self.counts
        together = answer["compiled"].count(TRAINING_STEP_TOGETHER)
        counts.compiled += len(answer["compiled"])
        counts.loaded += len(answer["loaded"])
        counts.train_steps_compiled += answer["compiled"].count(TRAINING_STEP) + together
        counts.together_compiled += together
        counts.pairs.add(job.cell)
        counts.seconds += job.seconds

    def _ended(self, job: _Job, statuses: dict[str, str]) -> None:
        """Takes in how runs of a job ended, and what is to be done after them.

        Args:
          job: what the worker did.
          statuses: by the run's name; of those that have ended.
        """
        ended = [planned for planned in job.runs if planned.run in statuses]
        for planned in ended:
            self.workdir.fetch(planned.run)
            found = read_outcome(self.workdir.path / planned.run)
            outcome = found or Outcome(statuses[planned.run])
            self.outcomes[planned.run] = outcome
            self._warm[job.cell] = True
            self.counts.ended += 1
            self.counts.failed += outcome.status != "finished"
        for planned in ended:
            outcome, share = self.outcomes[planned.run], job.seconds / len(job.runs)
            self.board.ended(self.cells[job.cell], planned, outcome, share)
        if ended and not self._todo[job.cell]:
            running = {planned.run for other in self._jobs.values() for planned in other.runs}
            following = self._unfinished(self.cells[job.cell])
            self._todo[job.cell] = collections.deque(p for p in following if p.run not in running)

    def _died(self, job: _Job, how: str) -> None:
        self.counts.seconds += job.seconds
        if job.kind == "compare":
            self._died_comparing(job, how)
            return
        ended: dict[str, str] = {}
        for planned in reversed(job.runs):
            self.workdir.fetch(planned.run)
            finished = read_outcome(self.workdir.path / planned.run)
            if finished and finished.status in ("finished", "diverged"):  # its last words were lost
                ended[planned.run] = finished.status
                continue
            record = self._failure_of(planned, job, how)
            if record is None:
                self._todo[job.cell].appendleft(planned)
                self.board.lost(planned, how, self._deaths[planned.run])
            else:
                record_failure(self.workdir, planned.run, planned.settings, record)
                ended[planned.run] = record["status"]
        self._ended(job, ended)

    def _failure_of(self, planned: Planned, job: _Job, how: str) -> dict[str, Any] | None:
        """The record of a run that has failed with its worker; None where it is tried again."""
        together = len(job.runs) > 1
        reached = max(saved_steps(self.workdir.path / planned.run), default=-1)
        if reached > self._reached.get(planned.run, -1):
            self._deaths[planned.run] = 0
        elif together:
            self._alone.add(planned.run)
        self._reached[planned.run] = reached
        self._deaths[planned.run] += 1
        if job.timed_out and together:
            self._alone.add(planned.run)
            return None
        if job.timed_out:
            error = f"It took longer than {self.minutes_per_run:g} minutes."
            return {"status": "timed_out", "error": error}
        times = self._deaths[planned.run]
        if times <= self.retries:
            return None
        error = (
            f"{how} That came {times} times in a row without the run getting on; memory may have "
            "run out."
        )
        return {"status": "crashed", "error": error}

    def _died_comparing(self, job: _Job, how: str) -> None:
        """Measures again; where that does not help, the pair's runs are trained one by one."""
        name = f"comparing {job.runs[0].run}"
        self._deaths[name] += 1
        if job.timed_out or self._deaths[name] > self.retries:
            self.populations.choose(self.cells[job.cell], job.runs, 1, error=how)

    def _end_overdue(self) -> None:
        if self.minutes_per_run is None:
            return
        for worker, job in self._jobs.items():
            late = job.seconds > 60 * self.minutes_per_run * len(job.runs)
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
