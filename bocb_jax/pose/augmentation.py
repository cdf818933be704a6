"""Random crops of a person: mirrored, of half a body, shifted, resized, rotated.

What is random is drawn first, on the host, from one generator; what follows from it is a function
of arrays, of NumPy or of JAX, with any leading axes.
"""

import dataclasses
from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from bocb_jax.pose.boxes import Array, mirror_joints
from bocb_jax.pose.skeleton import Skeleton

_NORMAL = NormalDist()


def _truncated(uniform: float) -> float:
    """Return a normal number conditioned on -1 ... 1, from a uniform one."""
    low, high = _NORMAL.cdf(-1), _NORMAL.cdf(1)
    return min(max(_NORMAL.inv_cdf(low + uniform * (high - low)), -1.0), 1.0)


def _clipped(most: float) -> Callable[[float], float]:
    """Return a function that gives a normal number cut to -most ... most, from a uniform one."""

    def draw(uniform: float) -> float:
        return min(max(_NORMAL.inv_cdf(max(uniform, 1e-300)), -most), most)

    return draw


def _uniform(uniform: float) -> float:
    return 2 * uniform - 1


@dataclasses.dataclass(frozen=True)
class Noise:
    """One random factor.

    Attributes:
      amplitude: what the drawn number is multiplied by.
      probability: that the factor applies at all.
      distribution: gives the number, from a uniform one in 0 ... 1.
    """

    amplitude: float
    probability: float = 1.0
    distribution: Callable[[float], float] = _truncated

    def draw(self, generator: np.random.Generator, count: int = 1) -> np.ndarray:
        """Return (count,) numbers, all 0 where the factor does not apply."""
        applies = generator.random() < self.probability
        numbers = [self.distribution(uniform) for uniform in generator.random(count)]
        return self.amplitude * np.array(numbers) if applies else np.zeros(count)


@dataclasses.dataclass(frozen=True)
class PoseAugmentation:
    """How much is random.

    Attributes:
      flip: probability of mirroring.
      half_body: probability of cropping to half a body, where it can be.
      prefer_upper: probability that it is the upper half, where both can be.
      least_joints: labelled joints that a person must have for that.
      least_upper: labelled joints that an upper half must have.
      least_lower: likewise for a lower one.
      half_padding: size of that crop, relative to the extent of its joints.
      shift: of the center, as a share of the padded box.
      resize: of the size, beside 1.
      rotation: in degrees.
      shift_first: shift the box of the whole person, before it may be replaced by half a body's.
    """

    flip: float = 0.5
    half_body: float = 0.3
    prefer_upper: float = 0.7
    least_joints: int = 9
    least_upper: int = 2
    least_lower: int = 3
    half_padding: float = 1.5
    shift: Noise = Noise(0.16, 0.3)
    resize: Noise = Noise(0.5)
    rotation: Noise = Noise(80.0, 0.6)
    shift_first: bool = False


# By version of MMPose: 1.3 draws from normal distributions truncated to one standard deviation,
# 0.26 from uniform and clipped ones. A shift there of .2 of the box is .16 of the padded one.
AUGMENTATIONS = {
    "1.3": PoseAugmentation(),
    "0.26": PoseAugmentation(
        prefer_upper=_NORMAL.cdf(0.5),
        least_upper=3,
        shift=Noise(0.16, 0.3, _uniform),
        resize=Noise(0.5, 1.0, _clipped(1.0)),
        rotation=Noise(40.0, 0.6, _clipped(2.0)),
        shift_first=True,
    ),
}


class Draws(NamedTuple):
    """What is random about crops, with any leading axes."""

    flip: Array  # (...,) booleans
    half_body: Array  # (...,) booleans
    upper: Array  # (...,) booleans
    shift: Array  # (..., 2) shares of the padded box
    resize: Array  # (...,) factors
    rotation: Array  # (...,) degrees


