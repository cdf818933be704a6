"""Boxes, joints and classes drawn on images."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.Image import Resampling

KEPT = 10  # pictures of a run
_LEAST_SIDE = 256  # pixels to which smaller images are enlarged
_GAP, _TITLE = 8, 24  # pixels
# Okabe and Ito's colors, which color-blind readers tell apart.
COLORS = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
    (204, 121, 167),
)  # fmt: skip
_INK, _PAPER = (0, 0, 0), (255, 255, 255)


class Canvas:
    """An image to draw on.

    Coordinates are in pixels of the given image, with 0 at its upper left corner.

    Args:
      pixels: (H, W, 3) uint8.
      side: the longer side of the picture is at most this many pixels.
    """

    def __init__(self, pixels: np.ndarray, side: int = 1280):
        height, width = pixels.shape[:2]
        longer = max(width, height)
        self.scale = min(side, max(longer, _LEAST_SIDE)) / longer
        size = max(1, round(width * self.scale)), max(1, round(height * self.scale))
        resampling = Resampling.NEAREST if self.scale > 1 else Resampling.BILINEAR
        self.image = Image.fromarray(pixels).resize(size, resampling)
        self._draw = ImageDraw.Draw(self.image)
        self._line = max(2, round(max(size) / 320))
        self._font = _font(max(12, round(max(size) / 50)))

    def box(self, corners: Sequence[float], text: str, color: int) -> None:
        """Draw a box, and a text in its upper left corner.

        Args:
          corners: left, top, right, bottom.
          text: may be empty.
          color: number; `COLORS` repeat.
        """
        left, top, right, bottom = (self._at(x) for x in corners)
        right, bottom = max(left, right), max(top, bottom)
        ink = COLORS[color % len(COLORS)]
        self._draw.rectangle((left, top, right, bottom), outline=ink, width=self._line)
        if text:
            text = _printable(text, self._font)
            # Inside of the picture, also where the box is not.
            x0, y0, x1, y1 = self._draw.textbbox((max(left, 0), max(top, 0)), text, self._font)
            self._draw.rectangle((x0 - 1, y0 - 1, x1 + 1, y1 + 1), fill=ink)
            self._draw.text((max(left, 0), max(top, 0)), text, _INK, self._font)

    def person(
        self,
        joints: np.ndarray,
        shown: np.ndarray,
        limbs: Sequence[tuple[int, int]],
        color: int,
    ) -> None:
        """Draw the joints of a person, and the limbs between them.

        Args:
          joints: (K, 2), x and y; 0 is the center of the first pixel.
          shown: (K,) booleans.
          limbs: pairs of joints.
          color: number; `COLORS` repeat.
        """
        ink = COLORS[color % len(COLORS)]
        places = [(self._at(x + 0.5), self._at(y + 0.5)) for x, y in joints]
        for first, second in limbs:
            if shown[first] and shown[second]:
                self._draw.line((*places[first], *places[second]), ink, self._line)
        radius = self._line + 1
        for (x, y), real in zip(places, shown, strict=True):
            if real:
                circle = (x - radius, y - radius, x + radius, y + radius)
                self._draw.ellipse(circle, fill=ink, outline=_INK)

    def _at(self, coordinate: float) -> float:
        """Return a coordinate in the picture; far outside, or no number at all, is cut."""
        limit = 2.0 * max(self.image.size)
        return float(np.nan_to_num(np.clip(coordinate * self.scale, -limit, limit)))


def captioned(image: Image.Image, lines: Sequence[str]) -> Image.Image:
    """Return an image with lines of text below it."""
    font = _font(16)
    lines = [_printable(line, font) for line in lines]
    measure = ImageDraw.Draw(image)
    width = max(
        [image.width, *(round(measure.textlength(line, font)) + 2 * _GAP for line in lines)]
    )
    result = Image.new("RGB", (width, image.height + _TITLE * len(lines)), _PAPER)
    result.paste(image, (0, 0))
    draw = ImageDraw.Draw(result)
    for number, line in enumerate(lines):
        draw.text((_GAP, image.height + number * _TITLE + 2), line, _INK, font)
    return result


def in_rows(rows: Sequence[Sequence[Image.Image]], titles: Sequence[str]) -> Image.Image:
    """Return images as a table, with a title for each column."""
    widths = [max(row[column].width for row in rows) for column in range(len(titles))]
    heights = [max(image.height for image in row) for row in rows]
    size = sum(widths) + _GAP * (len(widths) - 1), sum(h + _GAP for h in heights) + _TITLE
    result = Image.new("RGB", size, _PAPER)
    draw, font = ImageDraw.Draw(result), _font(16)
    left = 0
    for column, title in enumerate(titles):
        draw.text((left, 2), title, _INK, font)
        top = _TITLE
        for row, height in zip(rows, heights, strict=True):
            result.paste(row[column], (left, top))
            top += height + _GAP
        left += widths[column] + _GAP
    return result


def save(image: Image.Image, path: Path) -> None:
    """Write a PNG whole or not at all; its folder must exist."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    image.save(temporary, "PNG")
    os.replace(temporary, path)


def keep(folder: Path, step: int, image: Image.Image) -> None:
    """Write `STEP.png` into a folder, and remove all but the latest `KEPT` of such files."""
    folder.mkdir(parents=True, exist_ok=True)
    save(image, folder / f"{step}.png")
    for old in kept(folder)[:-KEPT]:
        old.unlink(missing_ok=True)


def kept(folder: Path) -> list[Path]:
    """Return the pictures that `keep` wrote into a folder, by rising step."""
    names = [path for path in folder.glob("*.png") if path.stem.isascii() and path.stem.isdecimal()]
    return sorted(names, key=lambda path: int(path.stem))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    try:
        return ImageFont.load_default(size)
    except ImportError:  # a Pillow without FreeType
        return ImageFont.load_default()


def _printable(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """Return a text that a font can draw: a Pillow without FreeType has Latin letters only."""
    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", "replace").decode("latin-1")
