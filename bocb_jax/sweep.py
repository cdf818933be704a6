"""Many runs: `python -m bocb_jax.sweep experiments/quickstart.toml`.

Backbones x optimizers x learning rates x weight decays x seeds, as a study says, on all devices of
this machine or of a Ray cluster. The same command resumes a sweep that was stopped, and leaves the
same table as if it had never stopped. This process never loads JAX; its workers do.

Exit codes: 0 all runs have ended (some may have failed: the table says which), 1 the budget is
spent, or with --preflight a pair does not fit, 2 a setting is wrong, 130 or 143 interrupted; 143
too when the time of --max-minutes is over.
"""

import argparse
import contextlib
import dataclasses
import math
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from bocb_jax import results
from bocb_jax.checked import CountOrZero, FilePath, Minutes, Workers
from bocb_jax.command_line import Parser, value_of
from bocb_jax.config import difference
from bocb_jax.console import console, duration
from bocb_jax.errors import UserError
from bocb_jax.run_files import read_config
from bocb_jax.storage.files import write_json
from bocb_jax.storage.lease import hold, owner_of
from bocb_jax.storage.lock import only_writer
from bocb_jax.storage.remote import Workdir, is_url
from bocb_jax.study.estimate import estimate
from bocb_jax.study.grouping import Grouping, parse_population
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.pool import LocalPool, Pool, share_out
from bocb_jax.study.progress import show_progress
from bocb_jax.study.resolve import resolve_study
from bocb_jax.study.scheduler import Counts, Scheduler, read_outcome
from bocb_jax.study.spec import Study, overrides_of, read_study