class Crop(NamedTuple):
    """One or many crops and the joints in them, in pixels of the image, mirrored if `flip`."""

    center: Array  # (..., 2)
    size: Array  # (..., 2), not yet of the input's aspect
    rotation: Array  # (...,) degrees
    joints: Array  # (..., K, 2)
    visible: Array  # (..., K)
    flip: Array  # (...,) whether the image is to be mirrored first


def draw(settings: PoseAugmentation, generator: np.random.Generator) -> Draws:
    """Return what is random about one crop; the same generator state gives the same."""
    flip, half_body, upper = generator.random(3)
    shift = settings.shift.draw(generator, 2)
    [resize], [rotation] = settings.resize.draw(generator), settings.rotation.draw(generator)
    return Draws(
        np.bool_(flip < settings.flip),
        np.bool_(half_body < settings.half_body),
        np.bool_(upper < settings.prefer_upper),
        shift,
        1 + resize,
        rotation,
    )


def augment(
    center: Array,
    size: Array,
    joints: Array,
    visible: Array,
    width: Array,
    draws: Draws,
    settings: PoseAugmentation,
    skeleton: Skeleton,
) -> Crop:
    """Return the random crop of a person.

    Args:
      center: (..., 2) of the box.
      size: (..., 2) of the padded box.
      joints: (..., K, 2) in pixels of the image.
      visible: (..., K), 0 where a joint is not labelled.
      width: of the image in pixels, (...,) or a number.
      draws: from `draw`.
      settings: those that `draws` were drawn with.
      skeleton: of the joints. Without upper and lower joints there are no half bodies.
    """
    xp = joints.__array_namespace__()
    if settings.shift_first:
        center = center + draws.shift * size

    flip = draws.flip[..., None]
    mirrored = mirror_joints(joints, width, skeleton.mirrored)
    joints = xp.where(flip[..., None], mirrored, joints)
    visible = xp.where(flip, visible[..., skeleton.mirrored], visible)
    mirrored_x = xp.asarray(width) - 1 - center[..., 0]
    center = xp.where(flip, xp.stack([mirrored_x, center[..., 1]], axis=-1), center)

    half_center, half_size, possible = _half_body(joints, visible, draws.upper, settings, skeleton)
    half = (draws.half_body & possible)[..., None]
    center, size = xp.where(half, half_center, center), xp.where(half, half_size, size)
    if not settings.shift_first:
        center = center + draws.shift * size
    size = size * draws.resize[..., None]
    return Crop(center, size, draws.rotation, joints, visible, draws.flip)


def _half_body(
    joints: Array,
    visible: Array,
    prefer_upper: Array,
    settings: PoseAugmentation,
    skeleton: Skeleton,
) -> tuple[Array, Array, Array]:
    """Return center and size of half a body, and whether the person has joints enough for it."""
    xp: Any = joints.__array_namespace__()
    labelled = visible > 0
    masks = np.zeros((2, len(skeleton)), bool)
    masks[0, list(skeleton.upper)] = masks[1, list(skeleton.lower)] = True
    shape = (1,) * (labelled.ndim - 1) + (len(skeleton),)
    upper, lower = (labelled & xp.asarray(mask).reshape(shape) for mask in masks)
    upper_will_do = upper.sum(-1) >= settings.least_upper
    lower_will_do = lower.sum(-1) >= settings.least_lower
    take_upper = upper_will_do & (prefer_upper | ~lower_will_do)
    chosen = xp.where(take_upper[..., None], upper, lower)[..., None]
    possible = (labelled.sum(-1) >= settings.least_joints) & (upper_will_do | lower_will_do)

    center = xp.where(chosen, joints, 0).sum(-2) / xp.maximum(chosen.sum(-2), 1)
    lowest = xp.where(chosen, joints, np.inf).min(-2)
    highest = xp.where(chosen, joints, -np.inf).max(-2)
    size = xp.where(possible[..., None], (highest - lowest) * settings.half_padding, 1)
    return center, size, possible
