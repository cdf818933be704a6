"""Which joints a person has, and what is known about each."""

import dataclasses
import functools
import re
from collections.abc import Sequence

import numpy as np

from bocb_jax.errors import UserError

# Where no spread of a joint's annotations is known: between COCO's wrists and shoulders.
_UNKNOWN_SIGMA = 0.07


@dataclasses.dataclass(frozen=True)
class Skeleton:
    """The K joints of a data set.

    Attributes:
      names: of the joints, in the order of the annotations.
      pairs: (left, right) numbers of the joints that a mirrored image exchanges.
      sigmas: spread of the annotators' clicks on each joint, in units of the square root of the
        person's area.
      upper: numbers of the joints of the upper body; empty if not known.
      lower: numbers of the joints of the lower body; empty if not known.
      limbs: pairs of joints that a picture connects.

    Raises:
      UserError: a number is none of the joints', or the sigmas do not fit.
    """

    names: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    sigmas: tuple[float, ...]
    upper: tuple[int, ...] = ()
    lower: tuple[int, ...] = ()
    limbs: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        count = len(self.names)
        if len(self.sigmas) != count or not all(sigma > 0 for sigma in self.sigmas):
            raise UserError(
                f"A skeleton of {count} joints has the sigmas {list(self.sigmas)}; give a positive "
                "number for each joint."
            )
        numbers = {*sum((*self.pairs, *self.limbs), ()), *self.upper, *self.lower}
        wrong = sorted(number for number in numbers if not 0 <= number < count)
        if wrong:
            raise UserError(
                f"A skeleton of {count} joints names joint {wrong[0]}; count from 0 to {count - 1}."
            )

    def __len__(self) -> int:
        return len(self.names)

    @functools.cached_property
    def mirrored(self) -> np.ndarray:
        """The number of each joint after mirroring, (K,) integers."""
        order = np.arange(len(self))
        for left, right in self.pairs:
            order[[left, right]] = right, left
        return order


# Joints, sigmas and limbs of COCO's persons (Lin et al., 2014, arXiv 1405.0312).
COCO_PERSON = Skeleton(
    names=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder",
        "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip",
        "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle",
    ),
    pairs=((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16)),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107,
        0.087, 0.087, 0.089, 0.089,
    ),
    upper=tuple(range(11)),
    lower=tuple(range(11, 17)),
    limbs=(
        (15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8),
        (7, 9), (8, 10), (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6),
    ),
)  # fmt: skip


def skeleton_of(names: Sequence[str], limbs: Sequence[tuple[int, int]] = ()) -> Skeleton:
    """Return the skeleton of joints by their names.

    COCO's seventeen names give COCO's skeleton. Of others, joints whose names differ in "left" and
    "right" are pairs, joints of COCO's names have COCO's sigmas and all others 0.07; upper and
    lower body are not known.

    Args:
      names: one for each joint.
      limbs: pairs of joint numbers from 0.

    Raises:
      UserError: a limb names a joint that is not there.
    """
    if tuple(names) == COCO_PERSON.names:
        return COCO_PERSON
    known = dict(zip(COCO_PERSON.names, COCO_PERSON.sigmas, strict=True))
    place = {name: number for number, name in enumerate(names)}
    pairs = []
    for name, number in place.items():
        other = re.sub("left", "right", name, flags=re.IGNORECASE)
        partner = next((place[n] for n in place if n.lower() == other.lower() and n != name), None)
        if partner is not None and "left" in name.lower():
            pairs.append((number, partner))
    sigmas = tuple(known.get(name, _UNKNOWN_SIGMA) for name in names)
    return Skeleton(tuple(names), tuple(pairs), sigmas, limbs=tuple(limbs))
