"""Flip bits in a run's checkpoints, and cut files short: all damage must be found, none restored.

    PYTHONPATH=tests python tests/drills/bit_flips.py --flips 200 [--run RUN]

Without `--run`, a small run is trained first. Flips go to random bits of random files of `last` and
`best`, their checksums included, large files as often as small ones.
"""

import argparse
import contextlib
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

from drills import kill_run

from bocb_jax.engine import checksums
from bocb_jax.engine.checkpoint import read_best
from bocb_jax.errors import UserError


@contextlib.contextmanager
def damaged(path: Path, content: bytes) -> Iterator[None]:
    """Replace the content of a file inside the block."""
    before = path.read_bytes()
    path.write_bytes(content)
    try:
        yield
    finally:
        path.write_bytes(before)


def flipped(content: bytes, bit: int) -> bytes:
    found = bytearray(content)
    found[bit // 8] ^= 1 << bit % 8
    return bytes(found)


def is_found(folder: Path, name: str) -> bool:
    """Whether reading says that the checkpoint is damaged."""
    if name == "best":
        try:
            read_best(folder)
        except UserError as error:
            return "damaged" in str(error)
        return False
    return checksums.damage(newest(folder, name)) is not None


def newest(run: Path, name: str) -> Path:
    return max((run / "checkpoints" / name).iterdir(), key=lambda path: int(path.name))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--flips", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--run", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.WARNING)
    moments = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        run = options.run
        if run is None:
            kill_run.finish(kill_run.start(Path(temporary), Path(temporary) / "cache"))
            run = Path(temporary) / "the_run"
        counts = {"last": 0, "best": 0}
        for _ in range(options.flips):
            name = moments.choice(list(counts))
            files = [path for path in sorted(newest(run, name).rglob("*")) if path.is_file()]
            path = moments.choice([path for path in files if path.stat().st_size])
            content = path.read_bytes()
            bit = moments.randrange(8 * len(content))
            cut = moments.random() < 0.2
            with damaged(path, content[: bit // 8] if cut else flipped(content, bit)):
                assert is_found(run, name), f"bit {bit} of {path} (cut: {cut}) was not found"
            counts[name] += 1
        for name in counts:
            assert not is_found(run, name), f"{name} is whole again, and yet not"
    print(f"found {sum(counts.values())} of {options.flips}: {counts}", flush=True)


if __name__ == "__main__":
    main()
