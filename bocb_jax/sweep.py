"""Many runs: `python -m bocb_jax.sweep experiments/quickstart.toml`.

Backbones x optimizers x learning rates x weight decays x seeds, as a study says, on all the
devices of this machine or of a Ray cluster. The same command goes on where the sweep was stopped,
and leaves the same table as if it had never stopped. This process never loads JAX: the workers do.

Exit codes: 0 all runs have ended (some may have failed: the table says so), 1 the budget was spent
before, 2 a setting is wrong, 130 or 143 interrupted.
"""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from bocb_jax import results
from bocb_jax.config import difference
from bocb_jax.console import console, duration
from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json, write_json
from bocb_jax.storage.lease import hold, owner_of
from bocb_jax.storage.lock import only_writer
from bocb_jax.storage.remote import Workdir, is_url
from bocb_jax.study.estimate import estimate
from bocb_jax.study.grouping import Populations, population_size
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.pool import LocalPool, Pool, share_out
from bocb_jax.study.progress import board
from bocb_jax.study.resolve import look_up
from bocb_jax.study.scheduler import Counts, Scheduler, read_outcome
from bocb_jax.study.spec import Study, overrides_of, read_study

FAILED = ("out_of_memory", "crashed", "timed_out", "failed")


def main(arguments: list[str]) -> int:
    """Run, or estimate, the sweep that the command line asks for; return the exit code."""
    options, overrides = parse(arguments)
    study = read_study(options.study, overrides)
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
        population=population_size(options.population),
    )


def parse(arguments: list[str]) -> tuple[argparse.Namespace, dict]:
    """The options, and the settings of the study that the command line changes."""
    parser = argparse.ArgumentParser(
        prog="bocb sweep",
        description="Trains what a study names, and leaves WORKDIR/results.parquet.",
        epilog="Any setting of the study can be changed: --search.trials 9 --train.epochs 5 "
        "--backbones vit_mini,resnet_mini --final.seeds '[0, 1, 2]'",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("study", help="a TOML file, such as experiments/quickstart.toml")
    add("--workdir", default="runs", help="where the folders of the runs go, or a URL (runs)")
    add("--dry-run", action="store_true", help="say how many runs, device-hours and gigabytes")
    add("--quick", action="store_true", help="with --dry-run: measure nothing")
    add("--workers", type=int, help="runs at a time; default: one for each device or CPU core")
    add("--cluster", metavar="ADDRESS", help="a Ray cluster; auto: the one there is, or a new one")
    add("--retry", choices=["failed"], help="train again what crashed, timed out or lacked memory")
    add("--retries", type=int, default=3, help="starts of a run whose worker dies, in a row (3)")
    add("--population", default="off", metavar="auto|off|N", help="train runs of a pair together, "
        "at most N; auto: measure each pair, and do so where it is faster (off)")  # fmt: skip
    add("--progress", choices=["auto", "grid", "lines", "none"], default="auto")
    options, rest = parser.parse_known_args(arguments)
    if options.quick and not options.dry_run:
        raise UserError("--quick is for --dry-run; a sweep takes the time that it takes.")
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
) -> int:
    """Trains every run of a study that has not ended yet, and writes the table of results.

    Args:
      study: what to go through.
      workdir: where the folders of the runs and the table go; a path or a URL.
      workers: runs at a time.
      cluster: address of a Ray cluster, or "auto"; None for this machine alone.
      retry: whether runs that failed for another reason than divergence are trained again.
      retries: see `Scheduler`.
      progress: see `board`.
      population: which runs train together, see `Populations`.

    Returns:
      The exit code.

    Raises:
      UserError: the study cannot be, or the folder is in use or holds something else.
    """
    began = time.monotonic()
    if cluster and not is_url(workdir):
        workdir = Path(workdir).absolute()  # the other nodes are elsewhere
    place = Workdir.at(workdir, study.train.get("scratch"))
    cells = plan(study, place.where)
    workdir = place.path
    with claim(place):
        place.pull()
        write_json(workdir / "study.json", study.to_dict())
        place.publish("study.json")
        outcomes = scan(cells, workdir, retry=retry)
        before = len(outcomes)
        runs = sum(cell.size for cell in cells)
        console.print(
            f"{study.name}: {len(cells)} pairs, {runs} runs"
            f"{f', {before} of them ended before' if before else ''}. {place.where}",
            markup=False,
        )
        pool: Pool
        if cluster:
            from bocb_jax.study.cluster import RayPool

            pool = RayPool(cluster, workdir / ".workers", workers)
        else:
            pool = LocalPool(share_out(workers), workdir / ".workers")
        with (
            contextlib.closing(pool),
            _stopping() as stop,
            board(cells, outcomes, pool.size, progress) as shown,
        ):
            scheduler = Scheduler(
                cells,
                outcomes,
                pool,
                shown,
                workdir=place,
                retries=retries,
                minutes_per_run=study.budget.minutes_per_run,
                device_seconds=study.budget.device_hours and 3600 * study.budget.device_hours,
                populations=Populations(population, place),
            )
            complete = scheduler.run(lambda: stop.number is not None)
        table = None
        if any((workdir / run).is_dir() for run in outcomes):
            results.save(results.read_runs(workdir), workdir)
            place.publish(results.FILE)
            table = f"{place.where}/{results.FILE}"
        _say_summary(scheduler.counts, outcomes, table, time.monotonic() - began)
    if complete:
        return 0
    console.print("Stopped; the same command goes on.", markup=False)
    return 128 + stop.number if stop.number else 1


