"""Hands the runs of a study to workers and takes in how they end."""

import collections
import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.run_files import read_result, score_name
from bocb_jax.storage.remote import Workdir, saved_steps
from bocb_jax.study.grouping import Grouping
from bocb_jax.study.messages import UNWRITABLE, Answer, Event, EventKind, Request, Task
from bocb_jax.study.plan import Cell, Outcome, Planned
from bocb_jax.study.pool import Pool, StartWatch
from bocb_jax.study.progress import Progress
from bocb_jax.study.worker import write_failure

# What a training step is compiled from: the names of XLA's events, and words for one and several.
STEPS = {
    "jit(gradient_step)": ("gradient", "gradients"),
    "jit(update_step)": ("update", "updates"),
    "jit(train_step)": ("training step", "training steps"),
    "jit(train_step_together)": (
        "training step of runs together",
        "training steps of runs together",
    ),
}


@dataclasses.dataclass
class Counts:
    """What a sweep did, for its summary."""

    ended: int = 0
    failed: int = 0
    # Programs by the name of their function.
    compiled: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    loaded: int = 0  # programs that came from the compile cache
    pairs: set[int] = dataclasses.field(default_factory=set)  # that had a run
    seconds: float = 0.0  # of all workers together

    @property
    def compiled_steps(self) -> str:
        """How often XLA compiled a training step or a part of one: "5 gradients, 25 updates"."""
        found = [
            f"{self.compiled[name]} {words[self.compiled[name] > 1]}"
            for name, words in STEPS.items()
            if self.compiled[name]
        ]
        return ", ".join(found) or "no training step"


@dataclasses.dataclass
class _Job:
    """What one worker is doing."""

    cell: int
    runs: list[Planned]  # one, or those that train together
    request: Request
    since: float
    timed_out: bool = False

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.since


