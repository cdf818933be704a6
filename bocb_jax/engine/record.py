"""What a run keeps: its progress, its lines of metrics, its checkpoints, its result.

Nothing here trains. What is due depends only on the number of steps taken and on `Progress`, which
every checkpoint holds: a resumed run does what an uninterrupted one would have done.
"""

import contextlib
import dataclasses
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from bocb_jax.config import TrainConfig
from bocb_jax.console import Reporter
from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.engine.memory import peak_memory
from bocb_jax.engine.metrics import JsonLines, Window, Writers, open_writers
from bocb_jax.engine.outcome import summary
from bocb_jax.engine.state import Params, TrainState
from bocb_jax.errors import Diverged, UserError
from bocb_jax.storage.files import read_jsonl, write_json

_NOT_FINITE = (
    "The first step has a loss of {loss} and a gradient of norm {grad_norm}, before the optimizer "
    "has changed a weight: this is no divergence. Look for a layer of the model that divides by "
    "zero or overflows, and for initial weights that are not finite."
)


@dataclasses.dataclass
class Progress:
    """How far a run has come; saved with every checkpoint, beside the state."""

    elapsed: float = 0.0  # seconds, over all starts
    logged: int = 0  # step of the last line of metrics
    lines: int | None = None  # of metrics, up to that one; None in checkpoints of earlier versions
    evaluated: int = 0  # step of the last evaluation on the validation split
    validation_accuracy: float | None = None  # or the score of another task
    best_validation_accuracy: float | None = None  # likewise
    best_step: int | None = None
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)  # since `logged`
    data: dict[str, Any] | None = None  # position in the data


