"""Position tables of pretrained weights at another image size, resized as timm does."""

import math

import jax.numpy as jnp
import numpy as np

from bocb_jax.models import layers

_LARGEST = 512  # side of a grid or table; that of 8192-pixel images in patches of 16


def resize_absolute(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize position embeddings by bicubic interpolation, as `timm.layers.resample_abs_pos_embed`.

    Args:
      table: (1, 1 + side**2, C) in float32; the first is that of the class token.
      shape: (1, 1 + new side**2, C).

    Returns:
      The table in the new shape; None if one of the two is not of a square grid, or the widths
      differ.
    """
    if table.ndim != 3 or len(shape) != 3 or table.shape[::2] != shape[::2]:
        return None
    old, new = _side(table.shape[1] - 1), _side(shape[1] - 1)
    if old is None or new is None:
        return None
    return np.asarray(
        layers.resize_position_embedding(jnp.asarray(table), new, prefix_tokens=1), np.float32
    )


def resize_relative(table: np.ndarray, shape: tuple[int, ...]) -> np.ndarray | None:
    """Resize a table of relative position biases, as `timm.layers.resize_rel_pos_bias_table`.

    The old entries are placed at distances that grow geometrically, so that near positions keep
    their detail, and the new ones are interpolated linearly between them (BEiT, arXiv:2106.08254).

    Args:
      table: ((2 window - 1)**2, heads) in float32.
      shape: of the table for the new window.

    Returns:
      The table in the new shape; None if one of the two is not of a square window, or the numbers
      of heads differ.
    """
    if table.ndim != 2 or len(shape) != 2 or table.shape[1] != shape[1]:
        return None
    old, new = _side(len(table)), _side(shape[0])
    if old is None or new is None or not old % 2 or not new % 2:
        return None
    places = np.array(_distances(old, new), np.float32)
    wanted = np.arange(new) - new // 2
    # Row i holds the weights of the old entries in the new entry i; beyond them, the last one.
    weights = np.stack([np.interp(wanted, places, unit) for unit in np.eye(old)], axis=1)
    grid = np.einsum("ia,jb,abh->ijh", weights, weights, table.reshape(old, old, -1))
    return grid.reshape(shape).astype(np.float32)


def _side(count: int) -> int | None:
    """Return the side of a square of so many cells."""
    side = math.isqrt(max(count, 0))
    return side if side**2 == count and 0 < side <= _LARGEST else None


def _distances(old: int, new: int) -> list[float]:
    """Return where the old entries of a row lie, in units of the new ones: a geometric series."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        ratio = (low + high) / 2
        if sum(ratio**i for i in range(old // 2)) > new // 2:
            high = ratio
        else:
            low = ratio
    right = [sum(ratio**i for i in range(n)) for n in range(1, old // 2 + 1)]
    return [-d for d in reversed(right)] + [0.0] + right
