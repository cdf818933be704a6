"""A few random operations on each image: RandAugment, color jitter, 3-Augment.

What is drawn becomes `Steps`: for every image a short list of operations from a fixed tuple of
kinds, with their arguments. `apply` carries the list out on one image by a switch. Mapped over a
batch one image after the other, a switch runs one branch only, which is quick on a CPU; vectorized
over the batch all branches run and one result is kept, which suits GPUs and TPUs. That is why
there are few kinds: five geometric operations are one affine map, two are one look-up table.
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from bocb_jax.augment import color, geometry
from bocb_jax.errors import UserError

RAND_AUGMENT_KINDS = (
    "keep", "warp", "warp x", "warp y", "remap", "invert", "posterize", "solarize",
    "solarize add", "saturation", "contrast", "brightness", "sharpness",
)  # fmt: skip
JITTER_KINDS = ("brightness", "contrast", "saturation")
THREE_AUGMENT_KINDS = ("saturation", "solarize", "blur")

# The order of timm's list, which the names of its operations come from, and the kind of each.
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


class Steps(NamedTuple):
    """Operations for one image (or, with one more leading axis, for a batch), in order."""

    kind: jax.Array  # (steps,) int32, places in a tuple of kinds
    value: jax.Array  # (steps,) float32
    matrix: jax.Array  # (steps, 6) int32, for `geometry.warp`


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al., 2019, arXiv 1909.13719) in timm's form.

    Attributes:
      magnitude: strength, from 0 to `limit`.
      layers: operations for each image, drawn with replacement.
      probability: of carrying an operation out.
      noise: standard deviation of the magnitude; infinite draws it evenly from 0 to `magnitude`.
      limit: highest magnitude.
      increasing: a larger magnitude changes the image more, in every operation.
    """

    magnitude: float = 10.0
    layers: int = 2
    probability: float = 0.5
    noise: float = 0.0
    limit: float = 10.0
    increasing: bool = False

    @classmethod
    def parse(cls, text: str) -> "RandAugment":
        """Reads timm's notation.

        >>> RandAugment.parse("rand-m9-mstd0.5-inc1").magnitude
        9.0

        Raises:
          UserError: it is not of that form.
        """
        fields = {
            "m": ("magnitude", float),
            "n": ("layers", int),
            "p": ("probability", float),
            "mstd": ("noise", lambda x: float(x) if float(x) <= 100 else math.inf),
            "mmax": ("limit", float),
            "inc": ("increasing", lambda x: bool(int(x))),
        }
        first, *rest = text.split("-")
        found = [re.fullmatch(r"([a-z]+)(\d+\.?\d*)", part) for part in rest]
        if first != "rand" or not all(match and match[1] in fields for match in found):
            raise UserError(
                f"RandAugment is given as in 'rand-m9-mstd0.5-inc1', with any of "
                f"{', '.join(fields)} and a number each; '{text}' is not of that form."
            )
        try:
            values = {fields[m[1]][0]: fields[m[1]][1](m[2]) for m in found}
        except ValueError as error:
            raise UserError(f"'{text}' has a number that is not whole where it must be.") from error
        return cls(**values)

    @property
    def draws(self) -> int:
        """Uniform random numbers for one image."""
        return 4 * self.layers

    def steps(self, draws: jax.Array, size: tuple[int, int]) -> Steps:
        """What to do with one image.

        Args:
          draws: (4 layers,) uniform random numbers.
          size: height and width of the image.
        """
        return jax.vmap(lambda u: self._step(u, size))(draws.reshape(self.layers, 4))

    def _step(self, draws, size) -> Steps:
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
        return Steps(kind, values[operation], matrices[operation])

    def arguments(self, level: jax.Array, sign: jax.Array, size: tuple[int, int]):
        """What each of the 15 operations would be given at a magnitude.

        Args:
          level: the magnitude.
          sign: -1 or 1.
          size: height and width of the image.

        Returns:
          (15,) values and (15, 6) matrices, in the order of `RAND_AUGMENT_OPERATIONS`.
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


def jitter_steps(draws: jax.Array, strength: float) -> Steps:
    """Brightness, contrast and saturation changed by random factors, in random order.

    Args:
      draws: (6,) uniform random numbers.
      strength: largest change of a factor from 1.
    """
    low = max(0.0, 1 - strength)
    factors = color.on_grid(low + (1 + strength - low) * draws[:3])
    order = jnp.argsort(draws[3:]).astype(jnp.int32)
    return Steps(order, factors[order], jnp.zeros((3, 6), jnp.int32))


def three_augment_steps(draws: jax.Array) -> Steps:
    """Grayscale, solarization or blur, each as often (Touvron et al., 2022, arXiv 2204.07118).

    Args:
      draws: (2,) uniform random numbers.
    """
    kind = jnp.minimum((draws[0] * 3).astype(jnp.int32), 2)
    value = jnp.stack([jnp.zeros(()), jnp.full((), 128.0), 0.1 + 1.9 * draws[1]])[kind]
    return Steps(kind[None], value[None], jnp.zeros((1, 6), jnp.int32))


def joined(parts: Sequence[tuple[tuple[str, ...], Steps]]) -> tuple[tuple[str, ...], Steps | None]:
    """Kinds and steps (of batches) one after the other."""
    kinds, steps = (), []
    for names, part in parts:
        steps.append(part._replace(kind=part.kind + len(kinds)))
        kinds += names
    if not steps:
        return (), None
    return kinds, jax.tree.map(lambda *x: jnp.concatenate(x, axis=1), *steps)


def apply(
    image: jax.Array,
    steps: Steps,
    *,
    kinds: tuple[str, ...],
    fill: tuple[int, ...],
    branching: bool,
) -> jax.Array:
    """Carries out the steps of one image.

    Args:
      image: (H, W, 3) uint8.
      steps: of this image.
      kinds: what the numbers in `steps.kind` stand for.
      fill: color of what comes in from outside.
      branching: whether a switch runs one branch only; else maps along one axis are treated as
        any affine map, to have fewer branches.
    """
    functions = {
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

    def one(image, step):
        which = jnp.asarray(branch)[step.kind]
        return lax.switch(which, chosen, image, step.value, step.matrix), None

    return lax.scan(one, image, steps)[0]


def _with_value(function):
    return lambda image, value, matrix: function(image, value)


def _with_integer(function):
    return lambda image, value, matrix: function(image, value.astype(jnp.int32))


def _remap(image: jax.Array, equal: jax.Array) -> jax.Array:
    """Equalized where `equal` is 1, stretched where it is 0."""
    # A condition rather than a selection: compilers for CPUs would otherwise calculate the entry
    # of the table anew for every pixel.
    tables = (color.equalize_table, color.autocontrast_table)
    return color.look_up(image, lax.cond(equal > 0, *tables, color.histogram(image)))
