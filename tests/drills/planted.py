"""Faults that are planted in a process that trains, and strike from within."""

import builtins
import errno
import io
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

About = dict[str, Any]  # "fault", "step", "process", "everywhere", "marker", "seed"


def plant() -> None:
    """Prepare, in a process that trains, the fault that the environment names."""
    about, words = json.loads(os.environ["BOCB_FAULT"]), sys.orig_argv
    if not {"bocb_jax.train", "bocb_jax.transfer", "bocb_jax.study.worker"} & {*words}:
        return
    if "--parallel.process" in words and not about["everywhere"]:
        number = words[words.index("--parallel.process") + 1]
        if number != str(about["process"]):
            return
    PLANTED[about["fault"]](about)


def strikes(about: About) -> bool:
    """Whether the fault is to strike now: only once in all processes of a job."""
    if about["everywhere"]:
        Path(about["marker"]).touch()
        return True
    try:
        os.close(os.open(about["marker"], os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True


def at_a_step(action: Callable[[Any, random.Random], None]) -> Callable[[About], None]:
    """Return what plants an action on a run's record and a generator, at a step of the run."""

    def planted(about: About) -> None:
        from bocb_jax.engine.record import Record

        before = Record.step_dispatched

        def step_dispatched(record: Record) -> None:
            before(record)
            if record.step == about["step"] and strikes(about):
                action(record, random.Random(about["seed"]))

        Record.step_dispatched = step_dispatched

    return planted


def fill_disk(record: Any, draw: random.Random) -> None:
    """Let no file grow beyond some bytes, which for a writer is a full disk."""
    most = draw.choice([0, 300, 3000, 30_000])
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))


def forbid_writing(record: Any, draw: random.Random) -> None:
    """Let Python's calls that write below the run's folder fail as on a read-only file system."""
    below = str(record.folder)

    def refusing(before: Callable, writes: Callable[..., bool]) -> Callable:
        def call(path: Any, *arguments: Any, **options: Any) -> Any:
            is_below = not isinstance(path, int) and str(path).startswith(below)
            if is_below and writes(*arguments, **options):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return before(path, *arguments, **options)

        return call

    def mode_writes(mode: str = "r", *arguments: Any, **options: Any) -> bool:
        return bool({*mode} & {*"wax+"})

    def flags_write(flags: int, *arguments: Any, **options: Any) -> bool:
        return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

    builtins.open = io.open = refusing(builtins.open, mode_writes)
    os.open = refusing(os.open, flags_write)
    for name in ("mkdir", "rename", "replace", "unlink", "rmdir"):
        setattr(os, name, refusing(getattr(os, name), lambda *_, **__: True))


def exhaust_memory(record: Any, draw: random.Random) -> None:
    """Let the address space grow no further than by some megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + draw.choice([0, 1, 16, 64]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (most, resource.RLIM_INFINITY))


def move_clock(record: Any, draw: random.Random) -> None:
    """Set the clock of the day forward or back."""
    real, jump = time.time, draw.choice([-(10**8), -3600, 3600, 10**8])
    time.time = lambda: real() + jump


def slow_checksums(about: About) -> None:
    """Wait between the files of a checkpoint and its checksums."""
    from bocb_jax.engine import checksums

    before = checksums.write

    def write(folder: Path) -> None:
        time.sleep(0.5)
        before(folder)

    checksums.write = write
    Path(about["marker"]).touch()


def spoil_a_loss(about: About) -> None:
    """Let the loss of a step be NaN."""
    from bocb_jax.engine.record import Record

    before = Record.add

    def add(record: Record, rows: list[dict[str, float]]) -> None:
        first = record.step - len(rows) + 1
        if first <= about["step"] <= record.step:
            rows[about["step"] - first]["loss"] = float("nan")
            strikes(about)
        before(record, rows)

    Record.add = add


def spoil_the_store(about: About) -> None:
    """Let calls to the object store be slow, and one in five of them fail."""
    from fsspec.implementations.local import LocalFileSystem as Files

    draw = random.Random(about["seed"])

    def spoiled(before: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            time.sleep(draw.uniform(0, 0.05))
            if draw.random() < 0.2:
                strikes(about)
                raise OSError(errno.EIO, "503 Slow Down")
            return before(*arguments, **options)

        return call

    for name in ("put_file", "pipe_file", "cat_file", "get_file", "find", "rm"):
        setattr(Files, name, spoiled(getattr(Files, name)))


PLANTED = {
    "SIGTERM in a save": slow_checksums,
    "full disk": at_a_step(fill_disk),
    "read-only folder": at_a_step(forbid_writing),
    "out of memory": at_a_step(exhaust_memory),
    "clock that jumps": at_a_step(move_clock),
    "NaN": spoil_a_loss,
    "failing store": spoil_the_store,
}
