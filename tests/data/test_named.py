"""TFDS's own builders of the paper's data sets, on small data in the original file formats.

The builders touch TensorFlow for reading files and for encoding arrays as PNG; both are replaced by
the standard library and Pillow here. Everything else is the code that prepares the real data.
"""

import io
import os
import tarfile
import types

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from bocb_jax.data.pipeline import train_batches
from bocb_jax.data.registry import open_dataset
from bocb_jax.errors import UserError

# `os.path.exists` and `open` are what these two functions of TensorFlow are on a local disk.
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
    # Every image of every class came, under its own label; four-color ones were converted.
    assert {label: len(found) for label, found in seen.items()} == {0: 10, 1: 10, 999: 10}
    for label, value in ((0, 0), (1, 40), (999, 80)):
        assert np.median(seen[label]) == pytest.approx(value, abs=2)


def test_imagenet_is_trained_on_in_batches(imagenet):
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


def test_a_damaged_record_is_named_and_skipped_or_fails(tmp_path, caplog):
    folder = prepare_cifar100(tmp_path, broken=(3,))
    split = open_dataset("cifar100", data_dir=folder).splits["train"]
    with pytest.raises(UserError, match=r"number \d+ of split 'train' of 'cifar100'"):
        [split[i] for i in range(len(split))]
    split = open_dataset("cifar100", data_dir=folder, on_corrupt="skip").splits["train"]
    labels = {int(split[i]["label"]) for i in range(len(split))}
    assert 3 not in labels
    assert "It is skipped (1 so far)" in caplog.text


def test_a_label_out_of_range_does_not_get_in(tmp_path):
    from bocb_jax.data.registry import from_arrays

    images = np.zeros((20, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match="labels up to 12, but 10 class names"):
        from_arrays("short", images, np.arange(20) % 13, class_names=tuple("0123456789"))
