"""Decoding of image files, with the crops and the resizing that the host does.

Everything is decoded to RGB uint8: gray is repeated, an alpha channel dropped, 16 bits scaled to 8,
and the first frame of an animation taken. The EXIF orientation is ignored, as in torchvision's,
timm's and TFDS's loaders, so that results are comparable; TIFFs alone are turned, by Pillow. What
has boxes or joints is turned by its readers.

Files come from anywhere: only formats of pixels are opened (Pillow would have Ghostscript run an
EPS file, whatever its name), and none whose decoding takes more than `MAX_DECODING_BYTES`.
"""

import contextlib
import dataclasses
import functools
import io
import math
import threading
from collections.abc import Callable, Sequence

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError
from PIL.Image import Resampling

from bocb_jax.data.to_rgb import UnsuitableImage, to_rgb

try:
    import cykooz_resizer
except ImportError:  # no wheel, for example on Linux on ARM
    cykooz_resizer = None

Box = tuple[int, int, int, int]  # left, top, right, bottom in pixels

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "JPEG2000", "AVIF")
MAX_DECODING_BYTES = 2**30
# A pixel takes four bytes as it is opened, four as RGB and three as an array. With twelve, the
# limit is Pillow's own of 89 million pixels, above which it warns.
_PILLOW_BYTES = 12
# Three as an array and four as Pillow's image; a JPEG of several scans keeps six of coefficients.
_JPEG_BYTES, _SCANS_BYTES = 7, 6
# Pixels times scans: a progressive JPEG of a few bytes a scan could keep the decoder busy for days.
_MAX_SCANNED = 2**31
_SCAN, _LEAST_SCAN_BYTES = b"\xff\xda", 10
# An image of which one side is so long that it grows beyond this is resized in its center alone.
_MAX_RESIZED = 2**26

# A resizer reuses its buffers from one image to the next and must not be shared by threads.
_local = threading.local()


