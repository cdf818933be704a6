"""Joints as heat maps and back (Xiao, Wu and Wei, 2018, arXiv 1804.06208), as in MMPose.

Maps are (..., H, W, K), channels last. Joints are (..., K, 2): x and y in pixels of the network's
input, whose first pixel has its center at 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class HeatmapCodec:
    """One Gaussian for each joint, its center rounded to a pixel of the map.

    Attributes:
      input_size: (width, height) of the network's input.
      heatmap_size: (width, height) of its output.
      sigma: standard deviation of the Gaussian in pixels of the map, a whole number. The Gaussian
        is cut off at three of them.

    Raises:
      UserError: a size or sigma that is not positive.
    """

    input_size: tuple[int, int] = (192, 256)
    heatmap_size: tuple[int, int] = (48, 64)
    sigma: int = 2

    def __post_init__(self) -> None:
        if min(*self.input_size, *self.heatmap_size, self.sigma) < 1:
            raise UserError(
                f"Heat maps of {self.heatmap_size} for an input of {self.input_size} with sigma "
                f"{self.sigma}: all of these must be whole numbers of at least 1."
            )

    @property
    def stride(self) -> tuple[float, float]:
        """Pixels of the input for one of the map, (horizontal, vertical)."""
        return (
            self.input_size[0] / self.heatmap_size[0],
            self.input_size[1] / self.heatmap_size[1],
        )

    def encode(self, joints: jax.Array, visible: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the maps of joints, and the weight of each.

        A joint that is not labelled, or whose Gaussian lies outside of the map, has a map of zeros
        and weight 0.

        Args:
          joints: (..., K, 2) in pixels of the input.
          visible: (..., K), 0 where a joint is not labelled, else positive: COCO's flags as well,
            where 1 is labelled but hidden and 2 visible.

        Returns:
          (..., H, W, K) and (..., K), both float32.
        """
        reach = 3 * self.sigma
        at = joints.astype(jnp.float32) / _row(self.stride, joints.ndim)
        center = jnp.trunc(at + 0.5).astype(jnp.int32)  # truncated as the reference does, below 0
        first, end = center - reach, center + reach + 1
        outside = ((first >= _row(self.heatmap_size, joints.ndim, jnp.int32)) | (end < 0)).any(-1)
        labelled = jnp.minimum(visible, 1).astype(jnp.float32)
        weights = jnp.where(outside, 0, labelled)

        width, height = self.heatmap_size
        dx = _grid(width, (1, width, 1), joints.ndim) - center[..., None, None, :, 0]
        dy = _grid(height, (height, 1, 1), joints.ndim) - center[..., None, None, :, 1]
        drawn = (jnp.abs(dx) <= reach) & (jnp.abs(dy) <= reach)
        drawn &= (weights >= 0.5)[..., None, None, :]
        # The squared distance is a whole number: the Gaussian is read from a table.
        distance = jnp.where(drawn, dx * dx + dy * dy, 0)
        return jnp.where(drawn, jnp.asarray(_gaussian(self.sigma))[distance], 0), weights

    def decode(self, heatmaps: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the joints that maps show, in pixels of the input, and the score of each.

        Args:
          heatmaps: (..., H, W, K).

        Returns:
          (..., K, 2) and (..., K), the largest value of each map. A map without a positive value
          has its joint one pixel of the map outside of it, at (-1, -1).
        """
        joints, scores = find_peaks(heatmaps)
        return joints * _row(self.stride, joints.ndim), scores


def find_peaks(heatmaps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the largest value of each map and its place, a quarter pixel towards the next largest.

    The quarter goes towards the larger neighbor in each direction, and is left out for a maximum
    near the border: for x where x < 2, x > W - 2 or y < 1, and likewise for y.

    Args:
      heatmaps: (..., H, W, K).

    Returns:
      x and y in pixels of the map (..., K, 2), (-1, -1) where no value is positive; and the values
      (..., K).
    """
    height, width = heatmaps.shape[-3:-1]
    heatmaps = heatmaps.astype(jnp.float32)
    flat = heatmaps.reshape(*heatmaps.shape[:-3], height * width, heatmaps.shape[-1])
    best = jnp.argmax(flat, -2)
    x, y = best % width, best // width

    def slope(step: int) -> jax.Array:
        after, before = (
            jnp.take_along_axis(flat, jnp.clip(best + by, 0, height * width - 1)[..., None, :], -2)
            for by in (step, -step)
        )
        return jnp.sign(after - before)[..., 0, :]

    in_x = (x > 1) & (x < width - 1) & (y > 0)
    in_y = (y > 1) & (y < height - 1) & (x > 0)
    quarters = jnp.stack([jnp.where(in_x, slope(1), 0), jnp.where(in_y, slope(width), 0)], -1)
    scores = flat.max(-2)
    places = jnp.stack([x, y], -1).astype(jnp.float32) + 0.25 * quarters
    return jnp.where((scores > 0)[..., None], places, -1), scores


def mirror_back(heatmaps: jax.Array, mirrored: np.ndarray) -> jax.Array:
    """Return the maps of a mirrored input as if it had not been mirrored.

    They are shifted right by one column, keeping the first: an input mirrored about its middle
    moves the maps, whose pixels are several of the input's, by a part of a pixel.

    Args:
      heatmaps: (..., H, W, K) of the mirrored input.
      mirrored: the number of each joint after mirroring, `Skeleton.mirrored`.
    """
    back = heatmaps[..., ::-1, :][..., np.asarray(mirrored)]
    return jnp.concatenate([back[..., :1, :], back[..., :-1, :]], -2)


@functools.cache
def _gaussian(sigma: int) -> np.ndarray:
    """Return exp(-d / (2 sigma^2)) for all squared distances d of a patch, float32."""
    squared = np.arange(2 * (3 * sigma) ** 2 + 1, dtype=np.float32)
    return np.exp(-squared / np.float32(2 * sigma**2))


def _row(pair: tuple[float, float], axes: int, dtype: type = jnp.float32) -> jax.Array:
    """Return a pair with as many axes as what it is compared with."""
    return jnp.asarray(pair, dtype).reshape((1,) * (axes - 1) + (2,))


def _grid(size: int, shape: tuple[int, int, int], axes: int) -> jax.Array:
    return jnp.arange(size).reshape((1,) * (axes - 2) + shape)
