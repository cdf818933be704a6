"""Let runs and sweeps meet faults at random, start the same command again, and compare the bits.

    PYTHONPATH=tests python tests/drills/faults.py --faults 100 --seed 0

Each fault meets a start of its own: a run of one or several processes, one at a URL, one with data
workers, a sweep, a pose net. After it the same command is started once more and must reach the end,
where steps, rows and checkpoints are those of an undisturbed run, to the last bit. A start that
takes longer than `--seconds` counts as a hang. Prints a line per fault and a tally; the exit code
is 1 if anything was lost.

Some faults come from outside: signals, and damage to files. The others are planted: Python imports
`sitecustomize` at the start of every process, and that calls `plant`.
"""

import argparse
import builtins
import collections
import contextlib
import dataclasses
import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

STEPS = 38  # of a run, two epochs
TINY = (
    "--model vit_mini --opt lamb --model-args.depth 1 --model-args.width 16 --model-args.heads 2 "
    "--epochs 2 --batch-size 64 --image-size 16 --step.ema 0.9"
)
SAVES = "--checkpoint.every-steps 5 --log.every-steps 3 --log.progress none --run-id the_run"
FOLDER = (
    "--model vit_mini --opt lamb --model-args.depth 1 --model-args.width 16 --model-args.heads 2 "
    "--epochs 2 --batch-size 10 --image-size 16 --data.on-device no --data.workers 1"
)
POSE = "--task pose --epochs 1 --batch-size 32 --transfer.input-size 48 64 --transfer.width 16"
STUDY = """
name = "faults"
backbones = ["vit_mini"]
optimizers = ["sgd"]
[train]
epochs = 2
batch_size = 64
image_size = 16
parallel = { devices = 1 }
checkpoint = { every_steps = 5 }
log = { every_steps = 3 }
model_args = { depth = 1, width = 16, heads = 2 }
[search]
lr_factors = [0.1, 1]
[final]
seeds = [1]
"""
RUNS = 3  # of the study


# --- What meets faults ----------------------------------------------------------------------------


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
    from drills.processes import free_port

    where = f"--parallel.coordinator localhost:{free_port()} --parallel.processes 2"
    words = [*f"{TINY} {SAVES} {where} --workdir".split(), str(job.workdir)]
    return [["bocb_jax.train", *words, "--parallel.process", str(number)] for number in range(2)]


def sweep(job: Job) -> list[list[str]]:
    words = [str(job.shared / "study.toml"), "--workdir", str(job.workdir), "--workers", "2"]
    words += ["--progress", "none", "--retries", "9", "--retry", "failed"]
    return [["bocb_jax.sweep", *words]]


def compare_runs(ours: Job, theirs: Job) -> None:
    """Raise AssertionError unless two runs left the same bits, and nothing besides."""
    from drills import kill_run

    whole = theirs.workdir / "the_run"
    compare_checkpoints(ours.workdir / "the_run")
    kill_run.compare(ours.workdir / "the_run", whole)


def compare_tables(ours: Job, theirs: Job) -> None:
    from drills import kill_sweep

    kill_sweep.compare(ours.workdir, theirs.workdir, RUNS)
    for folder in ours.workdir.glob("*/checkpoints"):
        compare_checkpoints(folder.parent)


def compare_checkpoints(run: Path) -> None:
    """Raise AssertionError unless the checkpoints are as many as are kept, whole and checked."""
    from bocb_jax.engine import checksums

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


# --- Faults from outside --------------------------------------------------------------------------


def kill(job: Job, draw: random.Random, seconds: float) -> bool:
    """Kill a process of the job with SIGKILL: at its start, between steps, or at its end."""
    target = draw.randrange(SUBJECTS[job.subject].steps)
    if not job.wait_until(lambda: job.steps() >= target, seconds):
        return False
    time.sleep(draw.uniform(0, 3 if target < 3 else 0.3))
    family = job.family()
    if family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(draw.choice(family), signal.SIGKILL)
    return bool(family)


def terminate_in_a_save(job: Job, draw: random.Random, seconds: float) -> bool:
    """Send SIGTERM between the files of a checkpoint and its checksums, which are planted late."""
    skipped = draw.randrange(3)
    seen: set[Path] = set()

    def saves() -> bool:
        last = {path for path in job.root.glob("**/checkpoints/last/*") if path.name.isdecimal()}
        seen.update(path for path in last if not list(path.glob("checksums*")))
        return len(seen) > skipped

    if not job.wait_until(saves, seconds) or not job.running():
        return False
    draw.choice(job.running()).send_signal(signal.SIGTERM)
    return True


