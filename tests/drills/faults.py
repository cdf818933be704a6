"""Let runs and sweeps meet faults at random, start the same command again, and compare the bits.

    PYTHONPATH=tests python tests/drills/faults.py --faults 100 --seed 0

Each fault meets a start of its own: a run of one or several processes, one at a URL, one with data
workers, a sweep, a pose net. After it the same command is started once more and must reach the end,
where steps, rows and checkpoints are those of an undisturbed run, to the last bit. A start that
takes longer than `--seconds` counts as a hang. Prints a line per fault and a tally; the exit code
is 1 if anything was lost.

Some faults come from outside: signals, and damage to files. The others are planted: Python imports
`sitecustomize` at the start of every process, and that calls `planted.plant`.
"""

import argparse
import collections
import contextlib
import dataclasses
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from drills import kill_sweep
from drills.jobs import STEPS, SUBJECTS, Job
from drills.planted import PLANTED
from helpers import image_folder

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


# --- The table ------------------------------------------------------------------------------------

Outside = Callable[[Job, random.Random, float], bool]
ALONE = ("train", "sweep", "pose")


@dataclasses.dataclass(frozen=True)
class Fault:
    """What happens to which jobs; from inside, what `PLANTED` has under the same name.

    Attributes:
      subjects: of `SUBJECTS`.
      outside: does it to a job within so many seconds; returns whether it came to that.
      everywhere: whether it is planted in all processes of a run, not in one.
      ends: the only exit codes there may be; None for any, since the end may be a kill.
      ends_the_run: whether the run has then ended rightly, and is not to go on.
    """

    subjects: tuple[str, ...]
    outside: Outside | None = None
    everywhere: bool = False
    ends: tuple[int, ...] | None = None
    ends_the_run: bool = False


FAULTS = {
    "kill -9": Fault((*ALONE, "two processes", "url", "data worker"), kill),
    "SIGTERM in a save": Fault(
        (*ALONE, "two processes"), terminate_in_a_save, everywhere=True, ends=(0, 143)
    ),
    "damaged file": Fault((*ALONE, "two processes"), damage),
    "full disk": Fault((*ALONE, "two processes")),
    "read-only folder": Fault((*ALONE, "two processes")),
    "out of memory": Fault((*ALONE, "two processes")),
    # Orbax measures its own time limits on the clock of the day: a save may fail, which is said.
    "clock that jumps": Fault((*ALONE, "two processes", "url"), ends=(0, 2)),
    "NaN": Fault(("train", "two processes"), everywhere=True, ends=(3,), ends_the_run=True),
    "failing store": Fault(("url",), everywhere=True, ends=(0, 2)),
    "dead data worker": Fault(("data worker",), kill_a_data_worker, ends=(0, 2)),
}


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
    job.start(about if name in PLANTED else None)
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
    (shared / "planted").mkdir(parents=True)
    tests = Path(__file__).parents[1]
    (shared / "planted" / "sitecustomize.py").write_text(
        f"import sys\nsys.path.append({str(tests)!r})\n"
        "from drills import planted\nplanted.plant()\n"
    )
    (shared / "study.toml").write_text(kill_sweep.STUDY)
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
