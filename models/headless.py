"""Backbones without what only a classifier needs."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError

Path = tuple[Any, ...]  # of a variable, such as ("layer1", 0, "conv1", "kernel")
Shapes = list[tuple[int, ...]]


def remove_head(backbone: Any, height: int, width: int) -> Shapes:
    """Delete the layers whose weights `features` does not read, in place.

    They are found by tracing `features`, so that a family need not name them: a classifier, its
    hidden layers and the norm before it. Nothing is computed.

    Args:
      backbone: model with a method `features`; one of shapes, from `nnx.eval_shape`, will do.
      height: of the images, in pixels.
      width: likewise.

    Returns:
      The shapes (1, H, W, C) of the maps that `features` returns.

    Raises:
      UserError: the model has no such method.
    """
    if not hasattr(backbone, "features"):
        raise UserError(
            f"{type(backbone).__name__} has no method `features`, which returns the map (B, H, W, "
            "C) of each stage; detection and pose estimation need it."
        )
    # In evaluation, running statistics are read as well.
    view = nnx.view(
        backbone, deterministic=True, use_running_average=True, raise_if_not_found=False
    )
    graph, state = nnx.split(view)
    flat = list(nnx.to_flat_state(state))
    paths, values = [path for path, _ in flat], [value for _, value in flat]
    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)

    def features(values: list[nnx.Variable], image: jax.Array) -> list[jax.Array]:
        named = list(zip(paths, values, strict=True))
        return nnx.merge(graph, nnx.from_flat_state(named)).features(image)

    traced = jax.make_jaxpr(features)(values, image).jaxpr
    needed = {id(variable) for variable in traced.outvars}
    for equation in reversed(traced.eqns):
        if any(id(variable) in needed for variable in equation.outvars):
            needed |= {id(variable) for variable in equation.invars}
    read = iter([id(variable) in needed for variable in traced.invars])
    used: set[Path] = set()
    for path, value in zip(paths, values, strict=True):
        of_value = [next(read) for _ in jax.tree.leaves(value)]
        if any(of_value):
            used |= {path[:depth] for depth in range(len(path) + 1)}
    _prune(backbone, (), set(paths), used)
    return [tuple(variable.aval.shape) for variable in traced.outvars]


def _prune(module: Any, prefix: Path, paths: set[Path], used: set[Path]) -> None:
    """Delete attributes below which there are variables, and none that is used."""
    below = {path[: len(prefix) + 1] for path in paths if path[: len(prefix)] == prefix}
    for path in sorted(below, key=str):
        if isinstance(path[-1], str) and path not in used:
            delattr(module, path[-1])
        elif path in used and path not in paths:
            part = module[path[-1]] if isinstance(path[-1], int) else getattr(module, path[-1])
            _prune(part, path, paths, used)