class Scheduler:
    """Goes through the cells until all their runs have ended.

    The first run of a pair compiles its programs; only then do other workers help with that pair,
    and load the programs from the cache. So the programs of a pair are normally compiled once.

    Args:
      cells: the pairs.
      outcomes: of the runs that have ended; filled as others end.
      pool: the workers.
      progress: is told what happens.
      workdir: the folder of runs.
      retries: restarts of a run whose worker keeps dying before it has saved anything new.
      minutes_per_run: a run that takes longer is ended. Runs that train together have this time
        each; if that does not suffice, they continue one by one.
      device_seconds: no run starts once the jobs that have ended took this much time in all.
      grouping: which runs train together; None for none.
    """

    def __init__(
        self,
        cells: list[Cell],
        outcomes: dict[str, Outcome],
        pool: Pool,
        progress: Progress,
        *,
        workdir: Workdir,
        retries: int = 3,
        minutes_per_run: float | None = None,
        device_seconds: float | None = None,
        grouping: Grouping | None = None,
    ):
        self.cells, self.outcomes, self.pool, self.progress = cells, outcomes, pool, progress
        self.workdir, self.retries = workdir, retries
        self.minutes_per_run, self.device_seconds = minutes_per_run, device_seconds
        self.grouping = grouping or Grouping("off", workdir)
        self.counts = Counts()
        self._todo = [self._unfinished(cell) for cell in cells]
        self._opened = [False] * len(cells)  # a worker has started with it
        self._warm = [False] * len(cells)  # its programs are compiled
        self._free: set[int] = set()
        self._last: dict[int, int] = {}  # worker -> the cell of its last run
        self._jobs: dict[int, _Job] = {}  # by worker
        self._deaths: collections.Counter[str] = collections.Counter()
        self._starts = StartWatch(pool)
        # run -> its last saved step when its worker died or ran out of time
        self._reached: dict[str, int] = {}
        self._alone: set[str] = set()  # runs that saved nothing new while they trained together

    def run(self, stop: Callable[[], bool] = lambda: False) -> bool:
        """Work until everything has ended; return False if `stop` or the budget came first.

        Raises:
          UserError: no worker can start.
        """
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
            self.progress.tick()
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
        job = self._next_job(cell)
        self._free.discard(worker)
        self._opened[cell], self._last[worker] = True, cell
        self._jobs[worker] = job
        self.pool.start(worker, job.request)
        if job.request.task is not Task.COMPARE:
            for planned in job.runs:
                self._todo[cell].remove(planned)
                self.progress.started(self.cells[cell], planned)

    def _next_job(self, cell: int) -> _Job:
        """Return what a worker is to do next for a cell."""
        todo = self._todo[cell]
        alone = self._job(cell, Task.TRAIN, [todo[0]])
        if todo[0].run in self._alone:
            return alone
        group = self.grouping.group([run for run in todo if run.run not in self._alone])
        if len(group) == 1:
            return alone
        members = self.grouping.members(self.cells[cell], group)
        if members is None:
            return self._job(cell, Task.COMPARE, group)
        group = group[:members]
        if members == 1 or 2 * len(group) < members:
            return alone
        return self._job(cell, Task.TRAIN_TOGETHER, group, members)

    def _job(self, cell: int, task: Task, runs: list[Planned], members: int | None = None) -> _Job:
        request = Request(task, [planned.config for planned in runs], members or len(runs))
        return _Job(cell, runs, request, time.monotonic())

    def _choose(self, worker: int) -> int | None:
        """Return the cell that the worker is at, else one not started, else the longest queue.

        Cells whose programs another worker is still compiling are left out.
        """
        last = self._last.get(worker)
        if last is not None and self._todo[last]:
            return last
        unfinished = [i for i, todo in enumerate(self._todo) if todo]
        fresh = [i for i in unfinished if not self._opened[i]]
        if fresh:
            return fresh[0]
        available = [i for i in unfinished if self._warm[i] or not self._is_running(i)]
        return max(available, key=lambda i: len(self._todo[i]), default=None)

    def _is_running(self, cell: int) -> bool:
        return any(job.cell == cell for job in self._jobs.values())

    # --- Taking ---------------------------------------------------------------------------------

    def _take(self, event: Event) -> None:
        worker = event.worker
        self._starts.note(event)
        if event.kind is EventKind.READY:
            self._free.add(worker)
            return
        job = self._jobs.pop(worker, None)
        if event.kind is EventKind.DIED:
            self._free.discard(worker)
            self._last.pop(worker, None)
            if job:
                self._died(job, event.reason)
        elif job is not None and event.answer is not None:
            self._free.add(worker)
            self._count(job, event.answer)
            self._done(job, event.answer)

    def _count(self, job: _Job, answer: Answer) -> None:
        counts = self.counts
        counts.compiled.update(answer.compiled)
        counts.loaded += len(answer.loaded)
        counts.pairs.add(job.cell)
        counts.seconds += job.seconds

    def _done(self, job: _Job, answer: Answer) -> None:
        cell, task = self.cells[job.cell], job.request.task
        if task is Task.COMPARE:
            self.grouping.choose(cell, job.runs, **(answer.choice or {"members": 1}))
            return
        if task is Task.TRAIN_TOGETHER and answer.error:
            self.grouping.choose(cell, job.runs, 1, error=answer.error)
        if UNWRITABLE in answer.statuses:
            raise UserError(
                f"{answer.error} The sweep has stopped; start the same command again once the "
                "disk can be written."
            )
        ended = dict(zip((planned.run for planned in job.runs), answer.statuses, strict=True))
        for planned in reversed(job.runs):
            if ended[planned.run] == "interrupted":
                self._todo[job.cell].appendleft(planned)
                del ended[planned.run]
        self._ended(job, ended)

    def _ended(self, job: _Job, statuses: dict[str, str]) -> None:
        """Take in how runs of a job ended, and plan what follows from that.

        Args:
          job: what the worker did.
          statuses: by run, of those that have ended.
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
            self.progress.ended(self.cells[job.cell], planned, outcome, share)
        if ended and not self._todo[job.cell]:
            running = {planned.run for other in self._jobs.values() for planned in other.runs}
            following = self._unfinished(self.cells[job.cell])
            self._todo[job.cell] = collections.deque(p for p in following if p.run not in running)

    def _died(self, job: _Job, reason: str) -> None:
        self.counts.seconds += job.seconds
        if job.request.task is Task.COMPARE:
            self._died_comparing(job, reason)
            return
        ended: dict[str, str] = {}
        for planned in reversed(job.runs):
            self.workdir.fetch(planned.run)
            finished = read_outcome(self.workdir.path / planned.run)
            if finished and finished.status in ("finished", "diverged"):  # only the answer was lost
                ended[planned.run] = finished.status
                continue
            result = self._failed_result(planned, job, reason)
            if result is None:
                self._todo[job.cell].appendleft(planned)
                self.progress.lost(planned, reason, self._deaths[planned.run])
            else:
                write_failure(self.workdir, planned.run, planned.config, result)
                ended[planned.run] = result["status"]
        self._ended(job, ended)

    def _failed_result(self, planned: Planned, job: _Job, reason: str) -> dict[str, Any] | None:
        """Return the result of a run that has failed with its worker; None if it is retried."""
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
            f"{reason} That happened {times} times in a row without progress; memory may have run "
            "out."
        )
        return {"status": "crashed", "error": error}

    def _died_comparing(self, job: _Job, reason: str) -> None:
        """Measure again; if that fails too often, train the pair's runs one by one."""
        name = f"comparing {job.runs[0].run}"
        self._deaths[name] += 1
        if job.timed_out or self._deaths[name] > self.retries:
            self.grouping.choose(self.cells[job.cell], job.runs, 1, error=reason)

    def _end_overdue(self) -> None:
        if self.minutes_per_run is None:
            return
        for worker, job in self._jobs.items():
            late = job.seconds > 60 * self.minutes_per_run * len(job.runs)
            if late and not job.timed_out:
                job.timed_out = True
                self.pool.kill(worker)


def read_outcome(folder: Path) -> Outcome | None:
    """Return how the run in a folder ended; None if it has not ended."""
    found = read_result(folder)
    if found is None:
        return None
    score = score_name(found)
    return Outcome(
        found["status"],
        found.get(f"validation_{score}"),
        found.get(f"best_validation_{score}"),
    )
