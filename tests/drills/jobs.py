"""Jobs that meet faults: commands that are started again and again, and what their end must be."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from drills import kill_run, kill_sweep, processes

from bocb_jax.engine import checksums

STEPS = 38  # of a run, two epochs
NET = "--model vit_mini --opt lamb --model-args.depth 1 --model-args.width 16 --model-args.heads 2"
EPOCHS = "--epochs 2 --image-size 16"
TINY = f"{NET} {EPOCHS} --batch-size 64 --step.ema 0.9"
SAVES = "--checkpoint.every-steps 5 --log.every-steps 3 --log.progress none --run-id the_run"
FOLDER = f"{NET} {EPOCHS} --batch-size 10 --data.on-device no --data.workers 1"
POSE = "--task pose --epochs 1 --batch-size 32 --transfer.input-size 48 64 --transfer.width 16"
# What differs from `kill_sweep.STUDY`.
SMALLER = (
    "--optimizers sgd --final.seeds [1] --train.epochs 2 --train.checkpoint.every-steps 5 "
    "--train.log.every-steps 3"
)
RUNS = 3  # of the study


@dataclasses.dataclass
class Job:
    """A command in a folder of its own, which can be started again and again.

    Attributes:
      subject: of `SUBJECTS`.
      root: holds everything of this job.
      shared: holds the compile cache, the study and the images of all jobs.
    """

    subject: str
    root: Path
    shared: Path
    started: list[subprocess.Popen] = dataclasses.field(default_factory=list)

    @property
    def workdir(self) -> Path:
        return self.root / "runs"

    def start(self, fault: dict[str, Any] | None = None) -> None:
        """Start all processes; with a fault planted, if one is given."""
        self.root.mkdir(exist_ok=True)
        env = os.environ | {
            "JAX_COMPILATION_CACHE_DIR": str(self.shared / "cache"),
            "XDG_CACHE_HOME": str(self.root / "home"),
            "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        }
        if fault is not None:
            paths = [str(self.shared / "planted"), env.get("PYTHONPATH", "")]
            env |= {"PYTHONPATH": os.pathsep.join(paths), "BOCB_FAULT": json.dumps(fault)}
        self.started = []
        for number, words in enumerate(SUBJECTS[self.subject].commands(self)):
            with open(self.root / f"said-{number}.txt", "w") as said:
                command = [sys.executable, "-m", *words]
                self.started.append(subprocess.Popen(command, env=env, stdout=said, stderr=said))

    def wait(self, seconds: float) -> list[int | None]:
        """Return the exit codes; None for a process that had to be killed."""
        deadline = time.monotonic() + seconds
        codes: list[int | None] = []
        for process in self.started:
            try:
                codes.append(process.wait(max(0.1, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                codes.append(None)
        if None in codes:
            self.kill()
        self.wait_for_workers()
        return codes

    def kill(self) -> None:
        """End every process at once."""
        for pid in self.family():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self.started:
            process.wait()
        self.wait_for_workers()

    def wait_for_workers(self) -> None:
        """Wait until no worker of a sweep holds a folder; they end with the sweep."""
        deadline = time.monotonic() + 30
        while self.left() and time.monotonic() < deadline:
            time.sleep(0.1)

    def left(self) -> list[int]:
        """Return the workers whose logs or scratch lie in this job's folder."""
        return [pid for pid, env in environments() if f"XDG_CACHE_HOME={self.root / 'home'}" in env]

    def family(self) -> list[int]:
        """Return the processes that were started, and those that these started."""
        return sorted({*self.left(), *(process.pid for process in self.running())})

    def running(self) -> list[subprocess.Popen]:
        return [process for process in self.started if process.poll() is None]

    def steps(self) -> int:
        """Return the number of steps that all runs have logged."""
        found = 0
        for log in self.root.glob("**/metrics.jsonl"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                found += json.loads(log.read_text().splitlines()[-1])["step"]
        return found

    def said(self) -> str:
        """Return the last words of all processes."""
        return " | ".join(
            path.read_text(errors="replace").strip()[-600:]
            for path in sorted(self.root.glob("said-*.txt"))
        )

    def wait_until(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Return whether something came to hold before all processes ended, or the time did."""
        deadline = time.monotonic() + seconds
        while self.running() and time.monotonic() < deadline:
            if holds():
                return True
            time.sleep(0.02)
        return False


def environments() -> Iterator[tuple[int, list[str]]]:
    """Yield the environment of every process of this user that is no zombie."""
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            text = (folder / "environ").read_bytes().decode(errors="replace")
            if text and int(folder.name) != os.getpid():
                yield int(folder.name), text.split("\0")


@dataclasses.dataclass(frozen=True)
class Subject:
    """A kind of job: its commands, and how its end is compared."""

    commands: Callable[[Job], list[list[str]]]
    compare: Callable[[Job, Job], None]
    steps: int = STEPS


def train(settings: str, door: str = "bocb_jax.train") -> Callable[[Job], list[list[str]]]:
    def commands(job: Job) -> list[list[str]]:
        words = f"{settings} {SAVES} --parallel.devices 1".split()
        words = [word.replace("SHARED", str(job.shared)) for word in words]
        return [[door, *words, "--workdir", str(job.workdir)]]

    return commands


def at_a_url(job: Job) -> list[list[str]]:
    return [[word.replace(str(job.workdir), f"file://{job.workdir}")
             for word in train(TINY)(job)[0]]]  # fmt: skip


def two_processes(job: Job) -> list[list[str]]:
    where = f"--parallel.coordinator localhost:{processes.free_port()} --parallel.processes 2"
    words = [*f"{TINY} {SAVES} {where} --workdir".split(), str(job.workdir)]
    return [["bocb_jax.train", *words, "--parallel.process", str(number)] for number in range(2)]


def sweep(job: Job) -> list[list[str]]:
    words = [str(job.shared / "study.toml"), "--workdir", str(job.workdir), "--workers", "2"]
    words += ["--progress", "none", "--retries", "9", "--retry", "failed", *SMALLER.split()]
    return [["bocb_jax.sweep", *words]]


def compare_runs(ours: Job, theirs: Job) -> None:
    """Raise AssertionError unless two runs left the same bits, and nothing besides."""
    whole = theirs.workdir / "the_run"
    compare_checkpoints(ours.workdir / "the_run")
    kill_run.compare(ours.workdir / "the_run", whole)


def compare_tables(ours: Job, theirs: Job) -> None:
    kill_sweep.compare(ours.workdir, theirs.workdir, RUNS)
    for folder in ours.workdir.glob("*/checkpoints"):
        compare_checkpoints(folder.parent)


def compare_checkpoints(run: Path) -> None:
    """Raise AssertionError unless the checkpoints are as many as are kept, whole and checked."""
    for name, most in (("last", 2), ("best", 1)):
        # In a store that is a folder, those of files that were deleted are left, and empty.
        there = (run / "checkpoints" / name).glob("*/**/*")
        folders = {run / "checkpoints" / name / path.relative_to(run).parts[2] for path in there
                   if path.is_file()}  # fmt: skip
        kept = [path for path in folders if ".damaged" not in path.name]
        assert 1 <= len(kept) <= most, f"checkpoints {sorted(path.name for path in folders)}"
        for path in kept:
            assert path.name.isdecimal(), f"{path} was left"
            assert checksums.exist(path), f"{path} has no checksums"
            assert checksums.damage(path) is None, f"{path} is damaged"


SUBJECTS = {
    "train": Subject(train(TINY), compare_runs),
    "two processes": Subject(two_processes, compare_runs),
    "url": Subject(at_a_url, compare_runs),
    "data worker": Subject(train(f"{FOLDER} --dataset folder:SHARED/images"), compare_runs, 40),
    "sweep": Subject(sweep, compare_tables, STEPS * RUNS),
    "pose": Subject(train(POSE, "bocb_jax.transfer"), compare_runs, 30),
}
