"""Folders of image files: what is found, how it is decoded, and what is said when it is broken."""

import io
import logging
import pickle

import numpy as np
import pytest
from PIL import Image

from bocb_jax.data import open_dataset, records
from bocb_jax.data.pipeline import evaluation_batches, train_batches
from bocb_jax.data.records import CachedSplit, EncodedSplit, decode
from bocb_jax.errors import UserError


def write(path, value=0, size=(10, 8)):
    """An image file, all of one value; size is (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value,) * 3).save(path)


def make_folder(root, **splits):
    """Folders with classes cat and dog, so many images of each; values count up from 0."""
    for split, count in splits.items():
        for label, name in enumerate(("cat", "dog")):
            for i in range(count):
                write(root / split / name / f"{i:03}.png", value=2 * i + label)


def open_folder(root, **options):
    return open_dataset(f"folder:{root}", **options)


def values(split, size=8):
    split = split.sized(size)
    return sorted(int(split[i]["image"][0, 0, 0]) for i in range(len(split)))


def test_all_three_splits(tmp_path):
    make_folder(tmp_path, train=10, val=3, test=4)
    data = open_folder(tmp_path)
    assert data.num_classes == 2
    assert data.class_names == ("cat", "dog")
    assert data.image_shape is None
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 20, "validation": 6, "test": 8,
    }  # fmt: skip
    for split in data.splits.values():
        split = split.sized(8)
        for i in range(len(split)):
            assert split[i]["image"].shape == (8, 8, 3)
            assert split[i]["label"] == split[i]["image"][0, 0, 0] % 2


def test_validation_is_held_out_of_train(tmp_path):
    make_folder(tmp_path, train=20, test=4)
    splits = open_folder(tmp_path).splits
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == (36, 4, 8)
    assert sorted(values(splits["train"]) + values(splits["validation"])) == list(range(40))
    assert sum(value % 2 for value in values(splits["validation"])) == 2  # of each class alike
    assert values(open_folder(tmp_path).splits["validation"]) == values(splits["validation"])
    others = {tuple(values(open_folder(tmp_path, split_seed=i).splits["validation"]))
              for i in range(4)}  # fmt: skip
    assert len(others) > 1


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_val_serves_for_testing_and_that_is_said(tmp_path, caplog, name):
    make_folder(tmp_path, train=20, **{name: 3})
    splits = open_folder(tmp_path).splits
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == (36, 4, 6)
    assert f"'{name}' serves for testing" in caplog.text


def test_train_alone_serves_for_all_and_that_is_said(tmp_path, caplog):
    make_folder(tmp_path, train=20)
    splits = open_folder(tmp_path).splits
    assert sorted(sum((values(split) for split in splits.values()), [])) == list(range(40))  # noqa: RUF017
    assert "neither 'val' nor 'test'" in caplog.text


def test_what_counts_as_an_image(tmp_path):
    make_folder(tmp_path, train=5, val=2, test=2)
    write(tmp_path / "train" / "cat" / "deeper" / "still" / "UPPER.JPG")
    write(tmp_path / "train" / "cat" / "naïve ñame.webp")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / ".git").mkdir()
    data = open_folder(tmp_path)
    assert data.num_classes == 2
    assert len(data.splits["train"]) == 12
    values(data.splits["train"])  # all of them can be read


def test_a_path_relative_to_the_data_dir(tmp_path):
    make_folder(tmp_path / "pets", train=5, val=2, test=2)
    assert len(open_dataset("folder:pets", data_dir=str(tmp_path)).splits["test"]) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: None, "There is no folder"),
        (lambda root: root.mkdir(), "has no folder 'train'"),
        (lambda root: write(root / "cat" / "1.png"), "has no folder 'train'"),
        (lambda root: (root / "train").mkdir(parents=True), "no folders in it, one per class"),
        (lambda root: write(root / "train" / "1.png"), "no folders in it, one per class"),
        (
            lambda root: (make_folder(root, train=3), (root / "train" / "eel").mkdir()),
            "class folder '.*eel' holds no image",
        ),
        (
            lambda root: (make_folder(root, train=3), write(root / "test" / "eel" / "1.png")),
            "class 'eel' that the training images do not have",
        ),
        (
            lambda root: (make_folder(root, train=3), (root / "val" / "cat").mkdir(parents=True)),
            "val' holds no images",
        ),
        (lambda root: make_folder(root, train=1), "too few"),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, spoil, message):
    root = tmp_path / "images"
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        open_folder(root)
    assert "\n" not in str(caught.value)


# Decoding.


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def grey16(value):
    return Image.fromarray(np.full((5, 6), value, np.uint16))


def transparent_palette():
    image = Image.new("P", (6, 5), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6  # to be shown turned by a quarter


COLOUR = (200, 100, 50)
PLAIN = Image.new("RGB", (6, 5), COLOUR)
FORMS = {
    "rgb": (encode(PLAIN, "PNG"), COLOUR),
    "lossless": (encode(PLAIN, "WEBP", lossless=True), COLOUR),
    "turned by a tag": (encode(PLAIN, "JPEG", exif=ORIENTED), COLOUR),
    "animated": (
        encode(PLAIN, "GIF", save_all=True, append_images=[Image.new("RGB", (6, 5))]),
        COLOUR,
    ),
    "alpha": (encode(Image.new("RGBA", (6, 5), (*COLOUR, 0)), "PNG"), COLOUR),
    "palette": (encode(transparent_palette(), "PNG"), COLOUR),
    "palette with alpha": (encode(transparent_palette(), "PNG", transparency=b"\x10\x80"), COLOUR),
    "cmyk": (encode(Image.new("CMYK", (6, 5), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "bilevel": (encode(Image.new("1", (6, 5), 1), "PNG"), (255, 255, 255)),
    "grey": (encode(Image.new("L", (6, 5), 77), "PNG"), (77, 77, 77)),
    "grey jpeg": (encode(Image.new("L", (6, 5), 77), "JPEG"), (77, 77, 77)),
    "grey with alpha": (encode(Image.new("LA", (6, 5), (77, 9)), "PNG"), (77, 77, 77)),
    "white, 16 bits": (encode(grey16(65535), "PNG"), (255, 255, 255)),
    "grey, 16 bits": (encode(grey16(257 * 40), "PNG"), (40, 40, 40)),
    "grey tiff, 16 bits": (encode(grey16(257 * 40), "TIFF"), (40, 40, 40)),
}


@pytest.mark.parametrize(("data", "colour"), FORMS.values(), ids=FORMS)
def test_everything_becomes_rgb(data, colour):
    image = decode(data)
    assert image.shape == (5, 6, 3)  # also where a tag would have it turned
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), np.broadcast_to(colour, (5, 6, 3)), atol=4)
    assert decode(data, 4).shape == (4, 4, 3)


def test_one_pixel():
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), 8)[5, 5].tolist() == [1, 2, 3]


def test_the_middle_is_kept():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    assert decode(encode(Image.fromarray(wide), "PNG"), 20).min() == 255
    assert decode(encode(Image.fromarray(np.swapaxes(wide, 0, 1)), "PNG"), 20).min() == 255
    assert decode(encode(Image.new("RGB", (1, 300)), "PNG"), 16).shape == (16, 16, 3)


def test_a_large_jpeg_is_decoded_small_to_the_same_end():
    y, x = np.mgrid[:512, :640]
    image = np.stack([x % 256, y % 256, (x + y) % 256], -1)
    smooth = Image.fromarray(image.astype(np.uint8)).resize((640, 512)).reduce(4).resize((640, 512))
    data = encode(smooth, "JPEG", quality=95)
    short = Image.open(io.BytesIO(data)).convert("RGB").resize((80, 64), Image.Resampling.BICUBIC)
    want = np.asarray(short.crop((8, 0, 72, 64))).astype(int)
    assert np.abs(decode(data, 64) - want).mean() < 2


# Sizes, and the cache.


def test_the_cache_holds_what_is_decoded(tmp_path, monkeypatch):
    make_folder(tmp_path, train=8, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    small = split.sized(8)
    assert isinstance(small, CachedSplit)
    assert split.sized(8) is small  # evaluation after evaluation reads the same
    plain = EncodedSplit(split._records, (8, 8, 3), size=8)
    want = [plain[index] for index in (3, 15, 3)]
    for _ in range(2):
        batch = small.gather(np.array([3, 15, 3]))
        for i, example in enumerate(want):
            np.testing.assert_array_equal(batch["image"][i], example["image"])
            assert batch["label"][i] == example["label"]
        # The second time nothing is decoded.
        monkeypatch.setattr(records, "decode", lambda *_: pytest.fail("decoded twice"))
    monkeypatch.setattr(records, "CACHE_BYTES", 100)
    assert isinstance(split.sized(9), EncodedSplit)


def test_varying_sizes_want_a_size(tmp_path):
    make_folder(tmp_path, train=8, val=2, test=2)
    with pytest.raises(UserError, match="give an image_size"):
        train_batches(open_folder(tmp_path).splits["train"], batch_size=4, seed=0)


@pytest.mark.parametrize("cache", [0, 2**20])
def test_batches_from_files(tmp_path, monkeypatch, cache):
    monkeypatch.setattr(records, "CACHE_BYTES", cache)
    make_folder(tmp_path, train=16, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    with train_batches(split, batch_size=8, seed=0, image_size=6) as batches:
        epochs = [next(batches) for _ in range(8)]
    for epoch in (epochs[:4], epochs[4:]):
        images = np.concatenate([batch["image"] for batch in epoch])
        assert images.shape == (32, 6, 6, 3)
        assert sorted(images[:, 0, 0, 0]) == list(range(32))


def test_a_split_travels_to_workers(tmp_path):
    make_folder(tmp_path, train=8, val=2, test=2)
    split = open_folder(tmp_path).splits["train"]
    there = pickle.loads(pickle.dumps(split))
    np.testing.assert_array_equal(there.sized(8)[3]["image"], split.sized(8)[3]["image"])


# Broken files.


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
    assert (index == 4).sum() == 4  # the next one stands in, once an epoch
    for batch in epoch:
        np.testing.assert_array_equal(batch["image"][:, 0, 0, 0] % 2, batch["label"])
    warnings = [x for x in caplog.records if x.levelno == logging.WARNING]
    assert len(warnings) == 1  # once, not at every epoch
    assert "003.jpg" in warnings[0].getMessage()
    assert "--on-corrupt" not in warnings[0].getMessage()  # that is what was asked for


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
