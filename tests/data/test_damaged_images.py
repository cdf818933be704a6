"""Damaged, oversized and foreign files: a sentence that names them, or pixels; never more."""

import struct

import numpy as np
import pytest
from helpers.image_files import FORMS, damaged_files, encode, jpeg_of_size, png_of_size
from hypothesis import given, settings
from PIL import Image

from bocb_jax.data import decode as decoding
from bocb_jax.data.decode import RandomCrop, decode
from bocb_jax.data.splits import CroppedSplit, EncodedSplit
from bocb_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage, and goes on


class OneRecord:
    def __init__(self, data):
        self.data = data

    def __len__(self):
        return 1

    def __getitem__(self, index):
        return self.data, 0

    def name(self, index):
        return "/photos/one.jpg"


def read(data):
    """Read a file in both ways that a run does; every failure must be one sentence."""
    said = []
    for split in (
        EncodedSplit(OneRecord(data), size=8, crop_ratio=0.875),
        CroppedSplit(OneRecord(data), "fail", 8, RandomCrop()),
    ):
        try:
            image = split[0]["image"]
        except UserError as error:
            said.append(str(error))
            assert said[-1].startswith("The image /photos/one.jpg cannot be read (")
            assert said[-1].endswith("). Remove or replace it, or pass --on-corrupt skip.")
            assert "\n" not in said[-1]
            assert " at 0x" not in said[-1]
        else:
            assert image.shape == (8, 8, 3)
            assert image.dtype == np.uint8
    return said


@pytest.mark.parametrize("form", FORMS)
def test_the_valid_ones_are_read(form):
    assert read(FORMS[form]) == []


@settings(max_examples=400)
@given(damaged_files())
def test_damage_gives_a_sentence_or_pixels(drawn):
    read(drawn[1])


@pytest.mark.slow
@settings(max_examples=200_000)
@given(damaged_files())
def test_much_damage_gives_a_sentence_or_pixels(drawn):
    read(drawn[1])


@pytest.mark.parametrize("form", FORMS)
def test_cut_off_files(form):
    data = FORMS[form]
    for end in {0, 1, 4, 16, len(data) // 4, len(data) // 2}:
        said = read(data[:end])
        # A later frame may be what is missing.
        assert said or "animated" in form or "jpeg 2000" in form or "tiff" in form, end


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"<html><body>Sign in", "no image; JPEG, PNG"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (encode(Image.new("RGB", (4, 4)), "EPS"), "no image"),  # Pillow would run Ghostscript
        (encode(Image.new("RGB", (4, 4)), "PDF"), "no image"),
        (encode(Image.new("RGB", (16, 16)), "ICO"), "no image"),
        (png_of_size(60_000, 60_000), "3600000000 pixels"),
        (png_of_size(10_000, 10_000), "10,000 x 10,000 pixels would take more than 1 GiB"),
        (jpeg_of_size(65_500, 65_500), "65,500 x 65,500 pixels"),
        (jpeg_of_size(12_000, 12_000), "12,000 x 12,000 pixels would take more than 1 GiB"),
        (jpeg_of_size(3_000, 3_000, scans=300), "in 3[0-9][0-9] scans, which would take too long"),
        (b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(20), "pixels|damaged|no image"),
    ],
)
def test_foreign_and_oversized_files_are_refused(data, reason):
    with pytest.raises(Exception, match=reason):
        decode(data)
    assert len(read(data)) == 2


@pytest.mark.parametrize("size", [(1, 1), (1, 60_000), (60_000, 1), (3, 20_000)])
def test_images_of_any_aspect(size):
    data = png_of_size(*size, rows=size[1])
    assert read(data) == []
    assert decode(data, 224, 0.875).shape == (224, 224, 3)


def test_the_center_of_a_long_image_is_that_of_all_of_it(monkeypatch):
    # So long that the whole of it, resized, would take gigabytes; lowered here.
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (600, 12, 3), np.uint8))
    data = encode(image, "PNG")
    whole = decode(data, 16, 0.875).astype(int)
    monkeypatch.setattr(decoding, "_MAX_RESIZED", 0)
    # Sides are rounded to whole pixels in one way and not in the other.
    assert np.abs(decode(data, 16, 0.875).astype(int) - whole).max() <= 12


def test_a_large_baseline_jpeg_is_decoded_at_a_fraction():
    # 100 million pixels, as cameras have: an eighth of each side suffices.
    data = encode(Image.new("RGB", (12_000, 8_500), (200, 100, 50)), "JPEG")
    np.testing.assert_allclose(decode(data, 224)[0, 0].astype(int), (200, 100, 50), atol=3)
