"""What the drawn data set is made of: stick figures with joints, and plain shapes.

Everything is geometry in pixels; `paint` puts it on an image.
"""

import dataclasses
import math
from typing import Any

import numpy as np
from PIL import ImageDraw

from bocb_jax.pose.skeleton import COCO_PERSON

Color = tuple[int, int, int]

# Lengths in units of a standing figure's height.
_TORSO, _SHOULDER, _HIP = 0.30, 0.11, 0.07
_ARM_LENGTHS, _LEG_LENGTHS = (0.16, 0.15), (0.23, 0.22)  # upper and lower part
_HEAD, _NECK = 0.085, 0.12  # the radius of the head, and the way from the shoulders to its middle
_LIMB = 0.05  # width of a limb
_FACE = {"nose": (0, 0.015), "eye": (0.036, -0.02), "ear": (0.085, 0.0)}

# Least and largest angle in radians: of an upper arm and a thigh from hanging, outwards; and of the
# elbow and the knee from straight.
_ARM, _ELBOW, _LEG, _KNEE = (0.1, 2.8), (-0.3, 1.8), (-0.05, 0.7), (-0.7, 0.1)
_LEAN = 0.3  # of the whole figure, to either side
_ARM_JOINTS, _LEG_JOINTS = ("shoulder", "elbow", "wrist"), ("hip", "knee", "ankle")

POLYGONS = {"square": 4, "triangle": 3, "star": 5}
SHAPES = ("circle", *POLYGONS)
_DENT = 0.42  # radius of a star's inner corners, relative to the outer ones


@dataclasses.dataclass(frozen=True, eq=False)
class Shape:
    """A circle or polygon in one color."""

    name: str
    center: np.ndarray  # (2,)
    radius: float
    corners: np.ndarray  # (P, 2); none for a circle
    color: Color

    @property
    def box(self) -> np.ndarray:
        """Left, top, right, bottom."""
        if len(self.corners):
            return np.concatenate([self.corners.min(0), self.corners.max(0)])
        return np.concatenate([self.center - self.radius, self.center + self.radius])

    @property
    def area(self) -> float:
        """In pixels squared, by the shoelace formula for polygons."""
        if not len(self.corners):
            return math.pi * self.radius**2
        x, y = self.corners.T
        return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1)) / 2)

    def covers(self, points: np.ndarray) -> np.ndarray:
        """Return which of some points (K, 2) are inside, (K,) booleans."""
        if not len(self.corners):
            return np.hypot(*(points - self.center).T) < self.radius
        inside = np.zeros(len(points), bool)
        for (x0, y0), (x1, y1) in zip(self.corners, np.roll(self.corners, -1, 0), strict=True):
            # An edge is crossed by the ray from the point to the right: even-odd rule.
            crosses = (points[:, 1] < y0) != (points[:, 1] < y1)
            slope = (x1 - x0) / (y1 - y0) if y1 != y0 else 0.0
            inside ^= crosses & (points[:, 0] < x0 + slope * (points[:, 1] - y0))
        return inside

    def moved(self, by: np.ndarray) -> "Shape":
        """Return the shape elsewhere."""
        return dataclasses.replace(self, center=self.center + by, corners=self.corners + by)

    def paint(self, draw: ImageDraw.ImageDraw, scale: int) -> None:
        """Draw it, enlarged."""
        if len(self.corners):
            draw.polygon([_point(corner, scale) for corner in self.corners], fill=self.color)
        else:
            _dot(draw, self.center, self.radius, self.color, scale)


