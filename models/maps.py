"""The maps of a backbone's `features`: strides, channels, and the variables behind each.

Detectors and pose nets are built on maps. They leave out what `features` does not use, such as the
classifier, and may freeze the first stages. Both are read from the traced program, so that they
hold for every backbone, also for a user's own.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from bocb_jax.errors import UserError
from bocb_jax.models import layers

Path = tuple[Any, ...]  # of a variable in a model, such as ("layer1", 0, "conv1", "kernel")


@dataclasses.dataclass(frozen=True)
class Maps:
    """What `features` returns for images of one size, the finest map first.

    Attributes:
      strides: pixels per cell.
      sizes: (height, width) in cells.
      channels: last axis.
      used: of each map, the paths of the variables that it depends on.
      order: the paths of all variables that a map depends on, by their first use.
    """

    strides: tuple[int, ...]
    sizes: tuple[tuple[int, int], ...]
    channels: tuple[int, ...]
    used: tuple[frozenset[Path], ...]
    order: tuple[Path, ...] = ()


class Frozen(nnx.Variable):
    """A parameter that is not trained: no gradient, no weight decay, no optimizer state."""


def inspect_maps(model: nnx.Module, height: int, width: int) -> Maps:
    """Trace `features` in evaluation mode and return what its maps are.

    Args:
      model: backbone; one of shapes only, from `nnx.eval_shape`, will do.
      height: of the images, in pixels.
      width: likewise.

    Raises:
      UserError: the model has no `features`, or it returns something else than maps.
    """
    name = type(model).__name__
    if not callable(getattr(model, "features", None)):
        raise UserError(
            f"{name} has no method features(x), on which detectors and pose nets are built: add "
            "one that returns a list of maps (batch, height, width, channels), the finest first."
        )
    view = nnx.view(model, deterministic=True, use_running_average=True, raise_if_not_found=False)
    graph, state = nnx.split(view)
    leaves, structure = jax.tree.flatten(nnx.to_pure_dict(state))
    paths = [tuple(k.key for k in path) for path, _ in _with_paths(nnx.to_pure_dict(state))]
    shapes = [jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for leaf in leaves]

    def features(leaves: list[jax.Array], image: jax.Array) -> Any:
        merged: Any = nnx.merge(graph, jax.tree.unflatten(structure, leaves))
        return list(merged.features(image))

    image = jax.ShapeDtypeStruct((1, height, width, 3), jnp.float32)
    traced, found = jax.make_jaxpr(features, return_shape=True)(shapes, image)
    if not found or any(len(getattr(m, "shape", ())) != 4 for m in found):
        raise UserError(
            f"features(x) of {name} must return a list of maps (batch, height, width, channels), "
            f"not {[getattr(m, 'shape', m) for m in found]}."
        )
    jaxpr = traced.jaxpr
    used = []
    for out in jaxpr.outvars:
        needed = _inputs_of(jaxpr, out)
        used.append(frozenset(p for p, v in zip(paths, jaxpr.invars, strict=False) if v in needed))
    strides = tuple(_stride(height, m.shape[1]) for m in found)
    sizes = tuple((m.shape[1], m.shape[2]) for m in found)
    first: dict[Any, int] = {}
    for number, equation in enumerate(jaxpr.eqns):
        for variable in equation.invars:
            if not isinstance(variable, core.Literal):
                first.setdefault(variable, number)
    place = {p: first[v] for p, v in zip(paths, jaxpr.invars, strict=False) if v in first}
    order = sorted(frozenset().union(*used), key=lambda path: (place[path], str(path)))
    channels = tuple(m.shape[3] for m in found)
    return Maps(strides, sizes, channels, tuple(used), tuple(order))


def layers_of(order: Sequence[Path]) -> tuple[dict[Path, int], int]:
    """Return the number of each variable's layer, and that of what follows the last block.

    Layer 0 is before the first block, and every block is a layer, with what lies between it and the
    next one. What follows the last block has the number after its, as ViTDet counts (Li et al.,
    2022, arXiv:2203.16527).

    Args:
      order: paths of the variables by their first use, `Maps.order`.
    """
    blocks = _blocks(order)
    numbers = {block: i + 1 for i, block in enumerate(dict.fromkeys(filter(None, blocks)))}
    top, latest = len(numbers) + 1, 0
    found: dict[Path, int] = {}
    for path, block in zip(order, blocks, strict=True):
        if block is not None:
            found[path] = numbers[block]
            latest = max(latest, numbers[block])
        else:
            found[path] = top if latest == len(numbers) else latest
    return found, top


def _blocks(order: Sequence[Path]) -> list[Path | None]:
    """Return the block that each variable belongs to.

    A block is an entry of a list, or of a list in a list, that consists of layers, such as
    `blocks.3` or `stages.1.blocks.0`, but not the convolution `layer1.0.downsample.0`. Where no
    list has such entries, as in VGG, every entry counts.
    """
    entries = [
        [path[: i + 1] for i, part in enumerate(path) if isinstance(part, int)][:2]
        for path in order
    ]
    of_layers = {
        entry
        for path, found in zip(order, entries, strict=True)
        for entry in found
        if len(path) > len(entry) + 1
    }
    counted = of_layers or {entry for found in entries for entry in found}
    return [next((e for e in reversed(found) if e in counted), None) for found in entries]


def _with_paths(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _inputs_of(jaxpr: core.Jaxpr, out: Any) -> set[Any]:
    """Return the variables of a jaxpr that one of its outputs is computed from."""
    needed = {out}
    for equation in reversed(jaxpr.eqns):
        if any(v in needed for v in equation.outvars):
            needed.update(v for v in equation.invars if not isinstance(v, core.Literal))
    return needed


def _stride(image: int, cells: int) -> int:
    """Return the stride of a map.

    Most nets halve their maps and round up or down: 10 cells of 300 pixels are of stride 32, not
    30. Others cut patches, as of 14 pixels. Maps without padding, as AlexNet's, are a little
    smaller than their stride would make them.
    """
    halved = 2 ** round(math.log2(image / cells))
    if cells in (image // halved, -(-image // halved)) or image % cells:
        return halved
    return image // cells


def keep_only(model: nnx.Module, kept: Iterable[Path]) -> None:
    """Delete, in place, every part of a model that holds none of the variables `kept`.

    Afterwards the model has `features` and no classifier; calling it fails.
    """
    kept = set(kept)
    parents = {path[:end] for path in kept for end in range(len(path) + 1)}
    nodes: dict[Path, Any] = dict(nnx.iter_graph(model))
    for path, node in nodes.items():
        if path in parents or path[:-1] not in parents or not _holds_variables(node):
            continue
        owner, name = nodes[path[:-1]], path[-1]
        if isinstance(name, int):
            owner[name] = jax.nn.identity
        else:
            delattr(owner, name)


def _holds_variables(node: Any) -> bool:
    return any(isinstance(part, nnx.Variable) for _, part in nnx.iter_graph(node))


def freeze(model: nnx.Module, paths: Iterable[Path]) -> None:
    """Make the parameters at these paths `Frozen`, in place, and fix their BatchNorm's statistics.

    A frozen parameter belongs to the state that is not learned.
    """
    wanted = set(paths)
    nodes: dict[Path, Any] = dict(nnx.iter_graph(model))
    for path, node in nodes.items():
        if path not in wanted or not isinstance(node, nnx.Param):
            continue
        owner = nodes[path[:-1]]
        setattr(owner, path[-1], Frozen(node.get_value(), **_own_metadata(node)))
        if isinstance(owner, layers.BatchNorm):
            owner.fixed_statistics = True


def freeze_all_but_classifier(model: nnx.Module) -> None:
    """Make every parameter `Frozen`, in place, but those of the layers of kind "head".

    Raises:
      UserError: no layer is of that kind.
    """
    found = [(path, node) for path, node in nnx.iter_graph(model) if isinstance(node, nnx.Param)]
    heads = {path[:-1] for path, node in found if node.get_metadata().get("kind") == "head"}
    if not heads:
        raise UserError(
            f"Which layer of {type(model).__name__} is the classifier is not known; give its "
            'kernel the kind "head", as in nnx.Param(value, kind="head").'
        )
    freeze(model, [path for path, _ in found if path[:-1] not in heads])


def _own_metadata(variable: nnx.Variable) -> dict[str, Any]:
    return {k: v for k, v in variable.get_metadata().items() if k == "kind"}


def batch_norms(model: nnx.Module) -> list[tuple[Path, layers.BatchNorm]]:
    """Return every BatchNorm of a model with its path."""
    return [(p, node) for p, node in nnx.iter_graph(model) if isinstance(node, layers.BatchNorm)]
