"""The named data sets: digits, CIFAR in its original files, and what TFDS prepares.

TFDS's own builders run here on small data in the original file formats. They use TensorFlow to read
files and to encode arrays as PNG; the standard library and Pillow do both here. The rest is the
code that prepares the real data.
"""

import dataclasses
import hashlib
import io
import os
import tarfile
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bocb_jax.data import named, open_dataset
from bocb_jax.data.pipeline import train_batches
from bocb_jax.errors import UserError


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
        assert counts.max() - counts.min() <= 7  # there are 174 to 183 of each
    train = data.splits["train"]
    pixels = train.images / 255
    np.testing.assert_allclose(pixels.mean((0, 1, 2)), data.mean, atol=1e-3)
    np.testing.assert_allclose(pixels.std((0, 1, 2)), data.std, atol=1e-3)
    assert train.images.min() == 0
    assert train.images.max() == 255


def test_digits_splits_are_disjoint_and_depend_on_the_seed():
    splits = open_dataset("digits").splits
    parts = [contents(splits[key]) for key in ("train", "validation", "test")]
    assert len(set().union(*parts)) == sum(len(set(part)) for part in parts)
    again = open_dataset("digits", split_seed=0).splits
    other = open_dataset("digits", split_seed=1).splits
    assert contents(again["test"]) == parts[2]
    assert contents(other["test"]) != parts[2]


# Small imitations of CIFAR's archives.


def write_cifar(folder, cifar, per_file=100):
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in (*cifar.train, *cifar.test):
        records = random.integers(0, 256, (per_file, cifar.label_bytes + 3072), np.uint8)
        records[:, : cifar.label_bytes] %= 10
        records[:, cifar.label_bytes :] = 7  # tells the channels apart
        records[:, cifar.label_bytes + 1024 : cifar.label_bytes + 2048] = 8
        records.tofile(folder / name)
    (folder / cifar.class_names).write_text("\n".join(f"class{i}" for i in range(10)) + "\n\n")


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_from_its_original_files(name, tmp_path):
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


def test_cifar_is_downloaded_checked_and_unpacked_once(tmp_path, monkeypatch):
    away, here = tmp_path / "away", tmp_path / "here"
    away.mkdir()
    write_cifar(away / named._CIFAR10.folder, named._CIFAR10)
    with tarfile.open(away / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(away / named._CIFAR10.folder, named._CIFAR10.folder)
    served = dataclasses.replace(named._CIFAR10, url=(away / "cifar-10-binary.tar.gz").as_uri())
    monkeypatch.setattr(named, "_CIFAR10", served)
    with pytest.raises(UserError, match="checksum"):
        open_dataset("cifar10", data_dir=str(here))
    assert list(here.iterdir()) == []  # no partial download is left

    digest = hashlib.sha256((away / "cifar-10-binary.tar.gz").read_bytes()).hexdigest()
    monkeypatch.setattr(named, "_CIFAR10", dataclasses.replace(served, sha256=digest))
    assert len(open_dataset("cifar10", data_dir=str(here)).splits["test"]) == 100
    assert sorted(x.name for x in here.iterdir()) == [
        "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
    ]  # fmt: skip
    (here / "cifar-10-binary.tar.gz").unlink()
    assert len(open_dataset("cifar10", data_dir=str(here), download=False).splits["test"]) == 100


def test_two_processes_may_unpack_at_once(tmp_path, monkeypatch):
    cifar, replace = named._CIFAR10, os.replace
    write_cifar(tmp_path / "other", cifar)
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "other", cifar.folder)

    def late(source, target):
        (tmp_path / "other").rename(target)  # the other process was faster
        replace(source, target)

    monkeypatch.setattr(os, "replace", late)
    assert len(open_dataset("cifar10", data_dir=str(tmp_path)).splits["test"]) == 100
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "imagenet2012"])
def test_missing_data_sets_are_reported(name, tmp_path):
    with pytest.raises(UserError, match=f"{name}.* is not in {tmp_path}.*switched off"):
        open_dataset(name, data_dir=str(tmp_path), download=False)


