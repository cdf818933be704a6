"""Affine crops of an image, as OpenCV's warpAffine makes them."""

import numpy as np
from PIL import Image
from PIL.Image import Resampling, Transform


def warp(pixels: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a part of an image under an affine map: bilinear, black outside.

    Pixel centers are at whole numbers, on both sides, and there is no antialiasing, as in OpenCV;
    values differ from OpenCV's, whose weights have five bits, by one or two.

    Args:
      pixels: (H, W, 3) uint8.
      matrix: (2, 3), from the image to the result.
      size: (width, height) of the result.

    Returns:
      (height, width, 3) uint8.
    """
    linear = np.linalg.inv(matrix[:, :2])
    offset = -linear @ matrix[:, 2]
    # Pillow's pixel centers are at halves. A black frame of one pixel blends the border with black,
    # as OpenCV does; Pillow alone would repeat it.
    offset += 0.5 - linear @ (0.5, 0.5) + 1
    framed = Image.fromarray(np.pad(pixels, ((1, 1), (1, 1), (0, 0))))
    data = (*linear[0], offset[0], *linear[1], offset[1])
    return np.array(framed.transform(size, Transform.AFFINE, data, Resampling.BILINEAR), np.uint8)
