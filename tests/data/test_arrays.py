"""Data sets from arrays: what is accepted, how it is split, and the messages about bad arrays."""

import numpy as np
import pytest

from bocb_jax.data import from_arrays
from bocb_jax.errors import UserError

IMAGES, LABELS = np.zeros((20, 4, 4, 3), np.uint8), np.arange(20) % 4


def test_gray_arrays_become_three_channels():
    images = np.arange(20 * 4 * 4, dtype=np.uint16).reshape(20, 4, 4).astype(np.uint8)
    for shape in ((20, 4, 4), (20, 4, 4, 1)):
        data = from_arrays("gray", images.reshape(shape), np.arange(20) % 2)
        batch = data.splits["train"].gather(np.array([3, 5]))
        assert batch["image"].shape == (2, 4, 4, 3)
        assert batch["image"].flags.c_contiguous
        assert (batch["image"][..., :1] == batch["image"]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((IMAGES.astype(float), LABELS), "float64"),
        ((IMAGES[..., :2], LABELS), "shape"),
        ((IMAGES, LABELS[:-1]), "each of the 20 images"),
        ((IMAGES, LABELS.astype(float)), "labels"),
        ((IMAGES, LABELS - 1), "start at -1"),
        ((IMAGES[:0], LABELS[:0]), "no training images"),
    ],
)
def test_bad_arrays_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        from_arrays("bad", *arguments)


def test_splits_of_unequal_shapes_are_refused():
    with pytest.raises(UserError, match="different shapes"):
        from_arrays("bad", IMAGES, LABELS, test=(IMAGES[:, :2], LABELS))
    with pytest.raises(UserError, match="labels up to 3, but 2 class names"):
        from_arrays("bad", IMAGES, LABELS, class_names=("a", "b"))


def test_given_splits_are_kept():
    data = from_arrays("given", IMAGES, LABELS, validation=(IMAGES + 1, LABELS))
    assert len(data.splits["validation"]) == 20
    assert data.splits["validation"][0]["image"].max() == 1
    assert len(data.splits["train"]) + len(data.splits["test"]) == 20


def test_labels_without_a_class_name_are_refused(tmp_path):
    images = np.zeros((20, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match="labels up to 12, but 10 class names"):
        from_arrays("short", images, np.arange(20) % 13, class_names=tuple("0123456789"))


def test_labels_with_gaps_are_counted_and_said(caplog):
    data = from_arrays("gaps", IMAGES, np.array([1, 3, 3, 6] * 5))
    assert data.num_classes == 7
    assert "3 of 7 occur, and 0 does not" in caplog.text
    caplog.clear()
    assert from_arrays("gaps", IMAGES, LABELS * 2, class_names=tuple("abcdefgh")).num_classes == 8
    from_arrays("none", IMAGES, LABELS)
    assert caplog.text == ""


def values(data):
    images = np.concatenate([split.load()["image"] for split in data.splits.values()])
    return sorted(images[:, 0, 0, 0].tolist())


def test_arrays_of_any_kind_hold_the_same(tmp_path):
    plain = np.arange(20, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 5, 3), np.uint8)
    want = values(from_arrays("plain", plain, LABELS))
    assert want == list(range(20))
    np.save(tmp_path / "images.npy", plain)
    kinds = {
        "list": [list(image) for image in plain],
        "Fortran order": np.asfortranarray(plain),
        "every second": np.repeat(plain, 2, axis=0)[::2],
        "backwards": plain[::-1][::-1],
        "transposed": np.ascontiguousarray(plain.transpose(0, 2, 1, 3)).transpose(0, 2, 1, 3),
        "memory map": np.load(tmp_path / "images.npy", mmap_mode="r"),
        "read-only": np.frombuffer(plain.tobytes(), np.uint8).reshape(plain.shape),
        "masked nowhere": np.ma.masked_array(plain),
    }
    for name, images in kinds.items():
        data = from_arrays(name, images, LABELS)
        assert values(data) == want, name
        assert data.image_shape == (4, 5, 3), name
    for kind in (np.uint8, np.int16, np.uint64, object):
        labels = LABELS.astype(kind)
        if kind is object:
            with pytest.raises(UserError, match="are object of shape"):
                from_arrays("labels", plain, labels)
        else:
            splits = from_arrays("labels", plain, labels).splits.values()
            found = np.concatenate([split.load()["label"] for split in splits])
            assert np.bincount(found).tolist() == [5, 5, 5, 5]
