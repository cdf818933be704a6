"""What damaged disks and hands leave of a run: config.json without its content, flipped bits."""

import functools
import json
import os
from pathlib import Path

from bad_input.row import Row

SETTINGS = ["--model", "vit_mini", "--opt", "sgd", "--workdir", ".", "--run-id", "a"]
SETTINGS += ["--log.progress", "none"]
LEFT = {
    "state": "a/checkpoints/last/7/state/d/x",
    "weights": "a/checkpoints/best/7/state/d/x",
    "metrics": "a/metrics.jsonl",
}
CONFIGS = {
    "empty": "{}",
    "unresolved": json.dumps({"config": {"model": "vit_mini"}, "resolved": None}),
}
# Changes of what Orbax writes about a tree.
METADATA = [
    ('"tree_metadata": {', '"tree_metadata": {}, "other": {'),
    ('"key_type": 2}, {"key": "head"', '"key_type": 1}, {"key": "head"'),
    ('"key": "params", "key_type": 2', '"key": "0", "key_type": 1'),
    ('"value_type": "np.ndarray"', '"value_type": "Dict"'),
    ("np.ndarray", "None"),
]
NO_OBJECTS = {"null": "null", "blank": "", "cut": '{"config": {', "list": "[]"}


def best(folder: Path) -> Path:
    """Make a run with best weights; return their folder."""
    import numpy as np

    from bocb_jax.engine.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "a" / "checkpoints")
    weights = {"params": {"head": {"kernel": np.ones((4, 4), np.float32)}}, "model_state": {}}
    checkpoints.save_best(7, weights, {})
    checkpoints.wait()
    checkpoints.close()
    return folder / "a" / "checkpoints" / "best" / "7"


def best_with_a_flipped_bit(folder: Path, *, file: str) -> None:
    """Make a run with best weights, and flip a bit in the largest file or the checksums."""
    found = [path for path in best(folder).rglob(file) if path.is_file()]
    path = max(found, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def best_with_other_metadata(folder: Path, *, old: str, new: str) -> None:
    """Make best weights as earlier versions saved them, and change what they say they hold."""
    from bocb_jax.engine import checksums

    here = best(folder)
    (here / checksums.FILE).unlink()
    path = here / "state" / "_METADATA"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def best_with_other_checksums(folder: Path, *, kind: str) -> None:
    """Make a run with best weights, and something else in place of their checksums."""
    from bocb_jax.engine import checksums

    path = best(folder) / checksums.FILE
    path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        lines = b"0123  \xff\n"
        last = f"{checksums._digest_of(lines)}  {checksums._LIST}\n"
        path.write_bytes(lines + last.encode())


ROWS = [
    *(
        Row(f"metadata-{number}", ["patterns", "a"], r"weights in .* cannot be read",
            prepare=functools.partial(best_with_other_metadata, old=old, new=new))
        for number, (old, new) in enumerate(METADATA)
    ),
    *(
        Row(f"checksums-{kind}", ["patterns", "a"], f"are damaged: .*{says}",
            prepare=functools.partial(best_with_other_checksums, kind=kind))
        for kind, says in {
            "fifo": "is no regular file", "device": "is no regular file",
            "folder": "is a folder", "latin": "is missing",
        }.items()
    ),
    *(
        Row(
            f"config-gone-{name}", ["train", *SETTINGS],
            r"a holds a run \(.*\), but its config\.json is gone; nothing was written\. Restore",
            files={path: "{}"},
        )
        for name, path in LEFT.items()
    ),
    *(
        Row(
            f"config-{kind}-{name}", ["train", *SETTINGS],
            r"but its config\.json has lost its settings|a/config\.json: ",
            files={path: "{}", "a/config.json": content},
        )
        for name, path in LEFT.items()
        for kind, content in CONFIGS.items()
    ),
    *(
        Row(
            f"config-{kind}-{name}", ["train", *SETTINGS], r"a/config\.json",
            files={path: "{}", "a/config.json": content},
        )
        for name, path in LEFT.items()
        for kind, content in NO_OBJECTS.items()
    ),
    Row("config-gone-result", ["train", *SETTINGS], r"config\.json is gone",
        files={"a/result.json": '{"status": "finished"}'}),
    *(
        Row(
            f"best-{kind}-{command}", [command, *arguments], says,
            prepare=functools.partial(best_with_a_flipped_bit, file=file),
        )
        for kind, file in {"bit": "*", "checksum-bit": "checksums*"}.items()
        for command, arguments, says in (
            ("patterns", ["a"], r"are damaged: .*Copy them again"),
            ("train", [*SETTINGS[:-4], "--run-id", "b", "--init", "a"], "are damaged: .*Copy"),
        )
    ),
]  # fmt: skip
