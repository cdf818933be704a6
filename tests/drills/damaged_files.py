"""Damage the files of a run at random and read them: a sentence or allowed values must come of it.

    PYTHONPATH=tests python tests/drills/damaged_files.py --seconds 600 [--kinds config result ...]

Bytes are flipped, cut off, repeated or replaced; in JSON, values too. An error other than a
`UserError`, a file that takes over 5 s, or over 1 GiB of memory on top of what the start took, is
printed, and makes the exit code 1.
"""

import argparse
import collections
import functools
import json
import logging
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from helpers import synthetic_runs
from test_run_files import WHOLE, sentence, write

from bocb_jax import results
from bocb_jax.coupling import curves
from bocb_jax.coupling.scores import from_results
from bocb_jax.engine import checksums, outcome
from bocb_jax.engine.checkpoint import Checkpoints, best_shapes, read_best
from bocb_jax.engine.memory import peak_memory
from bocb_jax.engine.metrics import kept_lines
from bocb_jax.patterns.checkpoints import read_record

SECONDS, BYTES = 5.0, 2**30  # that one file may take
VALUES = [None, True, 0, -1, 1.5, 2**63, 10**400, 1e308, "", "\ud800", "\x1b[2J", "..", "x" * 10**5,
          [], [[]], {}, {"a": {"a": {}}}, "NaN", "2026-01-01", ["a", 1]]  # fmt: skip


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Return bytes that were flipped, cut off, repeated or replaced in one to four places."""
    found = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 4))):
        at = draw.randrange(len(found) + 1)
        to = min(len(found), at + draw.choice((1, 1, 8, 64, 4096)))
        kind = draw.randrange(6)
        if kind <= 2 and at < len(found):
            found[at] ^= 1 << draw.randrange(8)
        elif kind == 3:
            del found[at:]
        elif kind == 4:
            found[at:at] = found[at:to] * draw.choice((1, 3, 1000))
        else:
            found[at:to] = draw.randbytes(to - at) if draw.random() < 0.5 else bytes(to - at)
    return bytes(found)


def damaged_json(content: bytes, draw: random.Random) -> bytes:
    """Return JSON with another value in some place, or damaged bytes."""
    if draw.random() < 0.4:
        return damaged(content, draw)
    whole = json.loads(content)
    table = whole
    while True:
        name = draw.choice(list(table) if isinstance(table, dict) else range(len(table)))
        inner = table[name]
        if not inner or not isinstance(inner, dict | list) or draw.random() < 0.3:
            break
        table = inner
    table[name] = draw.choice(VALUES)
    return json.dumps(whole).encode()


def damaged_lines(content: bytes, draw: random.Random) -> bytes:
    """Return JSON lines of which one is damaged, lost or out of order."""
    if draw.random() < 0.3:
        return damaged(content, draw)
    lines = content.splitlines(keepends=True)
    at = draw.randrange(len(lines))
    kind = draw.randrange(4)
    if kind == 0:
        del lines[at]
    elif kind == 1:
        lines.append(lines[at])
    else:
        lines[at] = damaged_json(lines[at].rstrip(b"\n"), draw) + b"\n"
    return b"".join(lines)


# --- Kinds: each takes a folder, and returns a function that damages a file in it and reads it ----


def json_of_a_run(name: str, folder: Path) -> Callable[[random.Random], None]:
    """Of `config.json`, `result.json` or `study.json`: what commands read of a folder of runs."""
    content = WHOLE[f"{name}.json"].encode()

    def read(draw: random.Random) -> None:
        write(folder, **{name: damaged_json(content, draw)})
        sentence(lambda: read_record(folder / "run"))
        results.save(results.read_runs(folder), folder)
        from_results(results.load(folder / results.FILE))

    return read


def metrics(folder: Path) -> Callable[[random.Random], None]:
    """Of `metrics.jsonl`: what a resumed run keeps, and what a report draws."""
    names = ("loss", "accuracy", "seconds", "epoch", "validation_accuracy")
    lines = [{"step": 10 * k} | dict.fromkeys(names, k / 50) for k in range(1, 50)]
    content = "".join(json.dumps(line) + "\n" for line in lines).encode()
    path = folder / "metrics.jsonl"

    def read(draw: random.Random) -> None:
        path.write_bytes(damaged_lines(content, draw))
        curves._points(path)
        kept = kept_lines(path, 250, draw.choice((None, 25)))
        outcome.summary(kept, 100)

    return read


def table(folder: Path) -> Callable[[random.Random], None]:
    """Of `results.parquet`."""
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw"])
    content = results.save(frame, folder).read_bytes()

    def read(draw: random.Random) -> None:
        (folder / results.FILE).write_bytes(damaged(content, draw))
        from_results(results.load(folder / results.FILE))

    return read


def checkpoint(folder: Path) -> Callable[[random.Random], None]:
    """Of `best`: with checksums, all damage is found; without, what Orbax finds."""
    checkpoints = Checkpoints(folder / "checkpoints")
    kernel = np.arange(4800, dtype=np.float32).reshape(80, 60)
    weights = {"params": {"fc": {"kernel": kernel, "bias": kernel[0]}}, "model_state": {}}
    checkpoints.save_best(7, weights, {"validation_accuracy": 0.5})
    checkpoints.wait()
    checkpoints.close()
    best = folder / "checkpoints" / "best" / "7"
    files = [path for path in sorted(best.rglob("*")) if path.is_file() and path.stat().st_size]
    sums = (best / checksums.FILE).read_bytes()

    def read(draw: random.Random) -> None:
        path = draw.choice(files)
        content = path.read_bytes()
        is_json = content.startswith(b"{") and content.rstrip().endswith(b"}")
        other = (damaged_json if is_json else damaged)(content, draw)
        listed = draw.random() < 0.3
        try:
            path.write_bytes(other)
            if not listed:
                (best / checksums.FILE).unlink()
            best_shapes(folder)
            read_best(folder)
            assert not listed or other == content, f"{path} was damaged and taken"
        finally:
            path.write_bytes(content)
            (best / checksums.FILE).write_bytes(sums)

    return read


KINDS = {
    **{name: functools.partial(json_of_a_run, name) for name in ("config", "result", "study")},
    "metrics": metrics, "table": table, "checkpoint": checkpoint,
}  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600.0, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=list(KINDS))
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    faults = 0
    for kind in options.kinds:
        with tempfile.TemporaryDirectory() as temporary:
            faults += fuzz(kind, Path(temporary), options.seconds, random.Random(options.seed))
    return bool(faults)


def fuzz(kind: str, folder: Path, seconds: float, draw: random.Random) -> int:
    """Damage and read files of a kind for so many seconds; return how many read wrongly."""
    case = KINDS[kind](folder)
    count: collections.Counter[str] = collections.Counter()
    slowest, memory = 0.0, peak_memory()
    shown = set()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        begun = time.process_time()
        try:
            count["a sentence" if sentence(lambda: case(draw)) else "values"] += 1
        except Exception as error:
            count["another error"] += 1
            where = traceback.extract_tb(error.__traceback__)[-1]
            if (where.filename, where.lineno) not in shown:
                shown.add((where.filename, where.lineno))
                traceback.print_exc()
        slowest = max(slowest, time.process_time() - begun)
    grown = peak_memory() - memory
    too_much = (slowest > SECONDS) + (grown > BYTES)
    print(f"{kind}: {count.total()} files, {dict(count)}; the slowest took {slowest:.2f} s of CPU, "
          f"memory grew by {grown / 2**20:.0f} MiB", flush=True)  # fmt: skip
    return count["another error"] + too_much


if __name__ == "__main__":
    sys.exit(main())
