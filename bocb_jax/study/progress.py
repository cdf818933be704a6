"""What a person sees of a sweep: the grid filling up on a terminal, plain lines elsewhere."""

import contextlib
import time

from rich.live import Live
from rich.table import Table
from rich.text import Text

from bocb_jax.console import console, duration
from bocb_jax.study.plan import Cell, Outcome, Planned


class Progress:
    """Counts, and the time left; the parent of the boards.

    Args:
      cells: the pairs.
      outcomes: of the runs that have ended before.
      workers: how many runs go on at a time.
    """

    def __init__(self, cells: list[Cell], outcomes: dict[str, Outcome], workers: int):
        self.cells, self.outcomes, self.workers = cells, outcomes, workers
        self._begun = time.monotonic()
        self._seconds: dict[str, list[float]] = {}  # of the runs of a backbone
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
        """Runs as far as is known."""
        return sum(total for _, total, _ in self.counted.values())

    def seconds_left(self) -> float | None:
        """From how long the runs of each backbone took here; None before the first has ended."""
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
        """A worker has begun with a run."""
        self.running[planned.run] = planned

    def ended(self, cell: Cell, planned: Planned, outcome: Outcome, seconds: float) -> None:
        """A run has ended."""
        self.running.pop(planned.run, None)
        self._seconds.setdefault(cell.pair.label, []).append(seconds)
        self.counted[id(cell)] = self._count(cell)

    def lost(self, planned: Planned, how: str, starts: int) -> None:
        """A run's worker died, and the run will be started again."""
        self.running.pop(planned.run, None)

    def tick(self) -> None:
        """Some time has passed."""

    def headline(self) -> str:
        """Runs done, time taken and left."""
        left = self.seconds_left()
        taken = duration(time.monotonic() - self._begun)
        return f"{self.done}/{self.total} runs  {taken}" + (
            f"  {duration(left)} left" if left is not None else ""
        )


class Lines(Progress):
    """One line a run."""

    def ended(self, cell, planned, outcome, seconds):
        """A run has ended."""
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

    def lost(self, planned, how, starts):
        """A run's worker died, and the run will be started again."""
        super().lost(planned, how, starts)
        _say_lost(planned, how, starts)


def _say_lost(planned: Planned, how: str, starts: int) -> None:
    more = f"; it has lost {starts} workers without getting on" if starts > 1 else ""
    console.print(
        f"{planned.run}: {how} The run is started again from its last save{more}.",
        markup=False,
        soft_wrap=True,
    )


class Grid(Progress):
    """The table of pairs: runs ended, and the best validation accuracy."""

    def __enter__(self):
        self._live = Live(self._draw(), console=console, refresh_per_second=2, transient=True)
        self._live.__enter__()
        return self

    def __exit__(self, *exception):
        self._live.__exit__(*exception)

    def lost(self, planned, how, starts):
        """A run's worker died, and the run will be started again; said above the table."""
        super().lost(planned, how, starts)
        _say_lost(planned, how, starts)

    def tick(self):
        """Draws anew."""
        self._live.update(self._draw())

    def _draw(self) -> Table:
        backbones = list(dict.fromkeys(cell.pair.label for cell in self.cells))
        optimizers = list(dict.fromkeys(cell.pair.optimizer for cell in self.cells))
        by_pair = {(c.pair.label, c.pair.optimizer): self.counted[id(c)] for c in self.cells}
        # As many columns as the terminal has room for; the rest stands in the file.
        room = max(1, (console.width - 16) // 10)
        table = Table(title=self.headline(), caption=self._caption(), pad_edge=False)
        table.add_column("")
        for backbone in backbones[:room]:
            table.add_column(backbone.replace("_mini", ""), overflow="fold", justify="right")
        for optimizer in optimizers[: max(1, console.height - 8)]:
            cells = (by_pair.get((b, optimizer)) for b in backbones[:room])
            table.add_row(optimizer, *map(_cell_text, cells))
        return table

    def _caption(self) -> str:
        return "  ".join(f"{p.settings['label']} {p.settings['opt']} lr {p.point.lr:g}"
                         for p in list(self.running.values())[:4])  # fmt: skip


def _cell_text(counted: tuple[int, int, float | None] | None) -> Text:
    if counted is None:
        return Text("")
    done, total, best = counted
    if done == 0:
        return Text("·", style="dim")
    shown = "-" if best is None else f"{100 * best:.1f}"
    return Text(shown if done >= total else f"{shown} {done}/{total}",
                style="bold" if done >= total else "")  # fmt: skip


def board(cells: list[Cell], outcomes: dict[str, Outcome], workers: int, kind: str):
    """The board for where the output goes; a context manager.

    Args:
      cells: the pairs.
      outcomes: of the runs that have ended before.
      workers: how many runs go on at a time.
      kind: "grid", "lines", "none", or "auto" for a grid on a terminal and lines elsewhere.
    """
    if kind == "grid" or (kind == "auto" and console.is_terminal):
        return Grid(cells, outcomes, workers)
    shown = Progress if kind == "none" else Lines
    return contextlib.nullcontext(shown(cells, outcomes, workers))
