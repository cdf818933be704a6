"""Kills a sweep and its workers at random moments, starts it again, and compares the tables.

    PYTHONPATH=tests python tests/drills/kill_sweep.py --kills 30

Two sweeps of the same study: one undisturbed, one that is killed with SIGKILL, now the sweep, now
one of its workers. Afterwards the tables must be equal but for what the clock decides, and the
weights of every final run to the last bit. With `--population 2` both train the runs of a pair
together.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drills import kill_run

STUDY = """
name = "kills"
backbones = ["vit_mini"]
optimizers = ["sgd", "adamw"]
[train]
epochs = 4
batch_size = 64
image_size = 16
parallel = { devices = 1 }
checkpoint = { every_steps = 10 }
model_args = { depth = 1, width = 16, heads = 2 }
[search]
lr_factors = [0.1, 1]
[final]
seeds = [1, 2]
"""
RUNS = 8
TOGETHER = STUDY.replace(', "adamw"', "").replace(
    "model_args = { depth = 1, width = 16, heads = 2 }",
    """[[variants]]
name = "small"
[[variants]]
name = "large"
train = { image_size = 32 }""",
)
CLOCKS = ["wall_seconds", "seconds_to_first_step", "seconds_to_target", "peak_memory_bytes"]
CLOCKS += ["population"]


def start(study: Path, workdir: Path, cache: Path, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "bocb_jax.sweep", str(study), "--workdir", str(workdir)]
    return subprocess.Popen(
        [*command, "--progress", "none", "--retries", "100", *options],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache)},
    )


def finish(process: subprocess.Popen) -> str:
    _, said = process.communicate()
    assert process.returncode == 0, said
    return said


def workers(parent: int) -> list[int]:
    """The processes that a sweep has started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes()
        except OSError:  # it has ended meanwhile
            continue
        if int(stat[1]) == parent and b"study.worker" in command:
            found.append(int(folder.name))
    return found


def alive(pids: list[int]) -> list[int]:
    def runs(pid):
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
        except OSError:
            return False

    return [pid for pid in pids if runs(pid)]


def compare(ours: Path, theirs: Path, runs: int = RUNS) -> None:
    import pandas

    tables = [pandas.read_parquet(folder / "results.parquet") for folder in (ours, theirs)]
    assert len(tables[0]) == runs == tables[0]["run"].nunique()
    assert (tables[0]["status"] == "finished").all()
    pandas.testing.assert_frame_equal(*(table.drop(columns=CLOCKS) for table in tables))
    for run in tables[0].query("phase == 'final'")["run"]:
        kill_run.compare(ours / run, theirs / run)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--population", default="off")
    options = parser.parse_args(arguments)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        study, cache = root / "study.toml", root / "cache"
        study.write_text(STUDY)
        # Runs that train together may differ by rounding from runs alone.
        alike = "--population", options.population
        finish(start(study, root / "warm", cache, *alike))
        begun = time.monotonic()
        said = finish(start(study, root / "undisturbed", cache, *alike))
        life = time.monotonic() - begun
        print(f"an undisturbed sweep takes {life:.1f} s")
        assert "compiled no training step (0 programs in all)" in said, said

        disturbed, kills, finished = root / "disturbed", 0, 0
        process = None
        while kills < options.kills:
            process = process or start(study, disturbed, cache, *alike)
            try:
                process.wait(moments.uniform(0, life))
            except subprocess.TimeoutExpired:
                kills += 1
                own = workers(process.pid)
                if own and moments.random() < 0.5:
                    os.kill(moments.choice(own), signal.SIGKILL)
                    print(f"kill {kills}: a worker of {len(own)}")
                    continue
                process.send_signal(signal.SIGKILL)
                process.communicate()
                process = None
                ended = sum((run / "result.json").exists() for run in disturbed.glob("digits-*"))
                print(f"kill {kills}: the sweep, {ended} runs ended")
                deadline = time.monotonic() + 20
                while alive(own) and time.monotonic() < deadline:
                    time.sleep(0.1)
                assert not alive(own), "a worker outlived its sweep"
            else:
                finish(process)
                process = None
                compare(disturbed, root / "undisturbed")
                finished += 1  # a sweep may end between two kills
                disturbed.rename(root / f"finished{finished}")
        finish(process or start(study, disturbed, cache, *alike))
        compare(disturbed, root / "undisturbed")
    print(f"equal after {kills} kills; {finished} sweeps ended in between", flush=True)


if __name__ == "__main__":
    main()
