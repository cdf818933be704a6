"""Any image that Pillow has opened, as RGB on a scale of 8 bits."""

import numpy as np
from PIL import Image

_BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 258, 262, 339  # tags of a TIFF
_WHITE_IS_ZERO, _SIGNED = 0, 2


class UnsuitableImage(Exception):
    """An image that is not decoded; the message says why and fits in parentheses."""


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to mode RGB; an alpha channel is dropped.

    Gray of up to 16 bits is scaled by the range of its bits, and floats from 0 ... 1. Other numbers
    do not say which of them is white; scaled by a guess, such images could become black.

    Raises:
      UnsuitableImage: the pixels are no colors, or numbers of unknown range.
    """
    if _SIGNED in getattr(image, "tag_v2", {}).get(_SAMPLE_FORMAT, ()):
        raise UnsuitableImage("its pixels are signed integers; save it with 8 or 16 unsigned bits")
    if image.mode.startswith("I"):
        return _from_integers(image)
    if image.mode == "F":
        return _from_floats(image)
    image.load()  # raises here what says that the file is damaged
    if image.mode == "RGB":
        return image
    try:
        if image.mode in ("P", "PA"):
            # Converted to RGB at once, Pillow warns about transparency.
            image = image.convert("RGBA")
        return image.convert("RGB")
    except ValueError as error:
        raise UnsuitableImage(
            f"its colors are of mode {image.mode}, which is not converted; save it as RGB"
        ) from error


def _from_integers(image: Image.Image) -> Image.Image:
    tags = getattr(image, "tag_v2", {})
    bits, inverted = 16, False
    if image.mode != "I":
        bits = tags.get(_BITS_PER_SAMPLE, (16,))[0]
        inverted = tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO
    elif image.format not in ("PNG", "PPM"):  # these two hold 16 bits in mode I
        raise UnsuitableImage(
            "its pixels are integers of 32 bits, and it does not say which of them is white; "
            "save it with 8 or 16 bits"
        )
    white = 2**bits - 1
    levels = (np.arange(2**bits) * 255 // white).astype(np.uint8)
    gray = (levels[::-1] if inverted else levels)[np.asarray(image).clip(0, white)]
    return Image.fromarray(gray).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    gray = np.asarray(image)
    if not (gray.min() >= 0 and gray.max() <= 1):  # also where some are not a number
        raise UnsuitableImage(
            f"its pixels are floats from {gray.min():g} to {gray.max():g}, not within 0 ... 1; "
            "save it with 8 or 16 bits"
        )
    return Image.fromarray(np.rint(gray * 255).astype(np.uint8)).convert("RGB")
