"""From the box of a person to the crop that the network sees, and back.

A crop is described by its center (x, y), its size (width, height) before it is resized to the
network's input, and its rotation. All functions take arrays of NumPy, as on the host, or of JAX,
as inside jit, with any leading axes, and return the same kind.

As in MMPose without UDP, 0 is the center of the first pixel for joints, while the left edge of a
crop is mapped to 0 of the input and its width to the input's: half a pixel is neglected.
"""

from typing import Any

import numpy as np

Array = Any  # np.ndarray or jax.Array


def clip_boxes(boxes: Array, width: Array, height: Array) -> Array:
    """Return boxes cut to the pixels of their image.

    Args:
      boxes: (..., 4): left, top, right, bottom.
      width: of the image, in pixels; (...,) or a number.
      height: likewise.
    """
    xp = _namespace(boxes)
    most = xp.stack([xp.broadcast_to(xp.asarray(x) - 1, boxes.shape[:-1])
                     for x in (width, height, width, height)], axis=-1)  # fmt: skip
    return xp.minimum(xp.maximum(boxes, xp.zeros_like(boxes)), most.astype(boxes.dtype))


def center_and_size(boxes: Array, padding: float = 1.25) -> tuple[Array, Array]:
    """Return the centers (..., 2) and padded sizes (..., 2) of boxes (..., 4)."""
    return (boxes[..., 2:] + boxes[..., :2]) * 0.5, (boxes[..., 2:] - boxes[..., :2]) * padding


def fit_aspect(size: Array, aspect: float = 0.75) -> Array:
    """Return sizes (..., 2) grown in one direction to an aspect, width over height."""
    xp = _namespace(size)
    width, height = size[..., 0], size[..., 1]
    wide = width > height * aspect
    return xp.stack(
        [xp.where(wide, width, height * aspect), xp.where(wide, width / aspect, height)], axis=-1
    )


def crop_matrix(center: Array, size: Array, rotation: Array, input_size: tuple[int, int]) -> Array:
    """Return the matrix from pixels of the image to pixels of the network's input.

    It rotates, scales both directions by the ratio of the widths, and maps the center to the middle
    of the input.

    Args:
      center: (..., 2).
      size: (..., 2) of the input's aspect.
      rotation: (...,) in degrees; positive values turn the picture counterclockwise.
      input_size: (width, height).

    Returns:
      (..., 2, 3); a point p maps to matrix[:, :2] @ p + matrix[:, 2].
    """
    xp = _namespace(center)
    scale = input_size[0] / size[..., 0]
    angle = rotation * (np.pi / 180)
    cos, sin = scale * xp.cos(angle), scale * xp.sin(angle)
    x, y = center[..., 0], center[..., 1]
    rows = [
        [cos, sin, input_size[0] / 2 - cos * x - sin * y],
        [-sin, cos, input_size[1] / 2 + sin * x - cos * y],
    ]
    return xp.stack([xp.stack(row, axis=-1) for row in rows], axis=-2)


def transform(points: Array, matrix: Array) -> Array:
    """Return points (..., K, 2) under matrices (..., 2, 3)."""
    x, y = points[..., 0:1], points[..., 1:2]
    return x * matrix[..., None, :, 0] + y * matrix[..., None, :, 1] + matrix[..., None, :, 2]


def to_image(joints: Array, center: Array, size: Array, input_size: tuple[int, int]) -> Array:
    """Return joints in pixels of the image, for a crop without rotation.

    Args:
      joints: (..., K, 2) in pixels of the network's input.
      center: (..., 2).
      size: (..., 2) of the input's aspect.
      input_size: (width, height).
    """
    xp = _namespace(joints)
    scale = size / xp.asarray(input_size, dtype=size.dtype).reshape((1,) * (size.ndim - 1) + (2,))
    return joints * scale[..., None, :] + (center - 0.5 * size)[..., None, :]


def mirror_joints(joints: Array, width: Array, mirrored: np.ndarray) -> Array:
    """Return the joints (..., K, 2) of a mirrored image, left and right exchanged.

    Args:
      joints: in pixels.
      width: of the image; (...,) or a number.
      mirrored: the number of each joint after mirroring, `Skeleton.mirrored`.
    """
    xp = _namespace(joints)
    x = xp.asarray(width)[..., None] - 1 - joints[..., 0]
    return xp.stack([x, joints[..., 1]], axis=-1)[..., mirrored, :]


def _namespace(array: Array) -> Any:
    """Return `numpy` or `jax.numpy`."""
    return array.__array_namespace__()