@dataclasses.dataclass(frozen=True)
class RandomCrop:
    """Inception's random crop (Szegedy et al., 2015, arXiv 1409.4842).

    Args:
      scale: least and largest share of the image's area.
      ratio: least and largest aspect, width over height; drawn uniformly on a logarithmic scale.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)

    def box(self, width: int, height: int, key: tuple[int, ...]) -> Box:
        """Return the crop of an image as a pure function of its size and the key."""
        draw = np.random.Generator(np.random.Philox(np.random.SeedSequence(key))).random
        for _ in range(10):
            area = width * height * np.interp(draw(), (0, 1), self.scale)
            aspect = np.exp(np.interp(draw(), (0, 1), np.log(self.ratio)))
            w, h = round(np.sqrt(area * aspect)), round(np.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                left, top = int(draw() * (width - w + 1)), int(draw() * (height - h + 1))
                return left, top, left + w, top + h
        # No box fitted: the largest central one whose aspect is allowed.
        aspect = np.clip(width / height, *self.ratio)
        w, h = min(width, round(height * aspect)), min(height, round(width / aspect))
        left, top = (width - w) // 2, (height - h) // 2
        return left, top, left + w, top + h


def decode(encoded: bytes, size: int | None = None, crop_ratio: float = 1.0) -> np.ndarray:
    """Decode an image file to (H, W, 3) uint8, or to the central (size, size, 3).

    Args:
      encoded: the bytes of a file in any format that Pillow reads.
      size: side of the result. The shorter side is resized to `size / crop_ratio`, rounded down
        (bicubic), and the center cut out.
      crop_ratio: share of the shorter side that is kept.

    Raises:
      UnsuitableImage: the file is no image that is read, or too large; the message says why.
      Exception: of many types, where the file is damaged.
    """
    if size is None:
        return _pixels(encoded, lambda width, height: 1.0)
    whole = int(size / crop_ratio)  # the shorter side before the crop
    # Decoding at twice the target leaves the antialiasing to the bicubic filter.
    image = Image.fromarray(_pixels(encoded, lambda width, height: 2 * whole / min(width, height)))
    if image.size != (size, size) or whole != size:
        short = min(image.size)
        width, height = (max(whole, int(side * whole / short)) for side in image.size)
        left, top = (width - size) // 2, (height - size) // 2
        if width * height > _MAX_RESIZED:
            corners = (left, top, left + size, top + size)
            x0, y0, x1, y1 = (corner * short / whole for corner in corners)
            box = x0, y0, min(x1, image.width), min(y1, image.height)
            return np.array(image.resize((size, size), Resampling.BICUBIC, box), np.uint8)
        image = image.resize((width, height), Resampling.BICUBIC)
        image = image.crop((left, top, left + size, top + size))
    return np.array(image, np.uint8)


def decode_crop(encoded: bytes, size: int, choose: Callable[[int, int], Box]) -> np.ndarray:
    """Decode a part of an image file to (size, size, 3) uint8.

    Args:
      encoded: the bytes of a file in any format that Pillow reads.
      size: side of the result (bicubic).
      choose: maps width and height of the image to the box that is cut out.
    """
    found: dict[str, tuple[int, ...]] = {}

    def scale(width: int, height: int) -> float:
        found["size"], found["box"] = (width, height), choose(width, height)
        left, top, right, bottom = found["box"]
        return 2 * size / min(right - left, bottom - top)

    pixels = _pixels(encoded, scale)
    height, width, _ = pixels.shape
    ratios = width / found["size"][0], height / found["size"][1]
    # Rounded to 1/256 pixel: by a rounding error in its last bit a box could leave the image.
    steps = [round(256 * at * ratio) for at, ratio in zip(found["box"], 2 * ratios, strict=True)]
    return _resize(pixels, size, [step / 256 for step in steps])


def _resize(pixels: np.ndarray, size: int, box: Sequence[float]) -> np.ndarray:
    """Resize a box (left, top, right, bottom) of (H, W, 3) uint8 to (size, size, 3), bicubic.

    Uses Pillow's filter in its SIMD implementation where a wheel of it exists. That one resizes
    columns first, Pillow rows first; both round to integers in between.
    """
    if cykooz_resizer is None:
        left, top, right, bottom = box
        image = Image.fromarray(pixels)
        image = image.resize((size, size), Resampling.BICUBIC, (left, top, right, bottom))
        return np.array(image, np.uint8)
    left, top, right, bottom = box
    height, width, _ = pixels.shape
    kind = cykooz_resizer.PixelType.U8x3
    source = cykooz_resizer.ImageData(width, height, kind, pixels.tobytes())
    result = cykooz_resizer.ImageData(size, size, kind)
    options = cykooz_resizer.ResizeOptions(
        cykooz_resizer.ResizeAlg.convolution(cykooz_resizer.FilterType.catmull_rom),
        crop_box=cykooz_resizer.CropBox(left, top, right - left, bottom - top),
    )
    if not hasattr(_local, "resizer"):
        _local.resizer = cykooz_resizer.Resizer()
    _local.resizer.resize(source, result, options)
    return np.frombuffer(result.get_buffer(), np.uint8).reshape(size, size, 3)


def _pixels(encoded: bytes, scale: Callable[[int, int], float]) -> np.ndarray:
    """Decode an image to (H, W, 3) uint8, a large JPEG at a fraction of its size.

    A JPEG can be decoded at 1/2, 1/4 or 1/8 of its size; the smallest of these that is at least
    `scale(width, height)` is taken.
    """
    pixels = _decode_turbo(encoded, scale)
    return np.array(_decode_pillow(encoded, scale)) if pixels is None else pixels


def _decode_turbo(encoded: bytes, scale: Callable[[int, int], float]) -> np.ndarray | None:
    """Decode a JPEG by libjpeg-turbo itself, faster than Pillow and to the same bits.

    Returns None for what it cannot decode: other formats, CMYK, unusual chroma subsampling, and
    damaged files.
    """
    if encoded[:2] != b"\xff\xd8":
        return None
    with contextlib.suppress(ValueError):
        height, width, colors, _ = simplejpeg.decode_jpeg_header(encoded)
        if colors in ("YCbCr", "Gray", "RGB"):
            ratio = _jpeg_ratio(scale(width, height))
            _check_jpeg(encoded, width, height, ratio)
            least = math.ceil(height * ratio), math.ceil(width * ratio)
            return simplejpeg.decode_jpeg(encoded, min_height=least[0], min_width=least[1])
    return None


def _decode_pillow(encoded: bytes, scale: Callable[[int, int], float]) -> Image.Image:
    try:
        opened = Image.open(io.BytesIO(encoded), formats=formats())
    except UnidentifiedImageError as error:
        raise UnsuitableImage(_what_else(encoded)) from error
    with opened as image:
        width, height = image.size
        _check_bytes(width, height, width * height * _PILLOW_BYTES)
        if image.format in ("JPEG", "MPO"):
            _check_jpeg(encoded, width, height, 1)
        ratio = _jpeg_ratio(scale(width, height))
        image.draft(None, (math.ceil(width * ratio), math.ceil(height * ratio)))
        return to_rgb(image)


@functools.cache
def formats() -> list[str]:
    """Return the formats that are opened, by Pillow's names."""
    Image.init()  # registers what this Pillow was built with
    return [name for name in FORMATS if name in Image.OPEN]


def _what_else(encoded: bytes) -> str:
    """Say what a file is that is no image of the formats that are read."""
    if not encoded:
        return "the file is empty"
    if encoded.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS, not the image itself; run `git lfs pull`"
    if encoded[:4] in (b"II*\0", b"MM\0*"):
        return "it is damaged, or a TIFF of a kind that Pillow does not read"
    return f"it is damaged, or no image; {', '.join(FORMATS)} are read"


def _check_jpeg(encoded: bytes, width: int, height: int, ratio: float) -> None:
    pixels = width * height
    needed = math.ceil(pixels * _JPEG_BYTES * ratio**2)
    # Scans are counted only where they can matter: a search through the file takes its time.
    if needed + pixels * _SCANS_BYTES > MAX_DECODING_BYTES and encoded.count(_SCAN) > 1:
        needed += pixels * _SCANS_BYTES
    _check_bytes(width, height, needed)
    if pixels * (len(encoded) // _LEAST_SCAN_BYTES) > _MAX_SCANNED:
        scans = encoded.count(_SCAN)
        if pixels * scans > _MAX_SCANNED:
            raise UnsuitableImage(
                f"it has {width:,} x {height:,} pixels in {scans:,} scans, which would take too "
                "long to decode; save it anew"
            )


def _check_bytes(width: int, height: int, needed: int) -> None:
    if needed > MAX_DECODING_BYTES:
        raise UnsuitableImage(
            f"its {width:,} x {height:,} pixels would take more than {MAX_DECODING_BYTES >> 30} "
            "GiB to decode; make it smaller"
        )


def _jpeg_ratio(least: float) -> float:
    return next((ratio for ratio in (1 / 8, 1 / 4, 1 / 2) if ratio >= least), 1)
