"""Backbones that a file names: the one in the record of a run, which anybody may have written.

`create_model` is for what a person asks for. Here only registered names are built, nothing is
imported, and the weights beside the record bound what its arguments may ask for: a depth of 10**6
or 10**9 classes is refused before anything of that size is made.
"""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models.factory import Builder, ModelEntry

Shapes = Mapping[str, tuple[int, ...]]  # of weights, by dotted path

MAX_IMAGE_SIZE = 2048  # pixels
_SMALL = 64  # a window, a kernel or a number of heads: no axis of the weights need be as long
_DRAWS_PER_ARRAY, _MORE_DRAWS = 2, 64  # of initial values
_MAX_NESTED, _MAX_ITEMS = 3, 64  # lists in arguments


def recorded_builder(
    entry: ModelEntry,
    model_args: Mapping[str, Any],
    *,
    num_classes: Any,
    image_size: Any,
    shapes: Shapes,
    dtype: Any = None,
    around: Callable[..., nnx.Module] | None = None,
) -> Builder:
    """Return a function `(*, rngs)` that builds the net of a record, once it is found safe.

    Args:
      entry: the backbone, from `MODELS.get`, which refuses import paths.
      model_args: fields of the family's config.
      num_classes: width of the logits, as the record says.
      image_size: side in pixels, as the record says.
      shapes: of the weights that belong to the record, which bound the backbone.
      dtype: of the computation.
      around: from the backbone and the keyword `rngs` to the net around it; None for the backbone
        alone.

    Raises:
      UserError: an argument is of no use, or asks for more than the weights hold.
    """
    longest = max((max(shape, default=1) for shape in shapes.values()), default=1)
    _check_number("num_classes", num_classes, max(longest, _SMALL))
    _check_number("image_size", image_size, MAX_IMAGE_SIZE)
    arguments = {
        key: _checked(key, value, max(longest, _SMALL)) for key, value in model_args.items()
    }
    built = functools.partial(
        entry.build, num_classes=num_classes, image_size=image_size, dtype=dtype, **arguments
    )
    if around is not None:
        built = functools.partial(_surrounded, built, around)
    limit = _DRAWS_PER_ARRAY * len(shapes) + _MORE_DRAWS
    try:
        model = nnx.eval_shape(lambda: built(rngs=_CountedRngs(limit)))
    except UserError:
        raise
    except Exception as error:  # a constructor can raise anything for values that it did not expect
        reason = str(error).partition("\n")[0][:200]
        raise UserError(f"{entry.name} cannot be built from its record: {reason}.") from error
    size = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    held = sum(map(math.prod, shapes.values()))
    if size > held:
        raise UserError(
            f"{entry.name} as its record describes it has {size:,} parameters, but the "
            f"weights beside it hold {held:,} numbers."
        )
    return built


def _surrounded(build: Builder, around: Callable[..., nnx.Module], *, rngs: nnx.Rngs) -> nnx.Module:
    return around(build(rngs=rngs), rngs=rngs)


class _CountedRngs(nnx.Rngs):
    """Random streams that end after a number of draws: one for every array of a model, at least."""

    def __init__(self, limit: int):
        super().__init__(0)
        self.drawn, self.limit = 0, limit

    def __getattr__(self, name: str) -> Any:  # of every stream but "default"
        if not name.startswith("__"):
            self._count()
        return super().__getattr__(name)

    def __call__(self) -> jax.Array:
        self._count()
        return super().__call__()

    def _count(self) -> None:
        self.drawn += 1
        if self.drawn > self.limit:
            raise UserError(
                "The record describes a model of more layers than there are arrays of weights "
                "beside it."
            )


def _check_number(name: str, value: Any, most: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise UserError(
            f"{name} is {_short(value)} in the record; beside these weights it is a whole number "
            f"from 1 to {most}."
        )


def _checked(name: Any, value: Any, most: int, nested: int = 0) -> Any:
    """Return an argument with its lists as tuples, if its numbers are finite and not too large."""
    if not isinstance(name, str) or not name.isidentifier():
        raise UserError(f"model_args has the key {_short(name)}, which is no name of an argument.")
    if isinstance(value, list | tuple) and nested < _MAX_NESTED and len(value) <= _MAX_ITEMS:
        return tuple(_checked(name, item, most, nested + 1) for item in value)
    if (isinstance(value, str) and len(value) <= 100) or value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float) and abs(value) <= most:  # NaN is not
        return value
    raise UserError(
        f"model_args.{name} is {_short(value)} in the record; beside these weights it is text, or "
        f"numbers of at most {most}."
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
