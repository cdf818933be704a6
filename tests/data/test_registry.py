"""Data sets by name: what is in them, how they are split, and what is said when they are broken."""

import doctest
import itertools
import logging
import sys
import tarfile

import numpy as np
import pytest

from bocb_jax.data import DATASETS, from_arrays, named, open_dataset, register_dataset, registry
from bocb_jax.data.pipeline import train_batches
from bocb_jax.data.registry import OpenOptions, permutation, split_indices
from bocb_jax.errors import UnknownName, UserError


def contents(split):
    return [split[i]["image"].tobytes() + bytes([split[i]["label"]]) for i in range(len(split))]


def test_digits():
    data = open_dataset("digits")
    assert data.num_classes == len(data.class_names) == 10
    assert data.image_shape == (8, 8, 3)
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 1257,
        "validation": 270,
        "test": 270,
    }
    for split in data.splits.values():
        counts = np.bincount([split[i]["label"] for i in range(len(split))])
        assert counts.max() - counts.min() <= 7  # 174 to 183 of each in all
    train = data.splits["train"]
    pixels = train.images / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), data.mean, atol=1e-3)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), data.std, atol=1e-3)
    assert train.images.min() == 0
    assert train.images.max() == 255


def test_digits_splits_share_nothing_and_follow_the_seed():
    splits = open_dataset("digits").splits
    parts = [contents(splits[key]) for key in ("train", "validation", "test")]
    assert len(set().union(*parts)) == sum(len(set(part)) for part in parts)
    again = open_dataset("digits", split_seed=0).splits
    other = open_dataset("digits", split_seed=1).splits
    assert contents(again["test"]) == parts[2]
    assert contents(other["test"]) != parts[2]


def test_split_indices_take_the_same_share_of_every_class():
    labels = np.random.default_rng(0).choice(5, 1000, p=[0.5, 0.3, 0.1, 0.09, 0.01])
    parts = split_indices(labels, [0.1, 0.2], seed=4)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    total = np.bincount(labels, minlength=5)
    for part, share in zip(parts, [0.7, 0.1, 0.2], strict=True):
        assert np.abs(np.bincount(labels[part], minlength=5) - share * total).max() <= 1


def test_a_lone_example_stays_in_training():
    train, *_ = split_indices(np.array([0] * 20 + [1]), [0.15, 0.15], seed=0)
    assert 20 in train


def test_few_examples_of_many_classes_can_be_split():
    parts = split_indices(np.repeat(np.arange(30), 2), [0.1, 0.1], seed=0)
    assert [len(part) for part in parts] == [48, 6, 6]
    assert [len(part) for part in split_indices(np.arange(3), [0.1, 0.1], seed=0)] == [1, 1, 1]
    with pytest.raises(UserError, match="too few"):
        split_indices(np.arange(2), [0.1, 0.1], seed=0)


def test_permutations_are_the_same_for_ever():
    # Splits and the order of batches rest on these; see that they never change.
    assert permutation(8, 3, 1).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]
    assert sorted(permutation(1000, 0, 2**63)) == list(range(1000))


def test_grey_arrays_become_three_channels():
    images = np.arange(20 * 4 * 4, dtype=np.uint16).reshape(20, 4, 4).astype(np.uint8)
    for shape in ((20, 4, 4), (20, 4, 4, 1)):
        data = from_arrays("grey", images.reshape(shape), np.arange(20) % 2)
        batch = data.splits["train"].gather(np.array([3, 5]))
        assert batch["image"].shape == (2, 4, 4, 3)
        assert batch["image"].flags.c_contiguous
        assert (batch["image"][..., :1] == batch["image"]).all()


IMAGES, LABELS = np.zeros((20, 4, 4, 3), np.uint8), np.arange(20) % 4


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


def test_splits_of_other_shapes_or_names_are_refused():
    with pytest.raises(UserError, match="different shapes"):
        from_arrays("bad", IMAGES, LABELS, test=(IMAGES[:, :2], LABELS))
    with pytest.raises(UserError, match="labels up to 3, but 2 class names"):
        from_arrays("bad", IMAGES, LABELS, class_names=("a", "b"))


def test_given_splits_are_kept():
    data = from_arrays("given", IMAGES, LABELS, validation=(IMAGES + 1, LABELS))
    assert len(data.splits["validation"]) == 20
    assert data.splits["validation"][0]["image"].max() == 1
    assert len(data.splits["train"]) + len(data.splits["test"]) == 20


def test_ones_own_data_set(monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))

    @register_dataset("own")
    def own(options):
        return from_arrays("own", IMAGES, LABELS, split_seed=options.split_seed)

    assert open_dataset("own").num_classes == 4
    assert "own" in DATASETS.names()
    with pytest.raises(UserError, match="registered already"):
        register_dataset("own")(own)


def test_by_import_path(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import numpy as np\n"
        "from bocb_jax.data import from_arrays\n"
        "def opener(options):\n"
        "    return from_arrays('mine', np.zeros((9, 4, 4), np.uint8), np.arange(9) % 3)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert open_dataset("mine:opener").num_classes == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [("digit", "Did you mean digits"), ("cifar-10", "cifar10"), ("nothing:here", "nothing")],
)
def test_unknown_names(name, message):
    with pytest.raises(UnknownName, match=message):
        open_dataset(name)


