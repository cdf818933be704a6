"""What a run keeps: how far it is, its lines of metrics, its checkpoints, its result.

Nothing here trains. Whoever does, one run or several together, hands over what is to be kept; all
that a run decides follows from the number of steps taken and from `Progress`, which a checkpoint
holds, so that it goes on from one as if it had never stopped.
"""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import jax

from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.engine.memory import peak_memory
from bocb_jax.engine.metrics import Window, Writers, open_writers
from bocb_jax.engine.outcome import summary
from bocb_jax.errors import Diverged
from bocb_jax.storage.files import read_jsonl, write_json


@dataclasses.dataclass
class Progress:
    """How far a run is, beside its state; saved with every checkpoint."""

    elapsed: float = 0.0  # seconds, over all starts
    logged: int = 0  # step of the last line of metrics
    evaluated: int = 0  # step of the last look at the validation split
    validation_accuracy: float | None = None
    best_validation_accuracy: float | None = None
    best_step: int | None = None
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)  # since `logged`
    data: dict[str, Any] | None = None  # position in the data


class Record:
    """The record of one run.

    Args:
      config: the run's.
      folder: where everything is written.
      epoch_steps: steps of an epoch.
      batch_size: images of a step.
      parameters: how many numbers the backbone learns.
      report: a `console.Reporter`, which shows how the run goes on.
      started: when this start began, as `time.monotonic` has it.
    """

    def __init__(
        self, config, folder: Path, *, epoch_steps, batch_size, parameters, report, started
    ):
        self.config, self.folder, self.report = config, folder, report
        self._epoch_steps, self._batch_size, self._parameters = epoch_steps, batch_size, parameters
        self._started = started
        self._checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
        self._writers = Writers([])
        self._writes = jax.process_index() == 0
        self._best_weights = None  # on the devices, until the next save
        self._seconds_to_first_step = None
        self.step, self.progress = 0, Progress()

    def restore(self, abstract_state: Any) -> Any:
        """Goes to where an earlier start left the run; returns its state, or None."""
        restored = self._checkpoints.restore(abstract_state)
        if restored is None:
            return None
        self.step, self.progress = restored.step, Progress(**restored.progress)
        self._checkpoints.discard_after(self.step)
        return restored.state

    def begin(self, total_steps: int, population: int = 1) -> None:
        """The first step is next.

        Args:
          total_steps: of the run.
          population: how many runs train together with this one, itself counted.
        """
        self._population = population
        self._window = Window(self.progress.rows)
        if self._writes:
            self._writers = Writers(open_writers(self.config, self.folder, self.progress.logged))
        self.report.start(total_steps, self.step)
        now = time.monotonic()
        self._saved_step, self._saved_at = self.step, now
        self._begun = now - self.progress.elapsed
        self._mark_step, self._mark_time = self.step, now

    def close(self) -> None:
        """Lets go of files and threads."""
        self.report.stop()
        self._writers.close()
        self._checkpoints.close()

    # --- What is due ----------------------------------------------------------------------------

    def evaluation_is_due(self, *, last: bool) -> bool:
        """Whether the validation split is to be looked at before the next step."""
        every = self.config.log.evaluate_every_epochs * self._epoch_steps
        return self.step > self.progress.evaluated and (last or self.step % every == 0)

    def line_is_due(self) -> bool:
        """Whether a line of metrics is to be written."""
        return self.step > self.progress.logged and self.step % self.config.log.every_steps == 0

    def save_is_due(self) -> bool:
        """Whether the state is to be saved before the next step."""
        every = self.config.checkpoint.every_steps
        if self.step == self._saved_step:
            return False
        if every is not None:
            return self.step % every == 0
        if jax.process_count() > 1:  # the clocks of several processes do not agree
            return self.step % self._epoch_steps == 0
        return time.monotonic() - self._saved_at >= self.config.checkpoint.every_seconds

    # --- What is kept ---------------------------------------------------------------------------

    def first_step_begun(self) -> None:
        """The programs are compiled, and the devices are at it."""
        self._seconds_to_first_step = time.monotonic() - self._started

    def first_step_taken(self) -> None:
        """From here on the speed is that of training."""
        self._mark_step, self._mark_time = self.step + 1, time.monotonic()

    def add(self, rows: list[dict[str, float]]) -> None:
        """Takes over the metrics of the latest steps.

        Raises:
          Diverged: those of one are not finite; the line that ends with it is written.
        """
        for number, row in enumerate(rows, start=self.step - len(rows) + 1):
            self._window.add({"step": number, **row})
            if not (abs(row["loss"]) < float("inf") and row["grad_norm"] < float("inf")):
                self.write_line({})
                self.step = number
                raise Diverged(f"The loss was no longer finite at step {number}.", step=number)

    def write_line(self, validation: dict[str, float]) -> None:
        """Writes the line of the steps since the last one."""
        line = self._window.flush()
        step = self.progress.logged = line["step"]
        now = time.monotonic()
        images = (step - self._mark_step) * self._batch_size
        line |= {"epoch": step / self._epoch_steps, **validation, "seconds": now - self._begun}
        line["images_per_second"] = images / max(now - self._mark_time, 1e-9)
        self._mark_step, self._mark_time = step, now
        self._writers.write(line)
        self.report.metrics(line)

    def validated(self, scores: dict[str, float], seconds: float) -> bool:
        """Takes over the scores of the validation split; returns whether they are the best yet.

        Args:
          scores: "validation_accuracy" and "validation_loss".
          seconds: that the evaluation took: images/s is that of training.
        """
        self._mark_time += seconds
        self.write_line(scores)
        progress = self.progress
        progress.evaluated = self.step
        progress.validation_accuracy = scores["validation_accuracy"]
        best = progress.best_validation_accuracy
        if best is not None and progress.validation_accuracy <= best:
            return False
        progress.best_validation_accuracy = progress.validation_accuracy
        progress.best_step = self.step
        return True

    def keep_best(self, weights: Any) -> None:
        """The weights of the best scores yet; they reach the disk with the next save."""
        self._best_weights = weights

    def save(self, state: Any, data: dict[str, Any]) -> None:
        """Starts to save.

        Args:
          state: of the step that the record is at.
          data: position in the data.
        """
        progress = self.progress
        if self._best_weights is not None:
            accuracy = {"validation_accuracy": progress.best_validation_accuracy}
            self._checkpoints.save_best(progress.best_step, self._best_weights, accuracy)
            self._best_weights = None
        progress.elapsed = time.monotonic() - self._begun
        progress.rows = self._window.rows
        progress.data = data
        self._checkpoints.save(self.step, state, dataclasses.asdict(progress))
        self._saved_step, self._saved_at = self.step, time.monotonic()

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        self._checkpoints.wait()

    def finished(self, test: dict[str, float]) -> dict[str, Any]:
        """Writes and returns the result of a run that has taken all its steps."""
        self.wait()
        progress = self.progress
        return self.write_result(
            {
                "status": "finished",
                "validation_accuracy": progress.validation_accuracy,
                "best_validation_accuracy": progress.best_validation_accuracy,
                "best_step": progress.best_step,
                **test,
            }
        )

    def write_result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        """Writes `result.json`; returns what it holds."""
        outcome = {
            **outcome,
            "protocol": self.config.protocol,
            "steps": self.step,
            "parameters": self._parameters,
            **summary(read_jsonl(self.folder / "metrics.jsonl"), self._epoch_steps),
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
