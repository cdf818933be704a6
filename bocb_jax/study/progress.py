"""What a person sees of a sweep: the grid filling up on a terminal, plain lines elsewhere."""

import contextlib
import time
from typing import Any

from rich.live import Live
from rich.table import Table
from rich.text import Text

from bocb_jax.console import console, duration
from bocb_jax.study.plan import Cell, Outcome, Planned


class Progress:
    """Follows a sweep and counts; shows nothing.

    Args:
      cells: the pairs.
      outcomes: of the runs that had ended before.
      workers: number of runs at a time.
    """

    def __init__(self, cells: list[Cell], outcomes: dict[str, Outcome], workers: int):
        self.cells, self.outcomes, self.workers = cells, outcomes, workers
        self._begun = time.monotonic()
        self._seconds: dict[str, list[float]] = {}  # of the runs that ended, by backbone
        self.running: dict[str, Planned] = {}
        self.counted = {id(cell): self._count(cell) for cell in cells}

    def _count(self, cell: Cell) -> tuple[int, int, float | None]:
        planned = cell.planned(self.outcomes)
        ended = [self.outcomes[p.run] for p in planned if p.run in self.outcomes]
        scores = [o.final for o in ended if o.status == "finished" and o.final is not None]
        return len(ended), max(len(planned), cell.size), max(scores, default=None)

    @property
    def done(self) -> int:
        """Runs that have ended."""
        return sum(done for done, _, _ in self.counted.values())

    @property
    def total(self) -> int:
        """Runs planned so far."""
        return sum(total for _, total, _ in self.counted.values())

    def seconds_left(self) -> float | None:
        """Return an estimate from how long each backbone's runs took; None before the first."""
        known = [s for seconds in self._seconds.values() for s in seconds]
        if not known:
            return None
        mean, left = sum(known) / len(known), 0.0
        for cell in self.cells:
            done, total, _ = self.counted[id(cell)]
            own = self._seconds.get(cell.pair.label)
            left += (total - done) * (sum(own) / len(own) if own else mean)
        return left / max(1, min(self.workers, self.total - self.done))

    def started(self, cell: Cell, planned: Planned) -> None:
        """Note that a worker has started a run."""
        self.running[planned.run] = planned

    def ended(self, cell: Cell, planned: Planned, outcome: Outcome, seconds: float) -> None:
        """Note that a run has ended, and how long it took."""
        self.running.pop(planned.run, None)
        self._seconds.setdefault(cell.pair.label, []).append(seconds)
        self.counted[id(cell)] = self._count(cell)

    def lost(self, planned: Planned, reason: str, starts: int) -> None:
        """Note that a run's worker died, and that the run will be started again.

        Args:
          planned: the run.
          reason: why the worker died, as a sentence.
          starts: how often in a row that happened without progress.
        """
        self.running.pop(planned.run, None)

    def tick(self) -> None:
        """Note that some time has passed."""

    def headline(self) -> str:
        """Return the runs done, and the time taken and left."""
        left = self.seconds_left()
        taken = duration(time.monotonic() - self._begun)
        return f"{self.done}/{self.total} runs  {taken}" + (
            f"  {duration(left)} left" if left is not None else ""
        )


class Lines(Progress):
    """Prints one line per run."""

    def ended(self, cell: Cell, planned: Planned, outcome: Outcome, seconds: float) -> None:
        """Print how the run ended."""
        super().ended(cell, planned, outcome, seconds)
        how = outcome.status
        if outcome.status == "finished" and outcome.final is not None:
            how = f"validation {outcome.final:.1%}"
        pair, point = cell.pair, planned.point
        console.print(
            f"{self.headline()}  {planned.phase}: {pair.label} {pair.optimizer} "
            f"lr {point.lr:g} wd {point.weight_decay:g} seed {planned.seed}: {how}",
            markup=False,
            soft_wrap=True,
        )

    def lost(self, planned: Planned, reason: str, starts: int) -> None:
        """Print why the worker died."""
        super().lost(planned, reason, starts)
        _say_lost(planned, reason, starts)


class Grid(Progress):
    """Draws the table of pairs: runs ended, and the best validation accuracy."""

    def __enter__(self) -> "Grid":
        self._live = Live(self._draw(), console=console, refresh_per_second=2, transient=True)
        self._live.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._live.__exit__(*exception)

    def lost(self, planned: Planned, reason: str, starts: int) -> None:
        """Print above the table why the worker died."""
        super().lost(planned, reason, starts)
        _say_lost(planned, reason, starts)

    def tick(self) -> None:
        """Draw the table again."""
        self._live.update(self._draw())

    def _draw(self) -> Table:
        backbones = list(dict.fromkeys(cell.pair.label for cell in self.cells))
        optimizers = list(dict.fromkeys(cell.pair.optimizer for cell in self.cells))
        by_pair = {(c.pair.label, c.pair.optimizer): self.counted[id(c)] for c in self.cells}
        # As many columns as the terminal holds; `results.parquet` has the rest.
        columns = max(1, (console.width - 16) // 10)
        table = Table(title=self.headline(), caption=self._caption(), pad_edge=False)
        table.add_column("")
        for backbone in backbones[:columns]:
            table.add_column(backbone.replace("_mini", ""), overflow="fold", justify="right")
        for optimizer in optimizers[: max(1, console.height - 8)]:
            cells = (by_pair.get((b, optimizer)) for b in backbones[:columns])
            table.add_row(optimizer, *map(_cell_text, cells))
        return table

    def _caption(self) -> str:
        return "  ".join(
            f"{p.config['label']} {p.config['opt']} lr {p.point.lr:g}"
            for p in list(self.running.values())[:4]
        )


def show_progress(
    cells: list[Cell], outcomes: dict[str, Outcome], workers: int, kind: str
) -> contextlib.AbstractContextManager[Progress]:
    """Return the progress display for where the output goes.

    Args:
      cells: the pairs.
      outcomes: of the runs that had ended before.
      workers: number of runs at a time.
      kind: "grid", "lines", "none", or "auto" for a grid on a terminal and lines elsewhere.
    """
    if kind == "grid" or (kind == "auto" and console.is_terminal):
        return Grid(cells, outcomes, workers)
    progress = Progress if kind == "none" else Lines
    return contextlib.nullcontext(progress(cells, outcomes, workers))


def _say_lost(planned: Planned, reason: str, starts: int) -> None:
    more = f"; it has lost {starts} workers without progress" if starts > 1 else ""
    console.print(
        f"{planned.run}: {reason} The run is started again from its last save{more}.",
        markup=False,
        soft_wrap=True,
    )


def _cell_text(counted: tuple[int, int, float | None] | None) -> Text:
    if counted is None:
        return Text("")
    done, total, best = counted
    if done == 0:
        return Text("·", style="dim")
    shown = "-" if best is None else f"{100 * best:.1f}"
    return Text(
        shown if done >= total else f"{shown} {done}/{total}", style="bold" if done >= total else ""
    )
