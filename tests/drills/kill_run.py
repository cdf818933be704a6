"""Kill a run at random moments, start the same command again, and compare the bits.

    python tests/drills/kill_run.py --kills 20

Two runs have the same settings. One is undisturbed; the other is killed with SIGKILL at random
moments of its life: imports, compilation, steps, saves, the end. Parameters, optimizer state,
moving average, best weights and metrics must then be equal to the last bit, and metrics.jsonl must
hold every logged step exactly once.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SETTINGS = {
    "model": "vit_mini",
    "opt": "lamb",
    "epochs": 4,
    "batch-size": 64,
    "step.ema": 0.9,
    "checkpoint.every-steps": 7,
    "log.every-steps": 3,
    "run-id": "the_run",
    "log.progress": "none",
    "parallel.devices": 1,
}

# Results that differ between two runs with the same settings.
CLOCKS = ("wall_seconds", "seconds_to_first_step", "evaluation_seconds", "peak_memory_bytes")
CLOCKS += ("population",)


def start(workdir: Path, cache: Path) -> subprocess.Popen:
    settings = SETTINGS | {"workdir": workdir, "compile-cache": cache}
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "bocb_jax.train", *options]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def metrics(folder: Path) -> list[dict]:
    """Return the lines of metrics without their times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("images_per_second", "seconds")
    return [{k: v for k, v in line.items() if k not in clock} for line in lines]


def arrays(folder: Path) -> dict[str, list]:
    """Return all arrays of the last state and of the best weights."""
    import jax
    import numpy as np
    from orbax.checkpoint import v1 as ocp

    found = {}
    for name in ("last", "best"):
        names = [path.name for path in (folder / "checkpoints" / name).iterdir()]
        step = max(int(name) for name in names if name.isdecimal())  # others are damaged
        path = folder / "checkpoints" / name / str(step)
        # Into NumPy arrays: the devices of the run may not be available here.
        shapes = ocp.checkpointables_metadata(path).metadata["state"]
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), shapes)
        tree = ocp.load_checkpointables(path, {"state": wanted})["state"]
        found[name] = [step, *jax.tree.leaves(tree)]
    return found


def result(folder: Path) -> dict:
    outcome = json.loads((folder / "result.json").read_text())
    return {name: value for name, value in outcome.items() if name not in CLOCKS}


def compare(disturbed: Path, undisturbed: Path) -> None:
    """Raise AssertionError unless both runs left the same bits."""
    import numpy as np

    lines = metrics(undisturbed)
    steps = [line["step"] for line in lines]
    assert steps == sorted(set(steps)), "a step stands twice in metrics.jsonl"
    assert metrics(disturbed) == lines
    assert result(disturbed) == result(undisturbed)
    ours, theirs = arrays(disturbed), arrays(undisturbed)
    for name in theirs:
        assert len(ours[name]) == len(theirs[name])
        for a, b in zip(ours[name], theirs[name], strict=True):
            np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        cache = root / "cache"
        finish(start(root / "warm", cache))
        began = time.monotonic()
        finish(start(root / "undisturbed", cache))
        life = time.monotonic() - began
        print(f"an undisturbed run takes {life:.1f} s")

        disturbed, kills, finished = root / "disturbed" / "the_run", 0, 0
        while kills < options.kills:
            process = start(root / "disturbed", cache)
            delay = moments.uniform(0, life)
            try:
                process.wait(delay)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.communicate()
                kills += 1
                log = disturbed / "metrics.jsonl"
                lines = len(log.read_text().splitlines()) if log.exists() else 0
                print(f"kill {kills} after {delay:.1f} s, {lines} lines logged")
            else:
                finish(process)
            if (disturbed / "result.json").exists() and kills < options.kills:
                compare(disturbed, root / "undisturbed" / "the_run")
                finished += 1  # a run may end between two kills
                (root / "disturbed").rename(root / f"finished{finished}")
        finish(start(root / "disturbed", cache))
        compare(disturbed, root / "undisturbed" / "the_run")
    print(f"equal to the last bit after {kills} kills", flush=True)


if __name__ == "__main__":
    main()