def plan(study: Study, workdir: str | Path, *, stand_in: bool = False) -> list[Cell]:
    """The cells of a study.

    Args:
      study: what to go through.
      workdir: where the folders of the runs go.
      stand_in: see `look_up`.

    Raises:
      UserError: it names what there is not, or plans more runs than its budget allows.
    """
    cells = [Cell(pair, study, workdir) for pair in look_up(study, stand_in=stand_in)]
    runs, limit = sum(cell.size for cell in cells), study.budget.runs
    if limit is not None and runs > limit:
        raise UserError(
            f"{study.name} plans {runs} runs ({len(cells)} pairs of {cells[0].trials} trials and "
            f"{len(study.final.seeds)} final runs), and budget.runs is {limit}. Name fewer pairs "
            "or trials, or raise it."
        )
    return cells


@contextlib.contextmanager
def claim(place: Workdir) -> Iterator[None]:
    """Makes the folder, and keeps other sweeps out of it."""
    taken = f"Another sweep is writing to {place.where}; wait for it, or choose another --workdir."
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_writer(place.path, ".sweep.lock", taken))
        if place.store is not None:
            owner = owner_of(place.path)
            stack.enter_context(hold(place.store, ".sweep.lock", owner, taken))
        yield


def scan(cells: list[Cell], workdir: Path, *, retry: bool = False) -> dict[str, Outcome]:
    """How the runs of a study that have ended did.

    Raises:
      UserError: a folder holds another run than its name says.
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
                record = read_json(folder / "config.json")
                if record is not None:
                    differing = difference(record.get("config", {}), planned.identity)
                    if differing:
                        raise UserError(
                            f"{folder / 'config.json'} does not belong to its folder "
                            f"({'; '.join(differing)}); was it edited? Move the folder away."
                        )
                outcome = read_outcome(folder)
                if outcome and not (retry and outcome.status in FAILED):
                    outcomes[planned.run] = outcome
    return outcomes


def dry_run(study: Study, options: argparse.Namespace) -> int:
    """Says what a sweep would take; trains nothing but a few steps of each backbone."""
    place = Workdir.at(options.workdir, study.train.get("scratch"))
    cells = plan(study, place.where, stand_in=True)
    place.pull()
    outcomes = scan(cells, place.path)
    said = estimate(study, cells, outcomes, place, options.workers, quick=options.quick)
    console.print(said, markup=False, soft_wrap=True)
    return 0


class _Stop:
    number: int | None = None


@contextlib.contextmanager
def _stopping() -> Iterator[_Stop]:
    """SIGINT and SIGTERM are noted; the second time they act as always."""
    stop, before = _Stop(), {}

    def note(number, frame):
        del frame
        stop.number = number
        signal.signal(number, before[number])

    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            before[number] = signal.signal(number, note)
    except ValueError:  # not in the main thread: the program around us handles signals
        pass
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say_summary(
    counts: Counts, outcomes: dict[str, Outcome], table: str | None, seconds: float
) -> None:
    by_status: dict[str, int] = {}
    for outcome in outcomes.values():
        by_status[outcome.status] = by_status.get(outcome.status, 0) + 1
    together = counts.together_compiled
    ended = ", ".join(f"{count} {status.replace('_', ' ')}" for status, count in by_status.items())
    console.print(
        f"{len(outcomes)} runs have ended ({ended or 'none'}), {counts.ended} of them now, in "
        f"{duration(seconds)}.\n"
        f"For {len(counts.pairs)} pairs XLA compiled {counts.train_steps_compiled} training steps "
        + (f"({counts.together_compiled} of them of runs together; " if together else "(")
        + f"{counts.compiled} programs in all); {counts.loaded} programs came from the cache."
        + (f"\n{table}" if table else ""),
        markup=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
