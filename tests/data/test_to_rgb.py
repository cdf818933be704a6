"""Colors and numbers: what pixels of every mode become, or why they are refused."""

import functools
import io
import struct

import numpy as np
import pytest
from helpers.tiff import tiff
from PIL import Image

from bocb_jax.data.decode import decode
from bocb_jax.data.to_rgb import UnsuitableImage, to_rgb


def encode(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def levels(data):
    """The levels of a gray image, row by row."""
    image = decode(data)
    assert (image == image[..., :1]).all()
    return image[..., 0].ravel().tolist()


def ramp(kind, top):
    return np.linspace(0, top, 256).round().astype(kind).reshape(16, 16)


RAMP = list(range(256))


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("kind", ["<u2", ">u2"])
def test_16_bits_become_8(form, kind):
    assert levels(encode(Image.fromarray(ramp(kind, 65535)), form)) == RAMP


def test_16_bits_of_other_formats():
    assert levels(b"P5 2 1 65535 " + struct.pack(">2H", 0, 65535)) == [0, 255]
    assert levels(b"P5 3 1 4095 " + struct.pack(">3H", 0, 2048, 4095)) == [0, 127, 255]
    wide = encode(Image.fromarray(np.full((32, 32), 40 * 257, np.uint16)), "JPEG2000")
    assert set(levels(wide)) == {40}
    color = decode(b"P6 1 1 65535 " + struct.pack(">3H", 65535, 0, 40 * 257))
    assert color.tolist() == [[[255, 0, 40]]]


@pytest.mark.parametrize(
    ("bits", "data", "want"),
    [
        (1, bytes([0b01000000]), [0, 255]),
        (2, bytes([0b00110000]), [0, 255]),
        (4, bytes([0x0F]), [0, 255]),
        (8, bytes([3, 200]), [3, 200]),
        (12, bytes([0x00, 0x0F, 0xFF]), [0, 255]),  # not 15, as if it were 16 bits
        (16, struct.pack("<2H", 257, 65535), [1, 255]),
    ],
)
def test_tiffs_are_scaled_by_their_bits(bits, data, want):
    assert levels(tiff(2, 1, data, bits=bits)) == want
    if bits != 12:  # Pillow reads those of 12 bits in one form alone
        inverted = levels(tiff(2, 1, data, bits=bits, white_is_zero=True))
        assert inverted == [255 - level for level in want]


def test_floats_from_0_to_1():
    image = Image.fromarray(ramp(np.uint8, 255).astype(np.float32) / 255)
    assert levels(encode(image, "TIFF")) == RAMP
    assert levels(encode(image, "TIFF", compression="tiff_lzw")) == RAMP
    assert levels(b"Pf\n2 1\n-1.0\n" + struct.pack("<2f", 0, 1)) == [0, 255]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (tiff(2, 1, struct.pack("<2f", 0, 255), bits=32, form=3), "floats from 0 to 255"),
        (tiff(2, 1, struct.pack("<2f", -0.5, 1), bits=32, form=3), "floats from -0.5 to 1"),
        (tiff(2, 1, struct.pack("<2f", 0, np.nan), bits=32, form=3), "floats from nan to nan"),
        (tiff(2, 1, struct.pack("<2f", 0, np.inf), bits=32, form=3), "floats from 0 to inf"),
        (tiff(2, 1, struct.pack("<2I", 0, 2**32 - 1), bits=32), "integers of 32 bits"),
        (tiff(2, 1, struct.pack("<2i", 0, 255), bits=32, form=2), "signed integers"),
        (tiff(2, 1, struct.pack("<2h", -1, 255), bits=16, form=2), "signed integers"),
        (tiff(2, 1, bytes([0, 255]), form=2), "signed integers"),
        (tiff(2, 1, struct.pack("<2d", 0, 1), bits=64, form=3), "a TIFF of a kind that Pillow"),
    ],
)
def test_numbers_of_unknown_range_are_refused(data, reason):
    with pytest.raises(UnsuitableImage, match=reason):
        decode(data)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits"])
def test_modes_of_tiffs(compression):
    def color(mode, value):
        image = decode(encode(Image.new(mode, (6, 5), value), "TIFF", compression=compression))
        assert (image == image[0, 0]).all()
        return tuple(image[0, 0].tolist())

    assert color("1", 1) == (255, 255, 255)
    assert color("RGBA", (200, 100, 50, 0)) == (200, 100, 50)
    assert color("LA", (77, 0)) == (77, 77, 77)
    assert color("CMYK", (0, 255, 255, 0)) == (255, 0, 0)
    assert color("YCbCr", (128, 128, 128)) == (128, 128, 128)


def test_modes_that_are_not_converted_are_named():
    image = Image.new("LAB", (2, 2), (255, 128, 128))
    image.convert = functools.partial(refuse, image)  # older versions of Pillow do
    with pytest.raises(UnsuitableImage, match="mode LAB, which is not converted; save it as RGB"):
        to_rgb(image)


def refuse(image, mode):
    raise ValueError(f"conversion from {image.mode} to {mode} not supported")


def test_jpegs_of_four_channels_are_inverted_as_adobe_writes_them():
    data = encode(Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", quality=95)
    assert b"Adobe" in data
    assert decode(data).max() < 5
    data = encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG", quality=95)
    assert decode(data).min() > 250


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_several(form):
    first, second = Image.new("RGB", (16, 16), (250, 0, 0)), Image.new("RGB", (16, 16))
    data = encode(first, form, save_all=True, append_images=[second])
    np.testing.assert_allclose(decode(data)[8, 8].astype(int), (250, 0, 0), atol=6)


def test_progressive_jpegs():
    image = Image.linear_gradient("L").convert("RGB")
    plain, progressive = (encode(image, "JPEG", progressive=x) for x in (False, True))
    np.testing.assert_array_equal(decode(plain), decode(progressive))
