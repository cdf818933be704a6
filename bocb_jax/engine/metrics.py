"""Where the metrics of a run are written: `metrics.jsonl`, TensorBoard, Weights & Biases."""

import collections
import contextlib
import itertools
import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bocb_jax.config import TrainConfig
from bocb_jax.engine.outcome import RESUME
from bocb_jax.errors import UserError
from bocb_jax.storage.files import json_line, read_damaged_jsonl, write_atomically

logger = logging.getLogger(__name__)

# Metrics of a line that are means over its steps, of classification; other tasks have others.
MEANS = ("loss", "accuracy")


class Writer(Protocol):
    """Writes lines of metrics."""

    def write(self, line: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class JsonLines:
    """`metrics.jsonl`: one object per line, appended while the run trains.

    Where lines were lost before the run resumed, a line with "gap" says so.

    Args:
      path: the file.
      after: step that the run resumes from. Lines of later steps are removed, since they will be
        written again.
      count: how many lines there were up to that step; None if it is not known.
      means: names of the metrics that every line has.

    Attributes:
      count: lines written so far.
    """

    def __init__(
        self,
        path: Path,
        *,
        after: int = 0,
        count: int | None = None,
        means: Sequence[str] = MEANS,
    ):
        self._path = path
        lines = kept_lines(path, after, count, means)
        write_atomically(path, "".join(map(json_line, lines)))
        # Without a buffer, which would be written once more when a full disk closes the file.
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - closed in close()
        self.count = len(lines)

    def write(self, line: dict[str, Any]) -> None:
        content = json_line(line).encode()
        try:
            while content:
                content = content[self._file.write(content) :]
        except OSError as error:
            raise UserError(
                f"{self._path} cannot be written: {error.strerror}; {RESUME}."
            ) from error
        self.count += 1

    def close(self) -> None:
        self._file.close()


def kept_lines(
    path: Path, after: int, count: int | None, means: Sequence[str] = MEANS
) -> list[dict[str, Any]]:
    """Return the whole lines of `metrics.jsonl` up to a step, and one for each gap among them.

    Args:
      path: the file.
      after: the step.
      count: how many lines there must be; None if it is not known.
      means: names of the metrics that every line has.
    """
    kept: list[dict[str, Any]] = []
    damaged: list[int] = []  # for each damaged line, how many whole ones come before it
    lines = read_damaged_jsonl(path)
    for line, following in zip(lines, _following_steps(lines), strict=True):
        before = kept[-1]["step"] if kept else 0
        if line is None or not _is_whole(line, before, following, means):
            damaged.append(len(kept))
        elif line["step"] <= after:
            kept.append(line)
    holes = collections.Counter(place for place in damaged if place < len(kept))
    if after > (kept[-1]["step"] if kept else 0):
        holes[len(kept)] = max((count or 0) - len(kept) - holes.total(), 1)
    steps = [0, *(line["step"] for line in kept)]
    if count is not None and len(kept) < count and not holes:
        widths = [b - a for a, b in itertools.pairwise(steps)]
        holes[widths.index(max(widths))] = count - len(kept)
    for place in sorted(holes, reverse=True):
        first, lost = steps[place], holes[place]
        if place == len(kept):
            step = after
        else:  # lines are about as far apart as their neighbors
            step = first + (steps[place + 1] - first) * lost // (lost + 1)
        if step > first:
            gap = f"lines between step {first} and step {step} were lost"
            kept.insert(place, {"step": step, "gap": gap})
            logger.warning("%s is damaged: %s. The run itself is not affected.", path, gap)
    return kept


def _following_steps(lines: list[dict[str, Any] | None]) -> list[int | None]:
    """Return, for each line, the step of the next line that has one; None if there is none."""
    found: list[int | None] = []
    following = None
    for line in reversed(lines):
        found.append(following)
        step = _step(line)
        following = following if step is None else step
    return found[::-1]


def _is_whole(
    line: dict[str, Any], before: int, following: int | None, means: Sequence[str]
) -> bool:
    """Whether a line of `metrics.jsonl` has what each has, and its step lies between the others.

    Args:
      line: the line.
      before: step of the line kept before it.
      following: step of the next line; None if there is none.
      means: names of the metrics that it must have.
    """
    step = _step(line)
    if step is None or step <= before:
        return False
    if "gap" not in line and not all(_is_number(line.get(name, "")) for name in means):
        return False
    return following is None or step < following or following <= before


def _step(line: dict[str, Any] | None) -> int | None:
    step = line.get("step") if line else None
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _is_number(value: Any) -> bool:
    is_int = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    return value is None or is_int or isinstance(value, float)


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


def open_writers(
    config: TrainConfig, folder: Path, after: int, count: int | None, means: Sequence[str]
) -> tuple[JsonLines, list[Writer]]:
    """Open the writers that a config asks for; return `metrics.jsonl`, and all.

    Args:
      config: of the run.
      folder: where they write.
      after: step that the run resumes from.
      count: how many lines there are up to that step; None if it is not known.
      means: names of the metrics that every line has.
    """
    lines = JsonLines(folder / "metrics.jsonl", after=after, count=count, means=means)
    writers: list[Writer] = [lines]
    if config.log.tensorboard:
        writers.append(TensorBoard(folder / "tensorboard", after=after))
    if config.log.wandb:
        writers.append(WandB(config.log.wandb, folder, config.identity()))
    return lines, writers


class Writers:
    """Several writers, used like one."""

    def __init__(self, writers: Iterable[Writer]):
        self._writers = list(writers)

    def write(self, line: dict[str, Any]) -> None:
        for writer in self._writers:
            writer.write(line)

    def close(self) -> None:
        for writer in self._writers:
            with contextlib.suppress(OSError):  # of a full disk, which a write has reported
                writer.close()


class Window:
    """The metrics of the steps since the last line, averaged when the next line is due.

    The values of every step are kept on the host, in order, and saved with each checkpoint: a run
    that resumes in the middle of a window writes the same line as an uninterrupted one.

    Args:
      rows: of the steps so far.
      means: names of the metrics that are averaged.
    """

    def __init__(self, rows: Iterable[dict[str, float]] = (), means: Sequence[str] = MEANS):
        self.rows, self._means = [dict(row) for row in rows], means

    def add(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def flush(self) -> dict[str, float]:
        """Return the means of the loss and its like, and the other metrics at the last step."""
        averaged = {
            name: math.fsum(row[name] for row in self.rows) / len(self.rows) for name in self._means
        }
        line = {**self.rows[-1], **averaged}
        self.rows = []
        return line
