"""Photographs of people's own: turned upright, of any size, from folders."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from bocb_jax.data.boxed import BoxedImages, Resize, padded_shapes
from bocb_jax.data.decode import decode
from bocb_jax.data.exif import turned
from bocb_jax.data.photo import Photo, Unannotated, photos_in, read_photo
from bocb_jax.errors import UserError


def drawn(width=20, height=12, mode="RGB"):
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image, kind="PNG", orientation=None):
    file = io.BytesIO()
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    image.save(file, kind, exif=exif)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_is_turned_as_pillow_turns_it(orientation, kind):
    content = encoded(drawn(), kind, orientation)
    with Image.open(io.BytesIO(content)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
    found = Photo("x", content).pixels()
    assert found.shape == expected.shape
    # The decoders of JPEG and WebP are the same ones, called in another way.
    assert np.abs(found.astype(int) - expected).max() <= 2
    assert np.array_equal(found, turned(decode(content), orientation))


@pytest.mark.parametrize("orientation", [0, 9, 77, None])
def test_other_orientations_turn_nothing(orientation):
    content = encoded(drawn(), "PNG", orientation)
    assert np.array_equal(Photo("x", content).pixels(), np.asarray(drawn()))


def test_squares_are_those_of_an_evaluation():
    content = encoded(drawn(100, 60))
    assert np.array_equal(Photo("x", content).square(32, 0.875), decode(content, 32, 0.875))
    small = encoded(drawn(12, 12))
    assert np.array_equal(Photo("x", small).fitted(12, 12), np.asarray(drawn(12, 12)))
    assert Photo("x", content).fitted(10, 20).shape == (10, 20, 3)
    same = encoded(drawn(20, 10))
    assert np.array_equal(Photo("x", same).fitted(10, 20), np.asarray(drawn(20, 10)))


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_becomes_rgb(mode):
    kind = "TIFF" if mode == "CMYK" else "PNG"
    image = drawn().convert("RGBA").convert(mode) if mode in ("LA", "P") else drawn(mode=mode)
    pixels = Photo("x", encoded(image, kind)).pixels()
    assert (pixels.shape, pixels.dtype) == ((12, 20, 3), np.uint8)


def test_what_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"lost.png' cannot be read: No such file"):
        read_photo(str(tmp_path / "lost.png"))
    with pytest.raises(UserError, match="empty' cannot be read: it is a folder"):
        read_photo(str(tmp_path / "empty"))
    with pytest.raises(UserError, match=r"text.png' cannot be decoded"):
        read_photo(str(tmp_path / "text.png")).pixels()
    with pytest.raises(UserError, match="empty' holds no image"):
        photos_in(str(tmp_path / "empty"))


def test_folders_stand_for_their_images(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt", ".hidden.png"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    assert photos_in(str(tmp_path)) == [str(tmp_path / "a.JPG"), str(tmp_path / "b.png")]
    assert photos_in(str(tmp_path / "b.png")) == [str(tmp_path / "b.png")]


@pytest.mark.parametrize(("width", "height"), [(20, 12), (1, 1), (900, 2), (1, 700), (33, 64)])
def test_images_of_any_size_become_examples(width, height):
    resize = Resize(64, (48, 48))
    images = Unannotated([np.asarray(drawn(width, height))])
    split = BoxedImages(images, resize, padded_shapes(resize))
    batch = split.gather(np.zeros(1, np.int32))
    assert batch["image"].shape[1:] in [(48 + 16, 64, 3), (64, 64, 3)]
    assert (batch["size"] >= 1).all()
    assert (batch["label"] == -1).all()