def test_a_broken_cifar_archive(tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(b"\x1f\x8b" + bytes(100))
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.gz.* cannot be unpacked"):
        open_dataset("cifar10", data_dir=str(tmp_path))
    (tmp_path / "cifar-10-binary.tar.gz").unlink()
    assert list(tmp_path.iterdir()) == []  # nothing half unpacked is left
    write_cifar(tmp_path / "cifar-10-batches-bin", named._CIFAR10)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin").write_bytes(bytes(100))
    with pytest.raises(UserError, match="does not hold all of cifar10"):
        open_dataset("cifar10", data_dir=str(tmp_path))


# What TFDS prepares.

# On a local disk, `os.path.exists` and `open` do what these functions of TensorFlow do.
FILES = types.SimpleNamespace(exists=os.path.exists, GFile=open)
SHIM = types.SimpleNamespace(io=types.SimpleNamespace(gfile=FILES))
SYNSETS = ("n01440764", "n01443537", "n15075141")  # labels 0, 1 and 999


def jpeg(value, size=(20, 16), mode="RGB"):
    file = io.BytesIO()
    Image.new(mode, size, (value,) * len(mode)).save(file, "JPEG", quality=95)
    return file.getvalue()


def archive(path, members):
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """ILSVRC2012_img_train.tar, an archive of archives, and ILSVRC2012_img_val.tar, prepared."""
    import tensorflow_datasets.datasets.imagenet2012.imagenet2012_dataset_builder as builder
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

    root = tmp_path_factory.mktemp("imagenet")
    manual = root / "downloads" / "manual"
    manual.mkdir(parents=True)
    classes = {}
    for number, synset in enumerate(SYNSETS):
        archive(
            root / synset,
            {
                f"{synset}_{i}.JPEG": jpeg(
                    40 * number, (20 + i, 30 - i), "CMYK" if i == 3 else "RGB"
                )
                for i in range(10)
            },
        )
        classes[f"{synset}.tar"] = (root / synset).read_bytes()
    archive(manual / "ILSVRC2012_img_train.tar", classes)
    # The first images of the official validation split, by name; TFDS knows their labels.
    names = [f"ILSVRC2012_val_{i:08}.JPEG" for i in range(1, 9)]
    archive(manual / "ILSVRC2012_img_val.tar", {name: jpeg(99) for name in names})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(builder, "tf", SHIM)
        patch.setattr(imagenet_common, "tf", SHIM)
        patch.setattr(extractor, "tf", SHIM)
        prepared = tfds.builder("imagenet2012", data_dir=root, file_format="array_record")
        config = tfds.download.DownloadConfig(manual_dir=manual)
        prepared.download_and_prepare(download_config=config)
    return str(root)


def test_imagenet(imagenet):
    data = open_dataset("imagenet2012", data_dir=imagenet)
    assert data.num_classes == 1000
    assert data.image_shape is None
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 27,
        "validation": 3,
        "test": 8,  # the official validation split
    }
    seen = {}
    for key in ("train", "validation"):
        split = data.splits[key].sized(16)
        for i in range(len(split)):
            example = split[i]
            assert example["image"].shape == (16, 16, 3)
            seen.setdefault(int(example["label"]), []).append(example["image"].mean())
    # Every image arrived under its own label; CMYK ones were converted.
    assert {label: len(found) for label, found in seen.items()} == {0: 10, 1: 10, 999: 10}
    for label, value in ((0, 0), (1, 40), (999, 80)):
        assert np.median(seen[label]) == pytest.approx(value, abs=2)


def test_imagenet_in_batches(imagenet):
    split = open_dataset("imagenet2012", data_dir=imagenet).splits["train"]
    with train_batches(split, batch_size=9, seed=0, image_size=8) as batches:
        labels = np.concatenate([next(batches)["label"] for _ in range(3)])
    assert set(labels) == {0, 1, 999}


def png_of(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    file.seek(0)
    return file


def write_cifar100(folder, broken=()):
    """The binary version: coarse label, fine label, 3 x 32 x 32 bytes."""
    folder.mkdir(parents=True)
    for name, count in (("train.bin", 40), ("test.bin", 10)):
        records = np.zeros((count, 3074), np.uint8)
        records[:, 0] = np.arange(count) % 20
        records[:, 1] = np.arange(count) % 100
        records[:, 2:] = np.arange(count)[:, None]
        records.tofile(folder / name)
    (folder / "coarse_label_names.txt").write_text("".join(f"coarse{i}\n" for i in range(20)))
    (folder / "fine_label_names.txt").write_text("".join(f"fine{i}\n" for i in range(100)))
    return broken


def prepare_cifar100(root, broken=()):
    from tensorflow_datasets.image_classification import cifar

    write_cifar100(root / "archive" / "cifar-100-binary")
    load = cifar._load_data

    def as_files(path, labels_number):
        for number, (labels, image) in enumerate(load(path, labels_number)):
            damaged = number in broken and path.endswith("train.bin")
            yield labels, io.BytesIO(b"\x89PNG\r\n\x1a\n") if damaged else png_of(image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cifar, "tf", SHIM)
        patch.setattr(cifar, "_load_data", as_files)
        patch.setattr(
            tfds.download.DownloadManager,
            "download_and_extract",
            lambda self, url: str(root / "archive"),
        )
        builder = tfds.builder("cifar100", data_dir=root, file_format="array_record")
        builder.download_and_prepare()
    return str(root)


def test_cifar100(tmp_path):
    data = open_dataset("cifar100", data_dir=prepare_cifar100(tmp_path))
    assert data.num_classes == 100
    assert data.class_names[7] == "fine7"
    assert data.image_shape == (32, 32, 3)
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 36,
        "validation": 4,
        "test": 10,
    }
    for split in data.splits.values():
        for i in range(len(split)):
            example = split[i]
            assert (example["image"] == example["label"]).all()  # the fine label, not the coarse


def test_a_damaged_record_fails_by_name_or_is_skipped(tmp_path, caplog):
    folder = prepare_cifar100(tmp_path, broken=(3,))
    split = open_dataset("cifar100", data_dir=folder).splits["train"]
    with pytest.raises(UserError, match=r"number \d+ of split 'train' of 'cifar100'"):
        [split[i] for i in range(len(split))]
    split = open_dataset("cifar100", data_dir=folder, on_corrupt="skip").splits["train"]
    labels = {int(split[i]["label"]) for i in range(len(split))}
    assert 3 not in labels
    assert "It is skipped (1 so far)" in caplog.text
