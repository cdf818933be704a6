"""TensorFlow Datasets, without TensorFlow and without a network."""

import itertools
import logging
import sys

import numpy as np
import pytest

from bocb_jax.data import open_dataset
from bocb_jax.data.pipeline import train_batches
from bocb_jax.errors import UserError


@pytest.fixture(scope="module")
def tfds_dir(tmp_path_factory):
    """A folder with tiny data sets, written by TFDS's own tools; no builder stays registered."""
    from helpers.tfds_tiny import build

    path = tmp_path_factory.mktemp("tfds")
    build(path)
    return str(path)


def test_tfds_by_name(tfds_dir):
    data = open_dataset("tfds:tiny_shapes", data_dir=tfds_dir)
    assert data.num_classes == 3
    assert data.class_names == ("circle", "square", "star")
    assert data.image_shape == (6, 5, 3)
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 27,
        "validation": 3,
        "test": 10,
    }
    # Pixels number the images: none is in two splits, and none is lost.
    held = [sorted(split[i]["image"][0, 0, 0] for i in range(len(split)))
            for split in (data.splits["train"], data.splits["validation"])]  # fmt: skip
    assert sorted(itertools.chain(*held)) == list(range(30))
    example = data.splits["test"][4]
    assert example["image"].shape == (6, 5, 3)
    assert example["label"] == example["image"][0, 0, 0] % 3
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize("workers", [0, 1])
def test_tfds_in_batches(tfds_dir, workers):
    split = open_dataset("tfds:tiny_shapes", data_dir=tfds_dir).splits["train"]
    with train_batches(split, batch_size=9, seed=0, workers=workers) as batches:
        epoch = [next(batches) for _ in range(3)]
    images = np.concatenate([batch["image"] for batch in epoch])
    labels = np.concatenate([batch["label"] for batch in epoch])
    assert len(set(images[:, 0, 0, 0])) == 27
    np.testing.assert_array_equal(images[:, 0, 0, 0] % 3, labels)


def test_tfds_official_splits_and_varying_sizes(tfds_dir):
    data = open_dataset("tfds:tiny_varying", data_dir=tfds_dir)
    assert data.image_shape is None
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 18,
        "validation": 2,
        "test": 6,  # the official validation split
    }
    (batch,) = [next(train_batches(data.splits["train"], batch_size=4, seed=0, image_size=8))]
    assert batch["image"].shape == (4, 8, 8, 3)


def test_tfds_names_a_broken_record(tfds_dir):
    data = open_dataset("tfds:tiny_broken", data_dir=tfds_dir)
    with pytest.raises(UserError, match="number 1 of split 'test' of 'tiny_broken'"):
        data.splits["test"][1]
    with pytest.raises(UserError, match="number"):
        next(train_batches(data.splits["test"], batch_size=4, seed=0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tfds:tiny_shape", "is not in .* TFDS has no data set of that name"),
        ("tfds:cifar1", "Did you mean tfds:cifar10"),
        ("tfds:imdb_reviews", "does not consist of images with one class each"),
        ("tfds:", "cannot be opened"),
        ("tfds:mnist", r"is not in .* and cannot be prepared: storage\.googleapis\.com"),
        ("tfds:imagenet2012", "cannot be prepared: Manual directory"),
        ("imagenet2012", "cannot be prepared: Manual directory"),
    ],
)
def test_unavailable_data_sets_are_reported(name, message, tmp_path, monkeypatch, capfd):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(name, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # TFDS prints nothing


def test_preparing_without_tensorflow_is_refused(tmp_path, monkeypatch, capfd):
    from helpers.tfds_tiny import NeedsTensorFlow  # noqa: F401  (registers itself)

    with pytest.raises(UserError, match="cannot be prepared without TensorFlow"):
        open_dataset("tfds:needs_tensor_flow", data_dir=str(tmp_path))
    assert "Failed to import" not in capfd.readouterr().out


def test_logging_of_tfds_is_restored(tfds_dir):
    from absl import logging as absl_logging

    before = absl_logging.get_verbosity(), logging.getLogger().level
    open_dataset("tfds:tiny_shapes", data_dir=tfds_dir)
    assert (absl_logging.get_verbosity(), logging.getLogger().level) == before