def damage(job: Job, draw: random.Random, seconds: float) -> bool:
    """Kill everything after a save, then flip a bit of a state's file, or cut the file off.

    Best weights are spared: those of an earlier step cannot be had again, which is said.
    """

    def files() -> list[Path]:
        saved = [sums.parent for sums in job.root.glob("**/checkpoints/last/*/checksums.xxh128")]
        left = [path for path in saved if not (path.parents[2] / "result.json").exists()]
        return [path for folder in left for path in sorted(folder.rglob("*")) if path.is_file()]

    skipped = draw.randrange(SUBJECTS[job.subject].steps // 2)
    if not job.wait_until(lambda: job.steps() >= skipped and bool(files()), seconds):
        return False
    job.kill()
    found = [path for path in files() if path.stat().st_size]
    if not found:
        return False
    path = draw.choice(found)
    content = bytearray(path.read_bytes())
    bit = draw.randrange(8 * len(content))
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content[: bit // 8] if draw.random() < 0.5 else content)
    return True


def kill_a_data_worker(job: Job, draw: random.Random, seconds: float) -> bool:
    """Kill the process that decodes images."""
    target = draw.randrange(SUBJECTS[job.subject].steps - 10)
    if not job.wait_until(lambda: job.steps() >= target, seconds):
        return False
    children = sorted({*job.family()} - {process.pid for process in job.started})
    if children:
        os.kill(children[-1], signal.SIGKILL)
    return bool(children)


# --- Planted faults -------------------------------------------------------------------------------

About = dict[str, Any]  # "fault", "step", "process", "marker", "seed"


def plant() -> None:
    """Prepare, in a process that trains, the fault that the environment names."""
    about, words = json.loads(os.environ["BOCB_FAULT"]), sys.orig_argv
    if not {"bocb_jax.train", "bocb_jax.transfer", "bocb_jax.study.worker"} & {*words}:
        return
    if "--parallel.process" in words and not about["everywhere"]:
        number = words[words.index("--parallel.process") + 1]
        if number != str(about["process"]):
            return
    planted = FAULTS[about["fault"]].planted
    assert planted is not None
    planted(about)


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


# --- The table ------------------------------------------------------------------------------------

Outside = Callable[[Job, random.Random, float], bool]
ALONE = ("train", "sweep", "pose")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to which jobs.

    Attributes:
      subjects: of `SUBJECTS`.
      outside: does it to a job within so many seconds; returns whether it came to that.
      planted: prepares it in a process of the job.
      everywhere: whether it is planted in all processes of a run, not in one.
      ends: the only exit codes there may be; None for any, since the end may be a kill.
      ends_the_run: whether the run has then ended rightly, and is not to go on.
    """

    subjects: tuple[str, ...]
    outside: Outside | None = None
    planted: Callable[[About], None] | None = None
    everywhere: bool = False
    ends: tuple[int, ...] | None = None
    ends_the_run: bool = False


FAULTS = {
    "kill -9": Fault((*ALONE, "two processes", "url", "data worker"), kill),
    "SIGTERM in a save": Fault(
        (*ALONE, "two processes"), terminate_in_a_save, slow_checksums, everywhere=True,
        ends=(0, 143),
    ),
    "damaged file": Fault((*ALONE, "two processes"), damage),
    "full disk": Fault((*ALONE, "two processes"), planted=at_a_step(fill_disk)),
    "read-only folder": Fault((*ALONE, "two processes"), planted=at_a_step(forbid_writing)),
    "out of memory": Fault((*ALONE, "two processes"), planted=at_a_step(exhaust_memory)),
    # Orbax measures its own time limits on the clock of the day: a save may fail, which is said.
    "clock that jumps": Fault(
        (*ALONE, "two processes", "url"), planted=at_a_step(move_clock), ends=(0, 2)
    ),
    "NaN": Fault(
        ("train", "two processes"), planted=spoil_a_loss, everywhere=True, ends=(3,),
        ends_the_run=True,
    ),
    "failing store": Fault(("url",), planted=spoil_the_store, everywhere=True, ends=(0, 2)),
    "dead data worker": Fault(("data worker",), kill_a_data_worker, ends=(0, 2)),
}  # fmt: skip


# --- The drill ------------------------------------------------------------------------------------


def meet(name: str, job: Job, whole: Job, draw: random.Random, seconds: float) -> tuple[str, str]:
    """Let a job meet a fault.

    Returns:
      What the fault did, and what was lost: nothing if that is empty.
    """
    fault, marker = FAULTS[name], job.root / "struck"
    about = {
        "fault": name,
        "step": draw.randrange(2, min(STEPS, SUBJECTS[job.subject].steps) - 2),
        "process": draw.randrange(2),
        "marker": str(marker),
        "seed": draw.randrange(2**32),
        "everywhere": fault.everywhere,
    }
    job.root.mkdir()
    job.start(about if fault.planted else None)
    struck = fault.outside(job, draw, seconds) if fault.outside else False
    codes = job.wait(seconds)
    struck = struck if fault.outside else marker.exists()
    did = f"codes {codes}" if struck else f"did not strike, codes {codes}"
    if None in codes:
        return did, f"it hung: {job.said()}"
    if struck and fault.ends is not None and not {*codes} <= {*fault.ends}:
        return did, f"exit codes {codes}, not {fault.ends}: {job.said()}"
    if fault.ends_the_run:
        return did, lost_of_diverged(job, about["step"])
    if job.subject == "url" and draw.random() < 0.5:  # another machine goes on
        shutil.rmtree(job.root / "home", ignore_errors=True)
    job.start()
    again = job.wait(seconds)
    if any(again):
        return did, f"then codes {again}: {job.said()}"
    try:
        SUBJECTS[job.subject].compare(job, whole)
    except (AssertionError, OSError, ValueError) as error:
        where = traceback.extract_tb(error.__traceback__)[-1].line
        return did, f"{type(error).__name__}: {str(error).strip()[:600]} ({where})"
    return did, ""


def lost_of_diverged(job: Job, step: int) -> str:
    """Return what the record of a run that diverged at a step lacks."""
    result = json.loads((job.workdir / "the_run" / "result.json").read_text())
    found = result["status"], result.get("diverged_at_step"), job.steps()
    return "" if found == ("diverged", step, step) else f"it ended as {found}, not at {step}"


def prepare(shared: Path) -> None:
    """Write what all jobs share."""
    from helpers import image_folder

    (shared / "planted").mkdir(parents=True)
    tests = Path(__file__).parents[1]
    (shared / "planted" / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(tests)!r})\nfrom drills import faults\nfaults.plant()\n"
    )
    (shared / "study.toml").write_text(STUDY)
    image_folder.make_folder(shared / "images", train=100, val=20, test=20)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=600, help="limit of a start")
    parser.add_argument("--only", nargs="+", choices=list(FAULTS), default=list(FAULTS))
    parser.add_argument("--on", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    options = parser.parse_args(arguments)
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    draw = random.Random(options.seed)
    pairs = [(n, s) for n in options.only for s in FAULTS[n].subjects if s in options.on]
    tally: collections.Counter[tuple[str, str, str]] = collections.Counter()
    with tempfile.TemporaryDirectory() as temporary:
        shared, wholes = Path(temporary) / "shared", {}
        prepare(shared)
        order: list[tuple[str, str]] = []
        for number in range(options.faults):
            order = order or draw.sample(pairs, len(pairs))
            name, subject = order.pop()
            if subject not in wholes:
                wholes[subject] = whole = Job(subject, Path(temporary) / subject, shared)
                whole.start()
                codes = whole.wait(2 * options.seconds)
                assert not any(codes), f"undisturbed, {subject}: {codes}: {whole.said()}"
            job = Job(subject, Path(temporary) / f"fault{number}", shared)
            did, lost = meet(name, job, wholes[subject], draw, options.seconds)
            struck = "no strike" if did.startswith("did not") else "struck"
            tally[name, subject, "LOST" if lost else struck] += 1
            print(f"{number + 1}. {name}, {subject}: {did}{f'; LOST: {lost}' if lost else ''}",
                  flush=True)  # fmt: skip
            shutil.rmtree(job.root, ignore_errors=True)
    for (name, subject, how), count in sorted(tally.items()):
        print(f"{name:20} {subject:14} {how:10} {count}")
    lost = sum(count for (_, _, how), count in tally.items() if how == "LOST")
    print(f"{options.faults} faults, {lost} of them lost something", flush=True)
    return int(lost > 0)


if __name__ == "__main__":
    sys.exit(main())
