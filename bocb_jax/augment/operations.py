"""Random operations on each image: RandAugment, color jitter and 3-Augment.

A draw becomes `Operations`: for each image a short list of operations from a fixed tuple of kinds,
with their arguments. `apply` runs the list on one image through `lax.switch`. Mapped over a batch
image by image, a switch runs one branch only, which is fast on a CPU; vectorized over the batch,
all branches run and one result is kept, which suits GPUs and TPUs. Kinds are therefore few: all
five geometric operations are affine maps, and two operations share a look-up table.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bocb_jax.augment import color, geometry
from bocb_jax.errors import UserError

# Maps image (H, W, 3) uint8, value () float32 and matrix (6,) int32 to an image.
Operation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]

RAND_AUGMENT_KINDS = (
    "keep", "warp", "warp x", "warp y", "remap", "invert", "posterize", "solarize",
    "solarize add", "saturation", "contrast", "brightness", "sharpness",
)  # fmt: skip
JITTER_KINDS = ("brightness", "contrast", "saturation")
THREE_AUGMENT_KINDS = ("saturation", "solarize", "blur")

# timm's operations, in its order, and the kind of each.
RAND_AUGMENT_OPERATIONS = {
    "AutoContrast": "remap",
    "Equalize": "remap",
    "Invert": "invert",
    "Rotate": "warp",
    "Posterize": "posterize",
    "Solarize": "solarize",
    "SolarizeAdd": "solarize add",
    "Color": "saturation",
    "Contrast": "contrast",
    "Brightness": "brightness",
    "Sharpness": "sharpness",
    "ShearX": "warp x",
    "ShearY": "warp y",
    "TranslateXRel": "warp x",
    "TranslateYRel": "warp y",
}


class Operations(NamedTuple):
    """N operations on one image, in order; with a leading axis more, those on a batch."""

    kind: jax.Array  # (N,) int32, index into a tuple of kinds
    value: jax.Array  # (N,) float32
    matrix: jax.Array  # (N, 6) int32, for `geometry.warp`


MAX_OPERATIONS = 99  # of RandAugment on one image


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al., 2019, arXiv 1909.13719) in timm's variant.

    Attributes:
      magnitude: strength, from 0 to `limit`.
      num_ops: operations on each image, drawn with replacement.
      probability: probability that a drawn operation is applied.
      noise: standard deviation of the magnitude; if infinite, the magnitude is uniform over 0 ...
        `magnitude`.
      limit: largest magnitude.
      increasing: whether every operation changes the image more at a larger magnitude.
    """

    magnitude: float = 10.0
    num_ops: int = 2
    probability: float = 0.5
    noise: float = 0.0
    limit: float = 10.0
    increasing: bool = False

    def __post_init__(self):
        for name, largest in (("magnitude", 1000), ("limit", 1000), ("probability", 1)):
            if not 0 <= getattr(self, name) <= largest:
                raise UserError(
                    f"{name} of RandAugment must lie in 0 ... {largest}; it is "
                    f"{getattr(self, name)}."
                )
        if not 1 <= self.num_ops <= MAX_OPERATIONS:
            raise UserError(
                f"RandAugment has {self.num_ops} operations an image; give from 1 to "
                f"{MAX_OPERATIONS}."
            )

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Parse timm's notation.

        >>> RandAugment.parse("rand-m9-mstd0.5-inc1").magnitude
        9.0

        Raises:
          UserError: the text does not follow the notation.
        """
        fields: dict[str, tuple[str, Callable[[str], float]]] = {
            "m": ("magnitude", float),
            "n": ("num_ops", int),
            "p": ("probability", float),
            "mstd": ("noise", lambda x: float(x) if float(x) <= 100 else math.inf),
            "mmax": ("limit", float),
            "inc": ("increasing", lambda x: bool(int(x))),
        }
        first, *rest = text.split("-")
        found = [re.fullmatch(r"([a-z]+)(\d+\.?\d*)", part) for part in rest]
        matches = [match for match in found if match and match[1] in fields]
        if first != "rand" or len(matches) < len(found):
            raise UserError(
                f"RandAugment is written as in 'rand-m9-mstd0.5-inc1', with any of "
                f"{', '.join(fields)} and a number after each; '{text}' is not of that form."
            )
        try:
            values: dict[str, Any] = {}
            for match in matches:
                name, convert = fields[match[1]]
                values[name] = convert(match[2])
        except ValueError as error:
            raise UserError(f"'{text}' has a fraction where a whole number is needed.") from error
        return cls(**values)

    @property
    def num_draws(self) -> int:
        """Return how many uniform random numbers one image takes."""
        return 4 * self.num_ops

    def sample(self, draws: jax.Array, size: tuple[int, int]) -> Operations:
        """Return the operations on one image.

        Args:
          draws: (4 num_ops,) uniform random numbers.
          size: height and width of the image.
        """
        return jax.vmap(lambda u: self._sample_one(u, size))(draws.reshape(self.num_ops, 4))

    def _sample_one(self, draws: jax.Array, size: tuple[int, int]) -> Operations:
        which, done, strength, side = draws
        operation = jnp.minimum((which * 15).astype(jnp.int32), 14)
        if math.isinf(self.noise):
            level = self.magnitude * strength
        else:
            normal = math.sqrt(2) * lax.erf_inv(2 * strength - 1)
            level = jnp.float32(self.magnitude)
            level = level + self.noise * normal if self.noise else level
        level = jnp.clip(level, 0, self.limit)
        sign = jnp.where(side < 0.5, -1.0, 1.0)
        values, matrices = self.arguments(level, sign, size)
        kinds = [RAND_AUGMENT_KINDS.index(kind) for kind in RAND_AUGMENT_OPERATIONS.values()]
        kind = jnp.where(done < self.probability, jnp.array(kinds, jnp.int32)[operation], 0)
        return Operations(kind, values[operation], matrices[operation])

    def arguments(
        self, level: jax.Array, sign: jax.Array, size: tuple[int, int]
    ) -> tuple[jax.Array, jax.Array]:
        """Return the arguments of all 15 operations at a magnitude.

        Args:
          level: the magnitude, () float32.
          sign: -1 or 1, () float32.
          size: height and width of the image.

        Returns:
          Values, (15,) float32, and matrices, (15, 6) int32, in the order of
          `RAND_AUGMENT_OPERATIONS`.
        """
        share = level / 10
        if self.increasing:
            bits = 4 - jnp.floor(4 * share)
            threshold = 256 - jnp.minimum(jnp.floor(256 * share), 256)
            factor = jnp.maximum(0.1, 1 + sign * 0.9 * share)
        else:
            bits = jnp.floor(4 * share)
            threshold = jnp.minimum(jnp.floor(256 * share), 256)
            factor = 0.1 + 1.8 * share
        factor = color.on_grid(factor)
        values = {name: jnp.zeros(()) for name in RAND_AUGMENT_OPERATIONS}
        values |= {
            "Equalize": jnp.ones(()),
            "Posterize": bits,
            "Solarize": threshold,
            "SolarizeAdd": jnp.minimum(jnp.floor(110 * share), 128),
            "Color": factor,
            "Contrast": factor,
            "Brightness": factor,
            "Sharpness": factor,
        }
        signed = sign * share
        matrices = dict.fromkeys(RAND_AUGMENT_OPERATIONS, jnp.zeros(6, jnp.int32))
        matrices |= {
            "Rotate": geometry.rotate(30 * signed, size),
            "ShearX": geometry.shear_x(0.3 * signed),
            "ShearY": geometry.shear_y(0.3 * signed),
            "TranslateXRel": geometry.translate_x(0.45 * signed * size[1]),
            "TranslateYRel": geometry.translate_y(0.45 * signed * size[0]),
        }
        return jnp.stack(list(values.values())), jnp.stack(list(matrices.values()))


def sample_color_jitter(draws: jax.Array, strength: float) -> Operations:
    """Return changes of brightness, contrast and saturation by random factors, in random order.

    Args:
      draws: (6,) uniform random numbers.
      strength: largest deviation of a factor from 1.
    """
    low = max(0.0, 1 - strength)
    factors = color.on_grid(low + (1 + strength - low) * draws[:3])
    order = jnp.argsort(draws[3:]).astype(jnp.int32)
    return Operations(order, factors[order], jnp.zeros((3, 6), jnp.int32))


def sample_three_augment(draws: jax.Array) -> Operations:
    """Return grayscale, solarization or blur, with equal probability.

    3-Augment of DeiT III (Touvron et al., 2022, arXiv 2204.07118).

    Args:
      draws: (2,) uniform random numbers.
    """
    kind = jnp.minimum((draws[0] * 3).astype(jnp.int32), 2)
    value = jnp.stack([jnp.zeros(()), jnp.full((), 128.0), 0.1 + 1.9 * draws[1]])[kind]
    return Operations(kind[None], value[None], jnp.zeros((1, 6), jnp.int32))


def concatenate(
    parts: Sequence[tuple[tuple[str, ...], Operations]],
) -> tuple[tuple[str, ...], Operations | None]:
    """Concatenate the kinds and the operations (on a batch) of several policies."""
    kinds: tuple[str, ...] = ()
    operations = []
    for names, part in parts:
        operations.append(part._replace(kind=part.kind + len(kinds)))
        kinds += names
    if not operations:
        return (), None
    return kinds, jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *operations)


def apply(
    image: jax.Array,
    operations: Operations,
    *,
    kinds: tuple[str, ...],
    fill: tuple[int, ...],
    branching: bool,
) -> jax.Array:
    """Apply the operations on one image.

    Args:
      image: (H, W, 3), uint8 or float of 0 ... 255, which is rounded.
      operations: N of them.
      kinds: the kinds that `operations.kind` is an index into.
      fill: color of pixels from outside the image.
      branching: whether a switch runs one branch only. If not, maps along one axis are treated as
        general affine maps, to have fewer branches.

    Returns:
      (H, W, 3) uint8.
    """
    if image.dtype != jnp.uint8:
        image = jnp.clip(jnp.round(image), 0, 255).astype(jnp.uint8)
    functions: dict[str, Operation] = {
        "keep": lambda image, value, matrix: image,
        "warp": lambda image, value, matrix: geometry.warp(image, matrix, fill),
        "warp x": lambda image, value, matrix: geometry.warp_along_x(image, matrix, fill),
        "warp y": lambda image, value, matrix: geometry.warp_along_y(image, matrix, fill),
        "remap": lambda image, value, matrix: _remap(image, value),
        "invert": lambda image, value, matrix: color.invert(image),
        "posterize": _with_integer(color.posterize),
        "solarize": _with_integer(color.solarize),
        "solarize add": _with_integer(color.solarize_add),
        "saturation": _with_value(color.saturation),
        "contrast": _with_value(color.contrast),
        "brightness": _with_value(color.brightness),
        "sharpness": _with_value(color.sharpness),
        "blur": _with_value(color.gaussian_blur),
    }
    merged = {} if branching else {"warp x": "warp", "warp y": "warp"}
    wanted = [merged.get(kind, kind) for kind in kinds]
    branches = list(dict.fromkeys(wanted))
    branch = np.array([branches.index(kind) for kind in wanted], np.int32)

    chosen = [functions[name] for name in branches]

    def one(image: jax.Array, operation: Operations) -> tuple[jax.Array, None]:
        which = jnp.asarray(branch)[operation.kind]
        return lax.switch(which, chosen, image, operation.value, operation.matrix), None

    return lax.scan(one, image, operations)[0]


def _with_value(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Operation:
    return lambda image, value, matrix: function(image, value)


def _with_integer(function: Callable[[jax.Array, jax.Array], jax.Array]) -> Operation:
    return lambda image, value, matrix: function(image, value.astype(jnp.int32))


def _remap(image: jax.Array, equal: jax.Array) -> jax.Array:
    """Equalize the histogram where `equal` is 1; stretch the contrast where it is 0."""
    # `cond` rather than `where`, with which XLA on CPUs would compute the table for every pixel.
    tables = (color.equalize_table, color.autocontrast_table)
    return color.look_up(image, lax.cond(equal > 0, *tables, color.histogram(image)))