def main(arguments: list[str]) -> int:
    """Run, or estimate, the sweep that the command line asks for; return the exit code."""
    options, overrides = parse(arguments)
    study = read_study(options.study, overrides)
    if options.preflight:
        return preflight(study, options)
    if options.dry_run:
        return dry_run(study, options)
    return sweep(
        study,
        options.workdir,
        workers=options.workers,
        cluster=options.cluster,
        retry=options.retry == "failed",
        retries=options.retries,
        progress=options.progress,
        population=parse_population(options.population),
        max_minutes=options.max_minutes,
    )


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict[str, Any]]:
    """Return the options, and the settings of the study that the command line changes."""
    parser = Parser(
        prog="bocb sweep",
        description="Train every run of a study, and tabulate them in WORKDIR/results.parquet.",
        epilog="Any setting of the study can be changed: --search.trials 9 --train.epochs 5 "
        "--backbones vit_mini,resnet_mini --final.seeds '[0, 1, 2]'",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("study", type=value_of(FilePath), help="a TOML file, such as experiments/quickstart.toml")
    add(
        "--workdir",
        type=value_of(FilePath),
        default="runs",
        help="folder of the runs, or a URL (runs)",
    )
    add("--dry-run", action="store_true", help="say how many runs, device-hours and gigabytes")
    add("--quick", action="store_true", help="with --dry-run: measure nothing")
    add(
        "--preflight",
        metavar="TOPOLOGY",
        help="compile for chips such as v5e:4x4; say whether all pairs fit, and what all take",
    )
    add(
        "--workers",
        type=value_of(Workers),
        help="runs at a time; default: one per device or CPU core; of --preflight: programs "
        "compiled at a time (1)",
    )
    add("--cluster", metavar="ADDRESS", help="a Ray cluster; auto: the one there is, or a new one")
    add("--retry", choices=["failed"], help="train again what crashed, timed out or lacked memory")
    add(
        "--retries",
        type=value_of(CountOrZero),
        default=3,
        help="restarts of a run whose worker dies, in a row (3)",
    )
    add("--population", default="off", metavar="auto|off|N", help="train runs of a pair together, "
        "at most N; auto: measure each pair, and do so where it is faster (off)")  # fmt: skip
    add(
        "--max-minutes",
        type=value_of(Minutes),
        help="save all runs and stop after so many minutes, as for SIGTERM",
    )
    add("--progress", choices=["auto", "grid", "lines", "none"], default="auto")
    options, rest = parser.parse_known_args(arguments)
    if options.quick and not options.dry_run:
        raise UserError("--quick needs --dry-run; a sweep itself cannot be shortened.")
    return options, overrides_of(rest)


def sweep(
    study: Study,
    workdir: str | Path,
    *,
    workers: int | None = None,
    cluster: str | None = None,
    retry: bool = False,
    retries: int = 3,
    progress: str = "auto",
    population: str | int = "off",
    max_minutes: float | None = None,
) -> int:
    """Train every run of a study that has not ended yet, and write the table of results.

    Args:
      study: the study.
      workdir: folder of the runs and of the table; a path or a URL.
      workers: runs at a time; None for one per device or CPU core.
      cluster: address of a Ray cluster, or "auto"; None for this machine alone.
      retry: whether runs that failed, other than by diverging, are trained again.
      retries: see `Scheduler`.
      progress: see `show_progress`.
      population: which runs train together; see `Grouping`.
      max_minutes: how long to go on before all runs are saved and left; None for no limit.

    Returns:
      The exit code.

    Raises:
      UserError: a setting is wrong, or the folder is in use or holds something else.
    """
    began = time.monotonic()
    if cluster and not is_url(workdir):
        workdir = Path(workdir).absolute()  # workers on other nodes have other working directories
    root = Workdir.at(workdir, study.train.get("scratch"))
    cells = plan(study, root.where)
    with claim(root):
        root.pull()
        write_json(root.path / "study.json", study.to_dict())
        root.publish("study.json")
        outcomes = scan(cells, root.path, retry=retry)
        _say_start(study, cells, len(outcomes), root)
        with (
            contextlib.closing(_open_pool(cluster, workers, root.path / ".workers")) as pool,
            _noting_signals(math.inf if max_minutes is None else began + 60 * max_minutes) as stop,
            show_progress(cells, outcomes, pool.size, progress) as shown,
        ):
            scheduler = Scheduler(
                cells,
                outcomes,
                pool,
                shown,
                workdir=root,
                retries=retries,
                minutes_per_run=study.budget.minutes_per_run,
                device_seconds=study.budget.device_hours and 3600 * study.budget.device_hours,
                grouping=Grouping(population, root),
            )
            complete = scheduler.run(stop.is_asked)
        table = None
        if any((root.path / run).is_dir() for run in outcomes):
            results.save(results.read_runs(root.path), root.path)
            root.publish(results.FILE)
            table = f"{root.where}/{results.FILE}"
        _say_summary(scheduler.counts, outcomes, table, time.monotonic() - began)
    if complete:
        return 0
    console.print(f"{stop.reason}Stopped; the same command resumes the sweep.", markup=False)
    return 128 + stop.signal if stop.signal else 1


def plan(study: Study, workdir: str | Path, *, stand_in: bool = False) -> list[Cell]:
    """Return the cells of a study.

    Args:
      study: the study.
      workdir: folder of the runs; a path or a URL.
      stand_in: see `resolve_study`.

    Raises:
      UserError: a name is unknown, or there are more runs than the budget allows.
    """
    cells = [Cell(pair, study, workdir) for pair in resolve_study(study, stand_in=stand_in)]
    runs, limit = sum(cell.size for cell in cells), study.budget.runs
    if limit is not None and runs > limit:
        raise UserError(
            f"{study.name} plans {runs} runs ({len(cells)} pairs of {cells[0].trials} trials and "
            f"{len(study.final.seeds)} final runs), and budget.runs is {limit}. Name fewer pairs "
            "or trials, or raise the budget."
        )
    return cells


@contextlib.contextmanager
def claim(workdir: Workdir) -> Iterator[None]:
    """Make the folder of runs, and keep other sweeps out of it inside the block.

    Raises:
      FolderInUse: another sweep is writing there.
    """
    taken = (
        f"Another sweep is writing to {workdir.where}; wait for it, or choose another --workdir."
    )
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_writer(workdir.path, ".sweep.lock", taken))
        if workdir.store is not None:
            owner = owner_of(workdir.path)
            stack.enter_context(hold(workdir.store, ".sweep.lock", owner, taken))
        yield