class Record:
    """The record of one run.

    Args:
      config: of the run.
      folder: where everything is written.
      score: name of the score that tells the best weights.
      means: names of the metrics that every line has, beside those of the optimizer.
      epoch_steps: steps per epoch.
      batch_size: images per step.
      num_params: number of learned values of the backbone.
      report: shows the run to the user.
      started: `time.monotonic()` when this start of the run began.
    """

    def __init__(
        self,
        config: TrainConfig,
        folder: Path,
        *,
        score: str,
        means: Sequence[str],
        epoch_steps: int,
        batch_size: int,
        num_params: int,
        report: Reporter,
        started: float,
    ):
        self.config, self.folder, self.report = config, folder, report
        self._score, self._means = score, tuple(means)
        self._epoch_steps, self._batch_size, self._num_params = epoch_steps, batch_size, num_params
        self._started = self._begun = started
        self._population = 1
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
        self._writers = Writers([])
        self._lines: JsonLines | None = None  # the one that writes metrics.jsonl
        self._writes = jax.process_index() == 0
        self._best_weights: Params | None = None  # on the devices, until the next save
        self._seconds_to_first_step: float | None = None
        self.step, self.progress = 0, Progress()

    def restore(self, abstract_state: TrainState) -> TrainState | None:
        """Return the newest state, with its progress taken over; None if there is no checkpoint."""
        restored = self._checkpoints.restore(abstract_state)
        if restored is None:
            return None
        self.step, self.progress = restored.step, Progress(**restored.progress)
        self._begun -= self.progress.elapsed
        self._checkpoints.discard_after(self.step)
        return restored.state

    def begin(self, total_steps: int, population: int = 1) -> None:
        """Open the writers and start the clocks, just before the first step.

        Args:
          total_steps: of the run.
          population: how many runs train together, this one included.
        """
        self._population = population
        self._window = Window(self.progress.rows, self._means)
        if self._writes:
            progress = self.progress
            count = progress.lines if progress.logged else 0
            self._lines, writers = open_writers(
                self.config, self.folder, progress.logged, count, self._means
            )
            self._writers = Writers(writers)
        self.report.start(total_steps, self.step)
        now = time.monotonic()
        self._saved_step, self._saved_at = self.step, now
        self._begun = now - self.progress.elapsed
        self._mark_step, self._mark_time = self.step, now  # from which the speed is measured

    def close(self) -> None:
        """Close the files and stop the threads."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._checkpoints.close)
            stack.callback(self._writers.close)
            self.report.stop()

    # --- What is due ----------------------------------------------------------------------------

    def evaluation_is_due(self, *, last: bool) -> bool:
        """Whether to evaluate on the validation split before the next step."""
        every = self.config.log.evaluate_every_epochs * self._epoch_steps
        return self.step > self.progress.evaluated and (last or self.step % every == 0)

    def line_is_due(self) -> bool:
        """Whether to write a line of metrics."""
        return self.step > self.progress.logged and self.step % self.config.log.every_steps == 0

    def save_is_due(self) -> bool:
        """Whether to save the state before the next step."""
        every = self.config.checkpoint.every_steps
        if self.step == self._saved_step:
            return False
        if every is not None:
            return self.step % every == 0
        if jax.process_count() > 1:  # the clocks of several processes do not agree
            return self.step % self._epoch_steps == 0
        return time.monotonic() - self._saved_at >= self.config.checkpoint.every_seconds

    # --- What is kept ---------------------------------------------------------------------------

    def first_step_dispatched(self) -> None:
        """Note the time: the programs are compiled."""
        self._seconds_to_first_step = time.monotonic() - self._started

    def first_step_done(self) -> None:
        """Measure the speed from here on, without the compilation."""
        self._mark_step, self._mark_time = self.step + 1, time.monotonic()

    def step_dispatched(self) -> None:
        """Count a step."""
        self.step += 1
        self.report.step(self.step)

    def add(self, rows: list[dict[str, float]]) -> None:
        """Add the metrics of the latest steps, one dict per step, up to the present one.

        Raises:
          UserError: those of the very first step are not finite; no optimizer is to blame.
          Diverged: a loss or a gradient norm is not finite. The line of metrics that ends with that
            step is written, and `step` set to it.
        """
        for number, row in enumerate(rows, start=self.step - len(rows) + 1):
            self._window.add({"step": number, **row})
            if not (abs(row["loss"]) < float("inf") and row["grad_norm"] < float("inf")):
                self.write_line()
                self.step = number
                if number == 1:
                    raise UserError(_NOT_FINITE.format(**row))
                raise Diverged(
                    f"The loss or the gradient was no longer finite at step {number}.", step=number
                )

    def write_line(self, validation: dict[str, float] | None = None) -> None:
        """Write the line of metrics of the steps since the last one, with the validation scores."""
        line = self._window.flush()
        step = self.progress.logged = int(line["step"])
        now = time.monotonic()
        images = (step - self._mark_step) * self._batch_size
        line |= {"epoch": step / self._epoch_steps, **(validation or {})}
        line["seconds"] = now - self._begun
        line["images_per_second"] = images / max(now - self._mark_time, 1e-9)
        self._mark_step, self._mark_time = step, now
        self._writers.write(line)
        self.report.metrics(line)

    def validated(self, scores: dict[str, float], seconds: float) -> bool:
        """Write the scores of the validation split; return whether they are the best so far.

        Args:
          scores: "validation_accuracy" and "validation_loss", or those of another task.
          seconds: what the evaluation took, which does not count as training.
        """
        self._mark_time += seconds
        self.write_line(scores)
        progress = self.progress
        progress.evaluated = self.step
        progress.validation_accuracy = scores[f"validation_{self._score}"]
        best = progress.best_validation_accuracy
        if best is not None and progress.validation_accuracy <= best:
            return False
        progress.best_validation_accuracy = progress.validation_accuracy
        progress.best_step = self.step
        return True

    def keep_best(self, weights: Params) -> None:
        """Keep the weights of the best scores so far; the next save writes them to disk."""
        self._best_weights = weights

    def save(self, state: TrainState, data: dict[str, Any]) -> None:
        """Start to save.

        Args:
          state: at the record's step.
          data: position in the data.
        """
        progress = self.progress
        if self._best_weights is not None:
            score = {f"validation_{self._score}": progress.best_validation_accuracy}
            assert progress.best_step is not None
            self._checkpoints.save_best(progress.best_step, self._best_weights, score)
            self._best_weights = None
        progress.elapsed = time.monotonic() - self._begun
        progress.lines = self._lines.count if self._lines else None
        progress.rows = self._window.rows
        progress.data = data
        self._checkpoints.save(self.step, state, dataclasses.asdict(progress))
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def wait(self) -> None:
        """Wait until everything is on disk."""
        self._checkpoints.wait()

    @property
    def save_seconds(self) -> float:
        """How long the longest save of this start took."""
        return self._checkpoints.longest_save

    def finish(self, test: dict[str, float]) -> dict[str, Any]:
        """Write and return the result of a run that has taken all its steps.

        Args:
          test: the scores of the test split; empty if it was not read.
        """
        self.wait()
        progress = self.progress
        return self.write_result(
            {
                "status": "finished",
                f"validation_{self._score}": progress.validation_accuracy,
                f"best_validation_{self._score}": progress.best_validation_accuracy,
                "best_step": progress.best_step,
                **test,
            }
        )

    def write_result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Write `result.json`, with what every result holds; return its content."""
        outcome = {
            **outcome,
            "protocol": self.config.protocol,
            "steps": self.step,
            "parameters": self._num_params,
            **summary(
                read_jsonl(self.folder / "metrics.jsonl"),
                self._epoch_steps,
                score=self._score,
                means=self._means,
            ),
            "peak_memory_bytes": peak_memory(),
            "wall_seconds": time.monotonic() - self._begun,
            "seconds_to_first_step": self._seconds_to_first_step,
            "population": self._population,
        }
        if self._writes:
            write_json(self.folder / "result.json", outcome)
            if self.config.checkpoint.discard and outcome["status"] in ("finished", "diverged"):
                self.wait()
                shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        self.report.stop()
        return outcome


