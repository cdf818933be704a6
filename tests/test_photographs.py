"""The images of the study on photographs come from CIFAR-100's official binary files."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SCRIPT = Path(__file__).parents[1] / "experiments" / "photographs_images.py"
CLASSES = {"apple": "fruit", "bear": "carnivores", "pear": "fruit"}
COARSE = ("carnivores", "fruit")


@pytest.fixture
def official(tmp_path):
    """Three classes of 72 training and 101 test images, shuffled: each of one color of its own."""
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    (folder / "fine_label_names.txt").write_text("\n".join(CLASSES) + "\n")
    (folder / "coarse_label_names.txt").write_text("\n".join(COARSE) + "\n\n")
    rng = np.random.default_rng(0)
    for name, count in (("train", 72), ("test", 101)):
        labels = rng.permutation(np.repeat(np.arange(len(CLASSES)), count))
        seen = dict.fromkeys(range(len(CLASSES)), 0)
        rows = []
        for label in labels:
            coarse = COARSE.index(list(CLASSES.values())[label])
            pixels = np.zeros((3, 32, 32), np.uint8)
            pixels[:] = np.array([seen[label], 10 * label, 200])[:, None, None]
            pixels[0, 0, 1] = 255  # the second column of the first row
            rows.append(np.concatenate([[coarse, label], pixels.ravel()]).astype(np.uint8))
            seen[label] += 1
        np.concatenate(rows).tofile(folder / f"{name}.bin")
    return folder


def run(*words):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, words)], capture_output=True, text=True, check=False
    )


def test_the_first_images_of_each_class_by_superclass(official, tmp_path):
    out = tmp_path / "photographs"
    done = run(official, out)
    assert done.returncode == 0, done.stderr
    counts = {part: len(list((out / part).rglob("*.png"))) for part in ("train", "val", "test")}
    assert counts == {"train": 3 * 50, "val": 3 * 20, "test": 3 * 100}
    assert sorted(p.name for p in (out / "train").iterdir()) == ["carnivores", "fruit"]
    for part, first, last in (("train", 0, 49), ("val", 50, 69)):
        for i in (first, last):
            pixels = np.asarray(Image.open(out / part / "fruit" / f"pear_{i:04d}.png"))
            assert pixels[5, 7].tolist() == [i, 20, 200]
            assert pixels[0, 1].tolist() == [255, 20, 200]


def test_nothing_is_written_over(official, tmp_path):
    (tmp_path / "there").mkdir()
    done = run(official, tmp_path / "there")
    assert done.returncode == 2
    assert "there exists; name a new folder" in done.stderr
    done = run(tmp_path, tmp_path / "new")
    assert "lacks train.bin, test.bin" in done.stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("train.bin", lambda content: content[:-1], "train.bin is cut off"),
        ("test.bin", lambda content: content[: 3074 * 120], "are needed"),
        ("test.bin", lambda content: b"", "test.bin has 0 images of apple; 100 are needed"),
        ("train.bin", lambda content: b"\x63" + content[1:], "beyond the 3 and 2 names"),
        ("train.bin", lambda content: content[:1] + b"\x63" + content[2:], "beyond the 3"),
    ],
)
def test_other_files_are_a_sentence(official, tmp_path, file, change, message):
    (official / file).write_bytes(change((official / file).read_bytes()))
    done = run(official, tmp_path / "out")
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert message in done.stderr
