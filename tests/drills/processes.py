"""Trains runs on several processes of this machine, and looks for one that hangs.

    python tests/drills/processes.py --processes 2 --runs 40

Every run saves its state every few steps and its best weights at the same steps. It must end in
all processes within a time limit, with the losses of one process but for rounding.
"""

import argparse
import json
import math
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

SETTINGS = (
    "--model vit_mini --opt lamb --model-args.depth 1 --model-args.width 16 --model-args.heads 2 "
    "--epochs 4 --batch-size 64 --image-size 16 --checkpoint.every-steps 11 --log.every-steps 1 "
    "--data.workers 0 --augment.only"
)
# Of a loss, which begins near ln(10) = 2.3. Sums over devices round in another order: each of the
# run's 88 steps adds about float32's 2**-24 of the loss.
TOLERANCE = 2.3 * 88 * 2**-24


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("localhost", 0))
        return server.getsockname()[1]


def start(
    workdir: Path,
    cache: Path,
    processes: int,
    *options: str,
    each: list[list[str]] | None = None,
    piped: bool = False,
    program: Sequence[str] = ("-m", "bocb_jax.train"),
) -> list[subprocess.Popen]:
    """Start all processes of a run.

    Args:
      workdir: folder of runs.
      cache: of compiled programs.
      processes: their number.
      options: further settings of all of them.
      each: further settings of each.
      piped: whether their output is kept for `communicate`; with `each` it is.
      program: of Python, that they run.
    """
    where = ["--workdir", str(workdir), "--log.progress", "none", *options]
    command = [sys.executable, *program, *SETTINGS.split(), *where]
    env = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PLATFORMS": "cpu"}
    env["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"
    pipe = subprocess.PIPE if piped or each else None
    several = ["--parallel.coordinator", f"localhost:{free_port()}", "--parallel.processes"]
    started = []
    for number in range(processes):
        own = each[number] if each else []
        if processes > 1:
            own = [*own, *several, str(processes), "--parallel.process", str(number)]
        started.append(
            subprocess.Popen([*command, *own], env=env, stdout=pipe, stderr=pipe, text=True)
        )
    return started


def wait(started: list[subprocess.Popen], seconds: float) -> list[int | None]:
    """Return the exit codes; None for a process that had to be killed."""
    deadline = time.monotonic() + seconds
    codes: list[int | None] = []
    for process in started:
        try:
            codes.append(process.wait(max(0.1, deadline - time.monotonic())))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            codes.append(None)
    return codes


def losses(workdir: Path) -> list[float]:
    """Return the training loss of every step of the only run in a folder; none if there is none."""
    lines = [
        json.loads(line)
        for path in workdir.glob("*/metrics.jsonl")
        for line in path.read_text().splitlines()
    ]
    return [line["loss"] for line in lines if "loss" in line]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=300, help="limit of a run")
    parser.add_argument("--fsdp", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        cache = root / "cache"
        codes = wait(start(root / "one", cache, 1), options.seconds)
        expected = losses(root / "one")
        if codes != [0] or not expected:
            print(f"The run of one process failed: codes {codes}")
            return 1
        failed = 0
        for number in range(options.runs):
            workdir = root / f"run{number}"
            began = time.monotonic()
            more = ["--parallel.fsdp", str(options.fsdp)]
            codes = wait(start(workdir, cache, options.processes, *more), options.seconds)
            found = losses(workdir)
            off = max((abs(a - b) for a, b in zip(found, expected, strict=False)), default=math.nan)
            good = codes == [0] * options.processes and len(found) == len(expected)
            failed += not (good and off <= TOLERANCE)
            took = time.monotonic() - began
            print(
                f"run {number}: codes {codes}, {len(found)} of {len(expected)} losses, off by "
                f"{off:.1e}, {took:.0f} s",
                flush=True,
            )
    print(f"{failed} of {options.runs} runs of {options.processes} processes failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
