"""The terminal: where messages and results go, and the progress of a run."""

import sys
import time
from typing import Any, Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class _Output(Console):
    """A console that lets the caller see a closed pipe; Rich itself would exit with code 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


console = _Output(stderr=True, highlight=False)  # what is said while a command works
output = _Output(highlight=False)  # what a command was asked for


class Reporter(Protocol):
    """Shows the progress of a run with a known number of steps."""

    def start(self, total: int, done: int) -> None: ...

    def step(self, done: int) -> None: ...

    def metrics(self, line: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


def reporter(kind: str) -> Reporter:
    """Return a reporter: "bar", "lines", "none", or "auto" for a bar on a terminal, else lines."""
    if kind == "auto":
        kind = "bar" if console.is_terminal else "lines"
    reporters: dict[str, type[Reporter]] = {"bar": _Bar, "lines": _Lines, "none": _Silent}
    return reporters[kind]()


class _Bar(Reporter):
    """A progress bar with loss, accuracy, images/s and the time left."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[shown]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            refresh_per_second=4,
        )
        self._validation = ""

    def start(self, total: int, done: int) -> None:
        self._task = self._progress.add_task("train", total=total, completed=done, shown="")
        self._progress.start()

    def step(self, done: int) -> None:
        self._progress.update(self._task, completed=done)

    def metrics(self, line: dict[str, Any]) -> None:
        self._validation = _validation(line) or self._validation
        shown = (
            f"loss {line['loss']:.3f}{_accuracy(line)}{self._validation}"
            f"  {line['images_per_second']:,.0f} images/s"
        )
        self._progress.update(self._task, shown=shown)

    def say(self, text: str) -> None:
        console.print(text, markup=False)

    def stop(self) -> None:
        self._progress.stop()


class _Lines(Reporter):
    """One line per evaluation, and at most one every ten seconds in between."""

    def __init__(self) -> None:
        self._said = 0.0  # time of the last line

    def start(self, total: int, done: int) -> None:
        self._total, self._first, self._begin = total, done, time.monotonic()

    def step(self, done: int) -> None:
        self._done = done

    def metrics(self, line: dict[str, Any]) -> None:
        now = time.monotonic()
        if not _validation(line) and now - self._said < 10:
            return
        self._said = now
        left = (self._total - line["step"]) * (now - self._begin)
        left /= max(line["step"] - self._first, 1)
        text = f"step {line['step']}/{self._total}  epoch {line['epoch']:.1f}"
        text += f"  loss {line['loss']:.4f}{_accuracy(line)}{_validation(line)}"
        text += f"  {line['images_per_second']:,.0f} images/s  {duration(left)} left"
        self.say(text)

    def say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def stop(self) -> None:
        pass


class _Silent(Reporter):
    """Shows nothing."""

    def start(self, total: int, done: int) -> None: ...

    def step(self, done: int) -> None: ...

    def metrics(self, line: dict[str, Any]) -> None: ...

    def say(self, text: str) -> None: ...

    def stop(self) -> None: ...


def duration(seconds: float) -> str:
    """Return a time as text: 1:02:03 or 2:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _accuracy(line: dict[str, Any]) -> str:
    return f"  accuracy {line['accuracy']:.1%}" if "accuracy" in line else ""


def _validation(line: dict[str, Any]) -> str:
    """Return the score of a line with an evaluation; empty for any other."""
    if "validation_accuracy" in line:
        return f"  validation {line['validation_accuracy']:.1%}"
    if "validation_AP" in line:
        return f"  validation AP {line['validation_AP']:.1%}, AP50 {line['validation_AP50']:.1%}"
    return ""