@dataclasses.dataclass(frozen=True, eq=False)
class Figure:
    """A stick figure that faces the viewer, so that its left is on the right of the image."""

    joints: np.ndarray  # (17, 2), COCO's
    head: np.ndarray  # (2,), the middle
    height: float
    color: Color
    skin: Color
    name: str = "person"

    @property
    def box(self) -> np.ndarray:
        """Left, top, right, bottom of what is drawn."""
        limb, head = _LIMB / 2 * self.height, _HEAD * self.height
        low = np.minimum(self.joints.min(0) - limb, self.head - head)
        high = np.maximum(self.joints.max(0) + limb, self.head + head)
        return np.concatenate([low, high])

    def moved(self, by: np.ndarray) -> "Figure":
        """Return the figure elsewhere."""
        return dataclasses.replace(self, joints=self.joints + by, head=self.head + by)

    def paint(self, draw: ImageDraw.ImageDraw, scale: int) -> None:
        """Draw it, enlarged."""
        joint = dict(zip(COCO_PERSON.names, self.joints, strict=True))
        limb = _LIMB * self.height
        sides = ("left", "right")
        torso = [joint[f"{side}_{part}"] for part, side in (
            ("shoulder", "left"), ("shoulder", "right"), ("hip", "right"), ("hip", "left"),
        )]  # fmt: skip
        neck = (torso[0] + torso[1]) / 2
        lines = [[neck, self.head]] + [
            [joint[f"{side}_{part}"] for part in parts]
            for side in sides
            for parts in (_ARM_JOINTS, _LEG_JOINTS)
        ]
        draw.polygon([_point(corner, scale) for corner in torso], fill=self.color)
        for line in [*lines, [*torso, torso[0]]]:
            points = [_point(point, scale) for point in line]
            draw.line(points, self.color, max(round(limb * scale), 1))
            for point in line:
                _dot(draw, point, limb / 2, self.color, scale)
        for side in sides:
            _dot(draw, joint[f"{side}_ear"], 0.022 * self.height, self.skin, scale)
        _dot(draw, self.head, _HEAD * self.height, self.skin, scale)
        dark = tuple(value // 4 for value in self.skin)
        for name in ("left_eye", "right_eye", "nose"):
            _dot(draw, joint[name], 0.013 * self.height, dark, scale)


def random_shape(generator: np.random.Generator, name: str, radius: float) -> Shape:
    """Return a shape about the origin, turned at random."""
    corners = np.zeros((0, 2))
    if name in POLYGONS:
        count = POLYGONS[name]
        turn = generator.uniform(0, 2 * math.pi)
        if name == "star":
            angles = turn + np.arange(2 * count) * math.pi / count
            reach = radius * np.where(np.arange(2 * count) % 2, _DENT, 1.0)
        else:
            angles = turn + np.arange(count) * 2 * math.pi / count
            reach = np.full(count, radius)
        corners = reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
    return Shape(name, np.zeros(2), radius, corners, random_color(generator))


def random_figure(generator: np.random.Generator, height: float) -> Figure:
    """Return a figure about the origin in a random pose, of this height if it stood upright."""
    place: dict[str, Any] = {}
    neck, head = np.array([0, -_TORSO]), np.array([0, -_TORSO - _NECK])
    place["nose"] = head + _FACE["nose"]
    for side, sign in (("left", 1), ("right", -1)):
        for part in ("eye", "ear"):
            place[f"{side}_{part}"] = head + np.array(_FACE[part]) * (sign, 1)
        shoulder, hip = neck + np.array([sign * _SHOULDER, 0]), np.array([sign * _HIP, 0])
        arm = _limb(generator, shoulder, sign, _ARM_LENGTHS, _ARM, _ELBOW)
        leg = _limb(generator, hip, sign, _LEG_LENGTHS, _LEG, _KNEE)
        for names, points in ((_ARM_JOINTS, arm), (_LEG_JOINTS, leg)):
            place |= {f"{side}_{name}": x for name, x in zip(names, points, strict=True)}
    lean = generator.uniform(-_LEAN, _LEAN)
    turn = np.array([[math.cos(lean), -math.sin(lean)], [math.sin(lean), math.cos(lean)]])
    joints = np.stack([place[name] for name in COCO_PERSON.names]) @ turn.T
    red = int(generator.integers(170, 250))
    skin = red, red * 4 // 5, red * 13 // 20
    return Figure(height * joints, height * (turn @ head), height, random_color(generator), skin)


def _limb(
    generator: np.random.Generator,
    start: np.ndarray,
    sign: int,
    lengths: tuple[float, float],
    angle: tuple[float, float],
    bend: tuple[float, float],
) -> list[np.ndarray]:
    """Return the three joints of an arm or a leg, of the left side for sign 1."""
    upper = generator.uniform(*angle)
    lower = upper + generator.uniform(*bend)
    joints = [start]
    for length, turned in zip(lengths, (upper, lower), strict=True):
        way = np.array([sign * math.sin(turned), math.cos(turned)])
        joints.append(joints[-1] + length * way)
    return joints


def random_color(generator: np.random.Generator) -> Color:
    """Return a bright color, so that it stands out from most photographs."""
    color = generator.integers(0, 256, 3)
    color[generator.integers(3)] = 255
    color[generator.integers(3)] = generator.integers(0, 60)
    red, green, blue = color.tolist()
    return red, green, blue


def _point(point: np.ndarray, scale: int) -> tuple[float, float]:
    # The center of the first pixel is at 0, in the enlarged image as in the image itself.
    x, y = (np.asarray(point) + 0.5) * scale - 0.5
    return float(x), float(y)


def _dot(
    draw: ImageDraw.ImageDraw, center: np.ndarray, radius: float, color: Any, scale: int
) -> None:
    x, y = _point(center, scale)
    reach = radius * scale
    draw.ellipse([x - reach, y - reach, x + reach, y + reach], fill=color)