def scan(cells: list[Cell], workdir: Path, *, retry: bool = False) -> dict[str, Outcome]:
    """Return how those runs of a study ended that have ended, by name.

    Args:
      cells: the pairs.
      workdir: folder of the runs.
      retry: whether to leave out runs that failed, other than by diverging.

    Raises:
      UserError: a run directory holds another run than its name says.
    """
    outcomes: dict[str, Outcome] = {}
    for cell in cells:
        known = -1
        while known < len(outcomes):  # what is planned next depends on what has ended
            known = len(outcomes)
            for planned in cell.planned(outcomes):
                folder = workdir / planned.run
                if planned.run in outcomes or not folder.is_dir():
                    continue
                stored = read_config(folder)
                if stored is not None:
                    differing = difference(stored["config"], planned.identity)
                    if differing:
                        raise UserError(
                            f"{folder / 'config.json'} does not belong to its folder "
                            f"({'; '.join(differing)}); was it edited? Move the folder away."
                        )
                outcome = read_outcome(folder)
                failed = outcome and outcome.status not in ("finished", "diverged")
                if outcome and not (retry and failed):
                    outcomes[planned.run] = outcome
    return outcomes


def dry_run(study: Study, options: argparse.Namespace) -> int:
    """Say what a sweep would take; train nothing but a few steps of each backbone."""
    root = Workdir.at(options.workdir, study.train.get("scratch"))
    cells = plan(study, root.where, stand_in=True)
    root.pull()
    outcomes = scan(cells, root.path)
    said = estimate(study, cells, outcomes, root, options.workers, quick=options.quick)
    console.print(said, markup=False, soft_wrap=True)
    return 0


def preflight(study: Study, options: argparse.Namespace) -> int:
    """Compile every pair of a study for other devices, and say what it takes there.

    Returns:
      The exit code: 0 if every pair fits as the study asks for it, else 1.
    """
    cells = plan(study, options.workdir, stand_in=True)
    from bocb_jax.preflight.study import check_study  # loads JAX, which a sweep itself must not

    path = Path(f"preflight-{Path(options.study).stem}.md")
    jobs = options.workers or 1
    return 0 if check_study(study, cells, options.preflight, path=path, jobs=jobs) else 1


def _open_pool(cluster: str | None, workers: int | None, logs: Path) -> Pool:
    if cluster:
        from bocb_jax.study.cluster import RayPool

        return RayPool(cluster, logs, workers)
    return LocalPool(share_out(workers), logs)


@dataclasses.dataclass
class _Stop:
    """The first signal that came, or SIGTERM once the deadline has passed."""

    deadline: float  # on the clock of `time.monotonic()`
    signal: int | None = None
    reason: str = ""  # sentence for the user where it was the deadline

    def is_asked(self) -> bool:
        if self.signal is None and time.monotonic() >= self.deadline:
            self.signal, self.reason = signal.SIGTERM, "The time of --max-minutes is over. "
        return self.signal is not None


@contextlib.contextmanager
def _noting_signals(deadline: float) -> Iterator[_Stop]:
    """Note SIGINT and SIGTERM inside the block; the second one acts as it always does."""
    stop = _Stop(deadline)
    before: dict[int, Any] = {}

    def note(number: int, frame: FrameType | None) -> None:
        del frame
        stop.signal = number
        signal.signal(number, before[number])

    try:
        for awaited in (signal.SIGINT, signal.SIGTERM):
            before[awaited] = signal.signal(awaited, note)
    except ValueError:  # not in the main thread: the program around us handles signals
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_start(study: Study, cells: list[Cell], ended: int, workdir: Workdir) -> None:
    runs = sum(cell.size for cell in cells)
    console.print(
        f"{study.name}: {len(cells)} pairs, {runs} runs"
        f"{f', {ended} of them ended before' if ended else ''}. {workdir.where}",
        markup=False,
    )


def _say_summary(
    counts: Counts, outcomes: dict[str, Outcome], table: str | None, seconds: float
) -> None:
    by_status: dict[str, int] = {}
    for outcome in outcomes.values():
        by_status[outcome.status] = by_status.get(outcome.status, 0) + 1
    ended = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in by_status.items())
    console.print(
        f"{len(outcomes)} runs have ended ({ended or 'none'}), {counts.ended} of them now, in "
        f"{duration(seconds)}.\n"
        f"For {len(counts.pairs)} pairs XLA compiled {counts.compiled_steps} "
        f"({counts.compiled.total()} programs in all); "
        f"{counts.loaded} programs came from the cache." + (f"\n{table}" if table else ""),
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
