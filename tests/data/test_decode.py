"""Decoding: every format to RGB, the crops that are drawn, and the pixels that Pillow gives."""

import io

import numpy as np
import pytest
from PIL import Image

from bocb_jax.data import decode as decoding
from bocb_jax.data.decode import RandomCrop, decode, decode_crop


def photograph(width=500, height=375):
    from sklearn.datasets import load_sample_image

    image = Image.fromarray(load_sample_image("china.jpg"))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def as_jpeg(image):
    encoded = io.BytesIO()
    image.save(encoded, "jpeg", quality=90)
    return encoded.getvalue()


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def gray16(value):
    return Image.fromarray(np.full((5, 6), value, np.uint16))


def transparent_palette():
    image = Image.new("P", (6, 5), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    return image


ORIENTED = Image.Exif()
ORIENTED[0x0112] = 6  # to be displayed rotated by 90 degrees

COLOR = (200, 100, 50)
PLAIN = Image.new("RGB", (6, 5), COLOR)
FORMS = {
    "rgb": (encode(PLAIN, "PNG"), COLOR),
    "lossless": (encode(PLAIN, "WEBP", lossless=True), COLOR),
    "turned by a tag": (encode(PLAIN, "JPEG", exif=ORIENTED), COLOR),
    "animated": (
        encode(PLAIN, "GIF", save_all=True, append_images=[Image.new("RGB", (6, 5))]),
        COLOR,
    ),
    "alpha": (encode(Image.new("RGBA", (6, 5), (*COLOR, 0)), "PNG"), COLOR),
    "palette": (encode(transparent_palette(), "PNG"), COLOR),
    "palette with alpha": (encode(transparent_palette(), "PNG", transparency=b"\x10\x80"), COLOR),
    "cmyk": (encode(Image.new("CMYK", (6, 5), (0, 255, 255, 0)), "JPEG"), (255, 0, 0)),
    "bilevel": (encode(Image.new("1", (6, 5), 1), "PNG"), (255, 255, 255)),
    "gray": (encode(Image.new("L", (6, 5), 77), "PNG"), (77, 77, 77)),
    "gray jpeg": (encode(Image.new("L", (6, 5), 77), "JPEG"), (77, 77, 77)),
    "gray with alpha": (encode(Image.new("LA", (6, 5), (77, 9)), "PNG"), (77, 77, 77)),
    "white, 16 bits": (encode(gray16(65535), "PNG"), (255, 255, 255)),
    "gray, 16 bits": (encode(gray16(257 * 40), "PNG"), (40, 40, 40)),
    "gray tiff, 16 bits": (encode(gray16(257 * 40), "TIFF"), (40, 40, 40)),
}


@pytest.mark.parametrize(("data", "color"), FORMS.values(), ids=FORMS)
def test_everything_becomes_rgb(data, color):
    image = decode(data)
    assert image.shape == (5, 6, 3)  # also where the tag asks for a rotation
    assert image.dtype == np.uint8
    np.testing.assert_allclose(image.astype(int), np.broadcast_to(color, (5, 6, 3)), atol=4)
    assert decode(data, 4).shape == (4, 4, 3)


def test_one_pixel():
    assert decode(encode(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG"), 8)[5, 5].tolist() == [1, 2, 3]


def test_the_center_is_kept():
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, 20:40] = 255
    assert decode(encode(Image.fromarray(wide), "PNG"), 20).min() == 255
    assert decode(encode(Image.fromarray(np.swapaxes(wide, 0, 1)), "PNG"), 20).min() == 255
    assert decode(encode(Image.new("RGB", (1, 300)), "PNG"), 16).shape == (16, 16, 3)


def test_a_large_jpeg_decoded_at_a_fraction_gives_the_same():
    y, x = np.mgrid[:512, :640]
    image = np.stack([x % 256, y % 256, (x + y) % 256], -1)
    smooth = Image.fromarray(image.astype(np.uint8)).resize((640, 512)).reduce(4).resize((640, 512))
    data = encode(smooth, "JPEG", quality=95)
    short = Image.open(io.BytesIO(data)).convert("RGB").resize((80, 64), Image.Resampling.BICUBIC)
    want = np.asarray(short.crop((8, 0, 72, 64))).astype(int)
    assert np.abs(decode(data, 64) - want).mean() < 2


def test_random_crops_have_the_given_areas_and_aspects():
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
    # Areas are uniform, except for large ones, which fit with few aspects only. The standard error
    # of a frequency over 4,000 draws is below 0.008.
    small = share[share < 0.5]
    assert abs(np.mean(small < 0.29) - 0.5) < 0.04
    # Positions are uniform over the free space, with a mean of 1/2.
    assert abs(np.mean(left / np.maximum(500 - width, 1)) - 0.5) < 0.03


def test_random_crops_never_change():
    # Otherwise a run resumed after an upgrade would see other crops.
    boxes = [RandomCrop().box(500, 375, (3, step, row)) for step in (0, 7) for row in (0, 1)]
    assert boxes == [
        (76, 200, 212, 368), (23, 2, 477, 366), (120, 43, 440, 285), (214, 34, 490, 328),
    ]  # fmt: skip


def test_the_central_box_is_taken_if_none_fits():
    assert RandomCrop((1.0, 1.0), (3 / 4, 4 / 3)).box(1000, 10, (0,)) == (493, 0, 506, 10)
    assert RandomCrop().box(1, 1, (0,)) == (0, 0, 1, 1)


@pytest.fixture(params=["simd", "pillow"])
def resizer(request, monkeypatch):
    if request.param == "pillow":
        monkeypatch.setattr(decoding, "cykooz_resizer", None)
    return request.param


def test_crops_match_pillows(resizer):
    # Against the same box of the image decoded at full size: the JPEG decoder scales by a box
    # filter, which differs in the finest detail only.
    file = as_jpeg(photograph(640, 427))
    for box in [(0, 0, 640, 427), (100, 50, 400, 300), (10, 10, 74, 90)]:
        ours = decode_crop(file, 64, lambda w, h, box=box: box)
        with Image.open(io.BytesIO(file)) as image:
            whole = image.convert("RGB").resize((64, 64), Image.Resampling.BICUBIC, box)
        assert np.abs(ours.astype(int) - np.asarray(whole)).mean() < 2.0
    if resizer == "pillow":  # the last box is decoded at full size
        np.testing.assert_array_equal(ours, np.asarray(whole))


def test_crops_match_exact_interpolation(resizer):
    # Contrast is halved, so that no overshoot is clipped.
    image = photograph().point(lambda level: 64 + level // 2)
    file = as_jpeg(image)
    for box in [(0, 0, 500, 375), (20, 30, 420, 330), (200, 100, 270, 180)]:
        ours = decode_crop(file, 224, lambda w, h, box=box: box)
        for channel in range(3):
            level = Image.fromarray(decode(file)[..., channel].astype(np.float32))
            exact = np.asarray(level.resize((224, 224), Image.Resampling.BICUBIC, box))
            # Rounding costs half a level between the passes, amplified by weights of absolute sum
            # 1.25, and half a level at the end; the weights themselves have some 10 bits.
            assert np.abs(ours[..., channel] - exact).max() < 1.25 / 2 + 1 / 2 + 0.25


def test_a_box_at_the_edge_of_a_jpeg_decoded_at_a_fraction(resizer):
    # Half of 29 pixels are 15, but in floating point 29 * (15 / 29) is more.
    file = as_jpeg(photograph(29, 29))
    assert decode_crop(file, 7, lambda w, h: (0, 0, w, h)).shape == (7, 7, 3)


def test_jpegs_decode_to_pillows_bits():
    for mode in ("RGB", "L", "CMYK"):
        for quality, subsampling in ((60, 2), (90, 1), (97, 0)):
            file = io.BytesIO()
            image = photograph(101, 75).convert(mode)
            image.save(file, "jpeg", quality=quality, subsampling=subsampling)
            with Image.open(file) as image:
                np.testing.assert_array_equal(decode(file.getvalue()), image.convert("RGB"))


def test_evaluation_resizes_and_cuts_out_the_center():
    image = photograph(300, 200)
    encoded = io.BytesIO()
    image.save(encoded, "png")
    ours = decode(encoded.getvalue(), 70, 0.875)
    theirs = image.resize((120, 80), Image.Resampling.BICUBIC).crop((25, 5, 95, 75))
    np.testing.assert_array_equal(ours, np.asarray(theirs))
    # An image of the right size is enlarged and cropped too.
    square = io.BytesIO()
    image.crop((0, 0, 70, 70)).save(square, "png")
    assert not np.array_equal(decode(square.getvalue(), 70, 0.875), decode(square.getvalue(), 70))
