"""Crops made on the host: the published distribution, the pixels of Pillow, the same bits."""

import io

import jax
import numpy as np
import pytest
from PIL import Image

from bocb_jax.data import records
from bocb_jax.data.loader import Loader
from bocb_jax.data.records import RandomCrop, decode, decode_crop
from bocb_jax.data.registry import open_dataset
from bocb_jax.engine.sharding import batch_sharding, make_mesh
from bocb_jax.errors import UserError


def photograph(width=500, height=375):
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def as_jpeg(image):
    encoded = io.BytesIO()
    image.save(encoded, "jpeg", quality=90)
    return encoded.getvalue()


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        path = tmp_path / "train" / "ab"[number % 2] / f"{number:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(as_jpeg(photograph(40 + number, 60 - number)))
    return f"folder:{tmp_path}"


def test_boxes_have_the_share_and_the_aspect_that_is_asked():
    crop = RandomCrop((0.08, 1.0), (3 / 4, 4 / 3))
    boxes = np.array([crop.box(500, 375, (0, 0, row)) for row in range(4000)])
    left, top, right, bottom = boxes.T
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (right <= 500).all()
    assert (bottom <= 375).all()
    width, height = right - left, bottom - top
    share, aspect = width * height / (500 * 375), width / height
    assert 0.075 < share.min() < 0.1
    assert 0.72 < aspect.min() < 0.77
    assert 1.3 < aspect.max() < 1.36
    # Drawn evenly, but for large shares, of which the image holds few aspects. The standard error
    # of a frequency over 4,000 draws is below 0.008.
    small = share[share < 0.5]
    assert abs(np.mean(small < 0.29) - 0.5) < 0.04
    # Places are even: over the room that is left, the mean is a half.
    assert abs(np.mean(left / np.maximum(500 - width, 1)) - 0.5) < 0.03


def test_a_box_that_never_fits_falls_back_to_the_middle():
    assert RandomCrop((1.0, 1.0), (3 / 4, 4 / 3)).box(1000, 10, (0,)) == (493, 0, 506, 10)
    assert RandomCrop().box(1, 1, (0,)) == (0, 0, 1, 1)


@pytest.fixture(params=["simd", "pillow"])
def resizer(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(records, "cykooz_resizer", None)
    return request.param


def test_a_crop_is_that_of_pillow(resizer):
    # The same box out of the image decoded at full size; scaling inside the JPEG decoder is a
    # box filter, which tells in the finest detail alone.
    file = as_jpeg(photograph(640, 427))
    for box in [(0, 0, 640, 427), (100, 50, 400, 300), (10, 10, 74, 90)]:
        ours = decode_crop(file, 64, lambda w, h, box=box: box)
        with Image.open(io.BytesIO(file)) as image:
            whole = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC, box)
        assert np.abs(ours.astype(int) - np.asarray(whole)).mean() < 2.0
    if resizer == "pillow":  # the last box needs no scaling
        np.testing.assert_array_equal(ours, np.asarray(whole))


def test_a_crop_is_the_interpolation_that_is_meant(resizer):
    # Of middling contrast, so that nothing overshoots and is clipped.
    image = photograph().point(lambda level: 64 + level // 2)
    file = as_jpeg(image)
    for box in [(0, 0, 500, 375), (20, 30, 420, 330), (200, 100, 270, 180)]:
        ours = decode_crop(file, 224, lambda w, h, box=box: box)
        for channel in range(3):
            level = Image.fromarray(decode(file)[..., channel].astype(np.float32))
            exact = np.asarray(level.resize((224, 224), Image.Resampling.BICUBIC, box))
            # Half a level is rounded away between the passes, which weights of 1.25 in absolute sum
            # carry over, and half a level at the end; the filter is rounded to some 10 bits.
            assert np.abs(ours[..., channel] - exact).max() < 1.25 / 2 + 1 / 2 + 0.25


def test_a_box_to_the_edge_of_an_image_decoded_smaller(resizer):
    # Half of it has 15 pixels, but 29 * (15 / 29) is more.
    file = as_jpeg(photograph(29, 29))
    assert decode_crop(file, 7, lambda w, h: (0, 0, w, h)).shape == (7, 7, 3)


def test_jpeg_decodes_to_the_bits_of_pillow():
    for mode in ("RGB", "L", "CMYK"):
        for quality, subsampling in ((60, 2), (90, 1), (97, 0)):
            file = io.BytesIO()
            image = photograph(101, 75).convert(mode)
            image.save(file, "jpeg", quality=quality, subsampling=subsampling)
            with Image.open(file) as image:
                np.testing.assert_array_equal(decode(file.getvalue()), image.convert("RGB"))


def test_the_test_image_is_resized_and_its_middle_taken():
    image = photograph(300, 200)
    encoded = io.BytesIO()
    image.save(encoded, "png")
    ours = decode(encoded.getvalue(), 70, 0.875)
    theirs = image.resize((120, 80), Image.Resampling.BICUBIC).crop((25, 5, 95, 75))
    np.testing.assert_array_equal(ours, np.asarray(theirs))
    # An image that already has the size is enlarged and cropped all the same.
    square = io.BytesIO()
    image.crop((0, 0, 70, 70)).save(square, "png")
    assert not np.array_equal(decode(square.getvalue(), 70, 0.875), decode(square.getvalue(), 70))


def batches(folder, count, start=0, **kwargs):
    settings = {"batch_size": 8, "image_size": 16, "sharding": batch_sharding(make_mesh())}
    loader = Loader(open_dataset(folder), crop=RandomCrop(), **(settings | kwargs))
    with loader.train(seed=3) as iterator:
        if start:
            iterator.set_state(iterator.get_state() | {"step": start})
        return [next(iterator) for _ in range(count)]


def test_every_reading_gives_another_crop_and_the_same_step_the_same(folder):
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


def test_one_device_and_worker_processes_change_nothing(folder):
    straight = batches(folder, 3)
    one = batches(folder, 3, sharding=batch_sharding(make_mesh(devices=1)))
    for a, b in zip(straight, one, strict=True):
        np.testing.assert_array_equal(jax.device_get(a["image"]), jax.device_get(b["image"]))


@pytest.mark.slow
def test_worker_processes_crop_alike(folder):
    straight, workers = batches(folder, 3), batches(folder, 3, workers=2)
    for a, b in zip(straight, workers, strict=True):
        np.testing.assert_array_equal(a["image"], b["image"])


def test_what_is_cropped_anew_cannot_live_on_the_devices(folder):
    with pytest.raises(UserError, match=r"leave out --data\.on-device yes"):
        batches(folder, 1, on_device="yes")