class Records:
    """The records of runs that train in step with one another, used like one `Record`.

    A run that diverges gets its result and leaves; the others keep their indices.

    Args:
      records: at the same step.

    Attributes:
      live: index -> record, of the runs that have not ended.
      outcomes: what the `result.json` of each holds; None while it has none.
    """

    def __init__(self, records: list[Record]):
        self.live = dict(enumerate(records))
        self.outcomes: list[dict[str, Any] | None] = [None] * len(records)

    def begin(self, total_steps: int) -> None:
        """Open the writers and start the clocks, just before the first step."""
        for record in self.live.values():
            record.begin(total_steps, population=len(self.live))

    def evaluation_is_due(self, *, last: bool) -> bool:
        """Whether to evaluate on the validation split before the next step."""
        return any(record.evaluation_is_due(last=last) for record in self.live.values())

    def line_is_due(self) -> bool:
        """Whether to write lines of metrics."""
        return any(record.line_is_due() for record in self.live.values())

    def save_is_due(self) -> bool:
        """Whether to save the states before the next step."""
        return any(record.save_is_due() for record in self.live.values())

    def first_step_dispatched(self) -> None:
        """Note the time: the programs are compiled."""
        for record in self.live.values():
            record.first_step_dispatched()

    def first_step_done(self) -> None:
        """Measure the speed from here on, without the compilation."""
        for record in self.live.values():
            record.first_step_done()

    def step_dispatched(self) -> None:
        """Count a step."""
        for record in self.live.values():
            record.step_dispatched()

    def add(self, rows: list[list[dict[str, float]]]) -> None:
        """Add the metrics of the latest steps: per step, one dict per run.

        Raises:
          Diverged: no run is left that has not diverged.
        """
        for index, record in list(self.live.items()):
            try:
                record.add([row[index] for row in rows])
            except Diverged as diverged:
                outcome = {"status": "diverged", "diverged_at_step": diverged.step}
                self.outcomes[index] = record.write_result(outcome)
                del self.live[index]
                if not self.live:
                    raise

    def write_line(self) -> None:
        """Write the lines of metrics of the steps since the last ones."""
        for record in self.live.values():
            record.write_line()

    def validated(self, scores: list[dict[str, float]], seconds: float) -> list[int]:
        """Write the scores of the validation split; return where they are the best so far."""
        live = self.live.items()
        return [index for index, record in live if record.validated(scores[index], seconds)]

    def keep_best(self, index: int, weights: Params) -> None:
        """Keep the weights of the best scores so far; the next save writes them to disk."""
        self.live[index].keep_best(weights)

    def save(
        self, state: Callable[[int], TrainState], data: Callable[[int], dict[str, Any]]
    ) -> None:
        """Start to save all runs, so that they resume at the same step.

        Args:
          state: index -> state of the run.
          data: index -> its position in the data.
        """
        for index, record in self.live.items():
            record.save(state(index), data(index))

    def wait(self) -> None:
        """Wait until everything is on disk."""
        for record in self.live.values():
            record.wait()

    @property
    def save_seconds(self) -> float:
        """How long it takes at most to save all runs, as far as this start has seen."""
        return sum(record.save_seconds for record in self.live.values())

    def finish(self, test: list[dict[str, float]] | None) -> None:
        """Write the results of the runs, which have taken all their steps.

        Args:
          test: the scores of the test split; None if it was not read.
        """
        for index, record in self.live.items():
            self.outcomes[index] = record.finish(test[index] if test else {})