def test_the_docstrings_run(monkeypatch):
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))
    result = doctest.testmod(registry)
    assert result.attempted
    assert not result.failed


def test_on_corrupt_is_checked():
    with pytest.raises(UserError, match="'fail' or 'skip'"):
        OpenOptions(on_corrupt="ignore")


# The CIFAR archives, made small.


def write_cifar(folder, cifar, per_file=100):
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*cifar.train, *cifar.test):
        records = random.integers(0, 256, (per_file, cifar.label_bytes + 3072), np.uint8)
        records[:, : cifar.label_bytes] %= 10
        records[:, cifar.label_bytes :] = 7  # all of a channel alike, channels apart
        records[:, cifar.label_bytes + 1024 : cifar.label_bytes + 2048] = 8
        records.tofile(folder / name)
    (folder / cifar.class_names).write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_as_it_is_distributed(name, tmp_path):
    cifar = {"cifar10": named._CIFAR10, "cifar100": named._CIFAR100}[name]
    write_cifar(tmp_path / cifar.folder, cifar)
    data = open_dataset(name, data_dir=str(tmp_path), download=False)
    train = 100 * len(cifar.train)
    sizes = {key: len(split) for key, split in data.splits.items()}
    assert sizes["test"] == 100
    assert sizes["train"] + sizes["validation"] == train
    assert sizes["validation"] == 0.1 * train
    assert data.image_shape == (32, 32, 3)
    assert data.class_names[3] == "class3"
    example = data.splits["test"][0]
    assert example["image"][5, 6].tolist() == [7, 8, 7]
    raw = np.fromfile(tmp_path / cifar.folder / cifar.test[0], np.uint8)
    assert example["label"] == raw[cifar.label_bytes - 1]  # the fine label, not the coarse one


def test_cifar_is_fetched_checked_and_unpacked_once(tmp_path, monkeypatch):
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    write_cifar(away / named._CIFAR10.folder, named._CIFAR10)
    with tarfile.open(away / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(away / named._CIFAR10.folder, named._CIFAR10.folder)
    served = registry.dataclasses.replace(
        named._CIFAR10, url=(away / "cifar-10-binary.tar.gz").as_uri()
    )
    monkeypatch.setattr(named, "_CIFAR10", served)
    with pytest.raises(UserError, match="checksum"):
        open_dataset("cifar10", data_dir=str(here))
    assert list(here.iterdir()) == []  # nothing half-fetched is left

    digest = named.hashlib.sha256((away / "cifar-10-binary.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(named, "_CIFAR10", registry.dataclasses.replace(served, sha256=digest))
    assert len(open_dataset("cifar10", data_dir=str(here)).splits["test"]) == 100
    assert sorted(x.name for x in here.iterdir()) == [
        "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
    ]  # fmt: skip
    (here / "cifar-10-binary.tar.gz").unlink()
    assert len(open_dataset("cifar10", data_dir=str(here), download=False).splits["test"]) == 100


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_what_is_not_there_is_said_in_a_sentence(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}.* is not in {tmp_path}.*switched off"):
        open_dataset(name, data_dir=str(tmp_path), download=False)


def test_a_broken_cifar_archive(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz.* cannot be unpacked"):
        open_dataset("cifar10", data_dir=str(tmp_path))
    (tmp_path / "cifar-10-binary.tar.gz").unlink()
    write_cifar(tmp_path / "cifar-10-batches-bin", named._CIFAR10)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match="does not hold cifar10 whole"):
        open_dataset("cifar10", data_dir=str(tmp_path))


# TensorFlow Datasets, without TensorFlow and without network.


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
    # The image says which one it is: nothing is in two splits, nothing is lost.
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
        ("tfds:tiny_shape", "is not in .* nor is there one of that name"),
        ("tfds:cifar1", "Did you mean tfds:cifar10"),
        ("tfds:imdb_reviews", "not one of images with a class each"),
        ("tfds:", "cannot be opened"),
        ("tfds:mnist", r"is not in .* and cannot be prepared: storage\.googleapis\.com"),
        ("tfds:imagenet2012", "cannot be prepared: Manual directory"),
        ("imagenet2012", "cannot be prepared: Manual directory"),
    ],
)
def test_tfds_that_cannot_be_had(name, message, tmp_path, monkeypatch, capfd):
    def no_network(*args, **kwargs):
        raise OSError("Name or service not known")

    monkeypatch.setattr("socket.create_connection", no_network)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(name, data_dir=str(tmp_path))
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")  # TFDS is not heard


def test_tfds_without_tensorflow_cannot_prepare_and_says_so(tmp_path, monkeypatch, capfd):
    from helpers.tfds_tiny import NeedsTensorFlow  # noqa: F401  (registers itself)

    with pytest.raises(UserError, match="cannot be prepared without TensorFlow"):
        open_dataset("tfds:needs_tensor_flow", data_dir=str(tmp_path))
    assert "Failed to import" not in capfd.readouterr().out


def test_logging_of_tfds_is_left_as_it_was(tfds_dir):
    from absl import logging as absl_logging

    before = absl_logging.get_verbosity(), logging.getLogger().level
    open_dataset("tfds:tiny_shapes", data_dir=tfds_dir)
    assert (absl_logging.get_verbosity(), logging.getLogger().level) == before
