"""Where the metrics of a run are written: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from bocb_jax.config import TrainConfig
from bocb_jax.errors import UserError
from bocb_jax.storage.files import json_line, read_jsonl, write_atomically


class Writer(Protocol):
    """Writes lines of metrics."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object per line, appended while the run trains.

    Args:
      path: the file.
      after: step that the run resumes from. Lines of later steps are removed, since they will be
        written again.
    """

    def __init__(self, path: Path, *, after: int = 0):
        kept = [line for line in read_jsonl(path) if line["step"] <= after]
        write_atomically(path, "".join(map(json_line, kept)))
        self._file = open(path, "a", encoding="utf-8")  # noqa: SIM115 - closed in close()

    def write(self, line: dict[str, Any]) -> None:
        self._file.write(json_line(line))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


class TensorBoard:
    """TensorBoard events, written with tensorboardX."""

    def __init__(self, folder: Path, *, after: int = 0):
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise UserError(
                "log.tensorboard needs tensorboardX: pip install 'bocb-jax[tensorboard]'."
            ) from error
        self._writer = SummaryWriter(str(folder), purge_step=after + 1 if after else None)

    def write(self, line: dict[str, Any]) -> None:
        for name, value in line.items():
            if name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        self._writer.close()


class WandB:
    """Weights & Biases; the name of the run's folder is its id there, which resumes it."""

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        try:
            import wandb
        except ImportError as error:
            raise UserError("log.wandb needs wandb: pip install 'bocb-jax[wandb]'.") from error
        self._run = wandb.init(
            project=project, id=folder.name, dir=str(folder), config=config, resume="allow"
        )

    def write(self, line: dict[str, Any]) -> None:
        self._run.log({k: v for k, v in line.items() if k != "step"}, step=line["step"])

    def close(self) -> None:
        self._run.finish()


def open_writers(config: TrainConfig, folder: Path, after: int) -> list[Writer]:
    """Open the writers that a config asks for.

    Args:
      config: of the run.
      folder: where they write.
      after: step that the run resumes from.
    """
    writers: list[Writer] = [JsonLines(folder / "metrics.jsonl", after=after)]
    if config.log.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard", after=after))
    if config.log.wandb:
        writers.append(WandB(config.log.wandb, folder, config.identity()))
    return writers


class Writers:
    """Several writers, used like one."""

    def __init__(self, writers: Iterable[Writer]):
        self._writers = list(writers)

    def write(self, line: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(line)

    def close(self) -> None:
        for writer in self._writers:
            writer.close()


class Window:
    """The metrics of the steps since the last line, averaged when the next line is due.

    The values of every step are kept on the host, in order, and saved with each checkpoint: a run
    that resumes in the middle of a window writes the same line as an uninterrupted one.
    """

    def __init__(self, rows: Iterable[dict[str, float]] = ()):
        self.rows = [dict(row) for row in rows]

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def flush(self) -> dict[str, float]:
        """Return the means of loss and accuracy, and the other metrics at the last step."""
        averaged = {
            name: math.fsum(row[name] for row in self.rows) / len(self.rows)
            for name in ("loss", "accuracy")
        }
        line = {**self.rows[-1], **averaged}
        self.rows = []
        return line
