"""Splits that decode: caching, random crops, and unreadable images."""

import io
import logging
import pickle

import jax
import numpy as np
import pytest
from helpers.image_folder import make_folder
from helpers.sample_crops import photographs
from PIL import Image

from bocb_jax.data import open_dataset, splits
from bocb_jax.data.decode import RandomCrop
from bocb_jax.data.exif import orientation
from bocb_jax.data.loader import Loader
from bocb_jax.data.pipeline import evaluation_batches, train_batches
from bocb_jax.data.splits import CachedSplit, EncodedSplit
from bocb_jax.engine.sharding import batch_sharding, make_mesh
from bocb_jax.errors import UserError


def open_folder(root, **options):
    return open_dataset(f"folder:{root}", **options)


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def test_the_cache_holds_what_is_decoded(tmp_path, monkeypatch):
    make_folder(tmp_path, train=8, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    small = split.sized(8)
    assert isinstance(small, CachedSplit)
    assert split.sized(8) is small  # every evaluation shares one cache
    plain = EncodedSplit(split._records, (8, 8, 3), size=8)
    want = [plain[index] for index in (3, 15, 3)]
    for _ in range(2):
        batch = small.gather(np.array([3, 15, 3]))
        for i, example in enumerate(want):
            np.testing.assert_array_equal(batch["image"][i], example["image"])
            assert batch["label"][i] == example["label"]
        # The second round decodes nothing.
        monkeypatch.setattr(splits, "decode", lambda *_: pytest.fail("decoded twice"))
    monkeypatch.setattr(splits, "MAX_CACHE_BYTES", 100)
    assert isinstance(split.sized(9), EncodedSplit)


def test_varying_sizes_need_an_image_size(tmp_path):
    make_folder(tmp_path, train=8, val=2, test=2)
    with pytest.raises(UserError, match="give an image_size"):
        train_batches(open_folder(tmp_path).splits["train"], batch_size=4, seed=0)


@pytest.mark.parametrize("cache", [0, 2**20])
def test_batches_from_files(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(splits, "MAX_CACHE_BYTES", cache)
    make_folder(tmp_path, train=16, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    with train_batches(split, batch_size=8, seed=0, image_size=6) as batches:
        epochs = [next(batches) for _ in range(8)]
    for epoch in (epochs[:4], epochs[4:]):
        images = np.concatenate([batch["image"] for batch in epoch])
        assert images.shape == (32, 6, 6, 3)
        assert sorted(images[:, 0, 0, 0]) == list(range(32))


def test_splits_too_large_for_the_cache_keep_their_size(tmp_path, monkeypatch):
    # For example ImageNet: the pipeline must not undo the loader's resizing.
    monkeypatch.setattr(splits, "MAX_CACHE_BYTES", 0)
    make_folder(tmp_path, train=8, val=4, test=4)
    for number in range(3):
        Image.new("RGB", (20 + number, 12)).save(tmp_path / "test" / "cat" / f"{number:03}.png")
    settings = {"batch_size": 8, "image_size": 6, "sharding": batch_sharding(make_mesh())}
    loader = Loader(open_folder(tmp_path), test_size=5, crop_ratio=0.875, **settings)
    with loader.train(seed=0) as train, loader.evaluation("test") as test:
        assert next(train)["image"].shape == (8, 6, 6, 3)
        assert next(test)["image"].shape == (8, 5, 5, 3)


def test_a_split_can_be_pickled(tmp_path):
    make_folder(tmp_path, train=8, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    there = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(there.sized(8)[3]["image"], split.sized(8)[3]["image"])


# Random crops.


@pytest.fixture
def folder(tmp_path):
    image = Image.fromarray(photographs()[0])
    for number in range(40):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(image.resize((40 + number, 60 - number)), "JPEG", quality=90))
    return f"folder:{tmp_path}"


def batches(folder, count, start=0, **kwargs):
    settings = {"batch_size": 8, "image_size": 16, "sharding": batch_sharding(make_mesh())}
    loader = Loader(open_dataset(folder), crop=RandomCrop(), **(settings | kwargs))
    with loader.train(seed=3) as iterator:
        if start:
            iterator.set_state(iterator.get_state() | {"step": start})
        return [next(iterator) for _ in range(count)]


def test_crops_differ_by_step_and_are_reproducible(folder):
    straight = batches(folder, 12)
    again = batches(folder, 4, start=8)
    for a, b in zip(straight[8:], again, strict=True):
        for key in a:
            np.testing.assert_array_equal(a[key], b[key])
    seen = {}
    for batch in straight:
        for image, index in zip(
            np.asarray(batch["image"]), np.asarray(batch["index"]), strict=True
        ):
            seen.setdefault(int(index), set()).add(image.tobytes())
    assert max(len(crops) for crops in seen.values()) >= 3
    assert all(batch["image"].shape == (8, 16, 16, 3) for batch in straight)


def test_one_device_gives_the_same_crops(folder):
    straight = batches(folder, 3)
    one = batches(folder, 3, sharding=batch_sharding(make_mesh(devices=1)))
    for a, b in zip(straight, one, strict=True):
        np.testing.assert_array_equal(jax.device_get(a["image"]), jax.device_get(b["image"]))


@pytest.mark.slow
def test_worker_processes_give_the_same_crops(folder):
    straight, workers = batches(folder, 3), batches(folder, 3, workers=2)
    for a, b in zip(straight, workers, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_randomly_cropped_images_cannot_live_on_the_devices(folder):
    with pytest.raises(UserError, match=r"leave out --data\.on-device yes"):
        batches(folder, 1, on_device="yes")


# Unreadable images.


@pytest.fixture
def broken(tmp_path):
    """20 images to train on, one of them cut short; 8 to test on, three of them no images."""
    make_folder(tmp_path, train=10, val=2, test=4)
    data = encode(Image.effect_noise((40, 40), 90).convert("RGB"), "JPEG")
    (tmp_path / "train" / "cat" / "003.png").unlink()
    (tmp_path / "train" / "cat" / "003.jpg").write_bytes(data[: len(data) // 2])
    (tmp_path / "test" / "cat" / "001.png").write_bytes(b"")
    (tmp_path / "test" / "cat" / "002.png").write_bytes(b"a page saying that you must log in")
    (tmp_path / "test" / "dog" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_file_is_named(broken, workers):
    split = open_folder(broken).splits["train"]
    batches = train_batches(split, batch_size=20, seed=0, image_size=8, workers=workers)
    with batches, pytest.raises(UserError) as caught:
        next(batches)
    said = str(caught.value)
    assert f"{broken}/train/cat/003.jpg cannot be read" in said
    assert "--on-corrupt skip" in said
    assert "\n" not in said


def test_a_broken_file_is_skipped_in_training(broken, caplog):
    split = open_folder(broken, on_corrupt="skip").splits["train"]
    with train_batches(split, batch_size=10, seed=0, image_size=8) as batches:
        epoch = [next(batches) for _ in range(4)]
    index = np.concatenate([batch["index"] for batch in epoch])
    assert 3 not in index  # the broken one
    assert (index == 4).sum() == 4  # once an epoch as itself, once for the broken one
    for batch in epoch:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 2, batch["label"])
    warnings = [x for x in caplog.records if x.levelno == logging.WARNING]
    assert len(warnings) == 1  # once, not at every epoch
    assert "003.jpg" in warnings[0].getMessage()
    assert "--on-corrupt" not in warnings[0].getMessage()  # it was given


def test_broken_files_have_no_weight_in_evaluation(broken, caplog):
    split = open_folder(broken, on_corrupt="skip").splits["test"]
    for _ in range(2):
        with evaluation_batches(split, batch_size=5, image_size=8) as batches:
            passed = list(batches)
        weight = np.concatenate([batch["weight"] for batch in passed])
        assert weight.tolist() == [1, 0, 0, 1, 1, 1, 1, 0, 0, 0]
    assert len(caplog.records) == 3
    assert "It is skipped (3 so far)." in caplog.text


def test_nothing_but_broken_files(tmp_path):
    make_folder(tmp_path, train=5, val=2, test=2)
    for path in (tmp_path / "train").rglob("*.png"):
        path.write_bytes(b"")
    split = open_folder(tmp_path, on_corrupt="skip").splits["train"]
    with pytest.raises(UserError, match=r"None of the 10 images from .* can be read"):
        next(train_batches(split, batch_size=4, seed=0, image_size=8))


def test_a_file_that_vanished(tmp_path):
    make_folder(tmp_path, train=5, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    (tmp_path / "train" / "cat" / "000.png").unlink()
    with pytest.raises(UserError, match=r"000\.png cannot be read .*No such file"):
        split[0]


# Orientations.


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP"])
def test_images_that_carry_an_orientation_are_counted(tmp_path, caplog, form):
    turned, upright = Image.Exif(), Image.Exif()
    turned[0x0112], upright[0x0112] = 6, 1
    for split, count in (("train", 30), ("val", 2), ("test", 2)):
        for name in ("cat", "dog"):
            for i in range(count):
                exif = {0: upright, 1: turned}.get(i % 3) if split == "train" else None
                data = encode(Image.new("RGB", (10, 8)), form, **({"exif": exif} if exif else {}))
                path = tmp_path / split / name / f"{i:02}.{form.lower()}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(data)
    split = open_folder(tmp_path).splits["train"]
    for _ in range(2):  # the second time nothing is new
        for i in range(60):
            assert split[i]["image"].shape == (8, 10, 3)  # as it is stored
    said = [x.getMessage() for x in caplog.records]
    assert len(said) == 2
    assert "01." in said[0]
    assert "EXIF orientation (6); these are not followed, as in torchvision's loaders" in said[0]
    assert "(1 of 60 so far)" in said[0]
    assert "(10 of 60 so far)" in said[1]


def test_an_orientation_in_a_damaged_or_odd_file():
    exif = Image.Exif()
    exif[0x0112] = 3
    for form in ("JPEG", "PNG", "WEBP"):
        data = encode(Image.new("RGB", (10, 8)), form, exif=exif)
        assert orientation(data) == 3
        for end in range(len(data)):
            assert orientation(data[:end]) in (1, 3)
    for value in (0, 9, 65535):
        exif[0x0112] = value
        assert orientation(encode(Image.new("RGB", (10, 8)), "JPEG", exif=exif)) == 1
    assert orientation(encode(Image.new("RGB", (10, 8)), "JPEG")) == 1
    assert orientation(b"") == orientation(b"\xff\xd8\xff\xe1\0\0") == 1


# Errors in worker processes.


def test_a_worker_process_names_the_image(broken):
    loader = Loader(
        open_folder(broken), batch_size=20, image_size=8, workers=2, on_device="no",
        sharding=batch_sharding(make_mesh(devices=1)),
    )  # fmt: skip
    with loader.train(seed=0) as train, pytest.raises(UserError) as caught:
        next(train)
    assert str(caught.value).startswith(f"The image {broken}/train/cat/003.jpg cannot be read (")
    assert "\n" not in str(caught.value)
