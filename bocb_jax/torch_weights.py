"""Weights in PyTorch's names and layouts, to and from our models.

Attributes of a backbone mirror its reference: the path of a parameter, joined by dots, is the
PyTorch name once `kernel` and `scale` read `weight`, and `mean` and `var` read `running_mean` and
`running_var`. Where a family differs, its class holds `torch_names`, pairs of a regular expression
and a replacement; as a part of another net it keeps them. Only kernels change their layout:
(height, width, in, out) becomes (out, in, height, width), and (in, out) becomes (out, in).
"""

import itertools
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models.maps import Frozen
from bocb_jax.weight_files.read import Say, warn

NamePath = tuple[Any, ...]  # of a variable in a model, such as ("layer1", 0, "conv1", "kernel")
Named = dict[str, tuple[str, nnx.Variable]]  # name -> (last part of the path, variable)

# Entries of PyTorch checkpoints that are not learned: counters, index tables, masks.
_BUFFERS = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask"
    r"|relative_pos_index|seq_length_scale|padding_mask)$"
)

# First parts of the names of a backbone inside another module, and how many may follow another.
_PREFIXES = frozenset(("module", "model", "backbone", "net", "network", "encoder"))
_DEPTH = 3


def torch_name(model: nnx.Module, path: NamePath, variable: nnx.Variable) -> str:
    """Return the reference's name of a parameter or running statistic.

    Args:
      model: backbone; `torch_names` of its class are applied last.
      path: of the variable in the model, such as ("layer1", 0, "conv1", "kernel").
      variable: the variable itself.
    """
    part = getattr(model, str(path[0]), None)
    if isinstance(part, nnx.Module) and hasattr(type(part), "torch_names"):
        return f"{path[0]}.{torch_name(part, path[1:], variable)}"
    *owners, leaf = map(str, path)
    if leaf in ("kernel", "scale"):
        leaf = "weight"
    elif isinstance(variable, nnx.BatchStat):
        leaf = f"running_{leaf}"
    name = ".".join([*owners, leaf])
    for pattern, replacement in getattr(type(model), "torch_names", ()):
        name = re.sub(pattern, replacement, name)
    return name


def load_torch_weights(
    model: nnx.Module,
    state_dict: Mapping[str, np.ndarray],
    *,
    new_head: bool = False,
    needed: Collection[NamePath] | None = None,
    say: Say = warn,
) -> list[str]:
    """Load a PyTorch state dict into a model, in place.

    Entries of the reference that are not learned (counters and other integers, index tables) are
    ignored. Position tables for another image size are resized. The model is unchanged unless
    everything fits.

    Args:
      model: backbone of this project.
      state_dict: arrays of any floating type by the reference's names, in PyTorch's layout; the
        names may share a prefix, as in `without_prefix`.
      new_head: keep the model's classifier if the checkpoint's is missing or of another shape, as
        for fine-tuning on other classes.
      needed: paths of the variables without which the model is of no use; the others keep their
        values where the checkpoint has none that fit. None: all.
      say: called with a sentence about what was resized or left out.

    Returns:
      Names of the variables that kept their values: none, or the classifier's with `new_head`.

    Raises:
      UserError: lists all entries that are missing, unexpected, of another shape or no floats.
    """
    named, free = _named_variables(model), _replaceable(model, new_head, needed)
    return _fill(model, named, without_prefix(model, state_dict, say), free, say)


def renamed(
    model: nnx.Module, weights: Mapping[str, np.ndarray], other_name: Callable[[str], str]
) -> dict[str, np.ndarray]:
    """Return weights by the model's names where they have those of another reference.

    Args:
      model: net.
      weights: arrays by names.
      other_name: from a name of ours to the other reference's.
    """
    ours = {other_name(name): name for name in _named_variables(model)}
    return {ours.get(name, name): array for name, array in weights.items()}


def has_around(net: nnx.Module, weights: Mapping[str, np.ndarray]) -> bool:
    """Return whether weights hold more of a net than its `backbone`.

    Those of a backbone alone may have names that begin with "backbone." too, as MMPretrain's.

    Args:
      net: around a backbone.
      weights: arrays by the net's names.
    """
    around = {name for name in _named_variables(net) if not name.startswith("backbone.")}
    return not around.isdisjoint(weights)


def of_backbone(backbone: nnx.Module, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return arrays by the names of a backbone, by our own; from those of a net around it as well.

    Args:
      backbone: the backbone.
      arrays: by the path of the variable, joined by dots.
    """
    if any(".".join(map(str, path)) in arrays for path, _ in variables(backbone)):
        return arrays
    start = "backbone."
    return {n.removeprefix(start): array for n, array in arrays.items() if n.startswith(start)}


def copy_backbone(backbone: nnx.Module, net: nnx.Module) -> list[str]:
    """Copy the values of a backbone into the `backbone` of a net around it, in place.

    Args:
      backbone: with its classifier.
      net: its `backbone` is the same, without what only the classifier needs.

    Returns:
      Names of the net's other variables, which kept their values.
    """
    given = dict(variables(backbone))
    new = []
    for path, variable in variables(net):
        if path[0] == "backbone":
            variable.set_value(given[path[1:]].get_value())
        else:
            new.append(".".join(map(str, path)))
    return new


def load_weights(
    model: nnx.Module,
    arrays: Mapping[str, np.ndarray],
    *,
    new_head: bool = False,
    needed: Collection[NamePath] | None = None,
    say: Say = warn,
) -> list[str]:
    """Load arrays in our own names and layouts into a model, in place.

    Args:
      model: backbone.
      arrays: by the path of the variable, joined by dots, such as "layer1.0.conv1.kernel".
      new_head, needed, say: as in `load_torch_weights`.

    Returns:
      Names of the variables that kept their values.

    Raises:
      UserError: lists all entries that are missing, unexpected, of another shape or no floats.
    """
    named = {".".join(map(str, path)): ("", variable) for path, variable in variables(model)}
    return _fill(model, named, arrays, _replaceable(model, new_head, needed), say)


def without_prefix(
    model: nnx.Module, state_dict: Mapping[str, np.ndarray], say: Say = warn
) -> Mapping[str, np.ndarray]:
    """Return the entries that belong to a model, by the model's names.

    A backbone inside another module has names that begin with "model.", "backbone." or the like;
    what lies outside of that prefix belongs to another part, such as a loss.

    Args:
      model: backbone.
      state_dict: arrays by PyTorch's names.
      say: called with a sentence if entries are left out.

    Raises:
      UserError: the weights of several models are there, under different prefixes.
    """
    ours = _named_variables(model).keys()
    fitting = {"": len(ours & state_dict.keys())}
    for name in state_dict:
        parts = itertools.takewhile(_PREFIXES.__contains__, name.split(".")[:_DEPTH])
        for prefix in itertools.accumulate(f"{part}." for part in parts):
            if prefix not in fitting:
                fitting[prefix] = sum(prefix + wanted in state_dict for wanted in ours)
    most = max(fitting.values())
    best = [prefix for prefix, count in fitting.items() if count == most]
    if best[0] == "":
        return state_dict
    if len(best) > 1:
        raise UserError(
            f"The weights of several {type(model).__name__}s are there, under "
            f"{' and '.join(repr(prefix) for prefix in best)}; save the one you want alone."
        )
    [prefix] = best
    others = [name for name in state_dict if not name.startswith(prefix)]
    if others:
        say(
            f"The weights under {prefix!r} are taken; {len(others)} others are not "
            f"({_some(others, 3)})."
        )
    return {name.removeprefix(prefix): state_dict[name] for name in state_dict
            if name.startswith(prefix)}  # fmt: skip


def _fill(
    model: nnx.Module,
    named: Named,
    given: Mapping[str, np.ndarray],
    free: Sequence[nnx.Variable],
    say: Say,
) -> list[str]:
    """Copy arrays into named variables and return the names that kept their values: some `free`."""
    missing, misshapen, kept, arrays = [], [], [], {}
    resized, no_floats = [], []
    for name, (leaf, variable) in named.items():
        theirs = tuple(given[name].shape) if name in given else None
        ours = _torch_shape(leaf, variable.shape)
        if theirs is not None and (kind := np.asarray(given[name]).dtype).kind in "iubc":
            no_floats.append(f"{name} ({kind})")
        elif theirs == ours:
            arrays[name] = _from_torch(leaf, np.asarray(given[name]))
        elif any(variable is other for other in free):
            kept.append(name)
        elif theirs is None:
            missing.append(name)
        elif (table := _resized(model, name, given[name], ours)) is not None:
            arrays[name] = table
            resized.append(f"{name} ({_written(theirs)} to {_written(ours)})")
        else:
            misshapen.append(f"{name} ({_written(theirs)}, expected {_written(ours)})")
    unexpected = [name for name in given if name not in named and not _is_buffer(name, given)]
    faults = {
        "missing": missing,
        "unexpected": unexpected,
        "of another shape": misshapen,
        "not of floats": no_floats,
    }
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise UserError(
            f"The weights do not fit {type(model).__name__}: {listed}. Check that the model, the "
            "number of classes and the image size are those of the checkpoint."
        )
    for name, array in arrays.items():
        variable = named[name][1]
        variable.set_value(jnp.array(array, dtype=variable.dtype))
    if resized:
        say(
            "Position tables of another image size were resized, as timm does: "
            f"{_some(resized, 3)}."
        )
    return kept


def _resized(
    model: nnx.Module, name: str, given: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray | None:
    """Return a position table resized to a shape; None if it cannot be, or is no such table."""
    owner = getattr(model, name.partition(".")[0], None)
    tables = getattr(type(model), "position_tables", getattr(type(owner), "position_tables", {}))
    resize = tables.get(name.rpartition(".")[2])
    return resize and resize(np.asarray(given, np.float32), shape)


def to_torch_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """Return parameters and running statistics by the reference's names, in PyTorch's layout.

    The inverse of `load_torch_weights`, bit for bit. Apply `torch.from_numpy` to each array to pass
    the result to `torch.nn.Module.load_state_dict`.
    """
    return {
        name: _to_torch(leaf, np.array(variable.get_value()))
        for name, (leaf, variable) in _named_variables(model).items()
    }


def variables(model: nnx.Module) -> Iterator[tuple[NamePath, nnx.Variable]]:
    """Yield (path, variable) of all parameters and running statistics; variables are not copied."""
    for path, node in nnx.iter_graph(model):
        if isinstance(node, (nnx.Param, nnx.BatchStat, Frozen)):
            yield path, node


def _named_variables(model: nnx.Module) -> Named:
    """Return the model's variables by their PyTorch names."""
    found: Named = {}
    for path, variable in variables(model):
        name = torch_name(model, path, variable)
        if name in found:
            raise UserError(f"Two parameters of {type(model).__name__} would be called {name}.")
        found[name] = (path[-1], variable)
    return found


def _some(names: Sequence[str], most: int = 20) -> str:
    """Return some names as text: all of a near miss, a sample of another model's."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(name[:200] for name in names[:most]) + more


def _replaceable(
    model: nnx.Module, new_head: bool, needed: Collection[NamePath] | None
) -> list[nnx.Variable]:
    """Return what need not be given: the classifier, kernels of kind "head" and their biases."""
    found = list(variables(model))
    if needed is not None:
        return [variable for path, variable in found if path not in needed]
    if not new_head:
        return []
    heads = {path[:-1] for path, v in found if v.get_metadata().get("kind") == "head"}
    return [variable for path, variable in found if path[:-1] in heads]


def _is_buffer(name: str, given: Mapping[str, np.ndarray]) -> bool:
    return bool(_BUFFERS.search(name)) or np.asarray(given[name]).dtype.kind in "iubc"


def _to_torch(leaf: str, array: np.ndarray) -> np.ndarray:
    """Move a kernel's output axis from last to first and its input axis to second."""
    if leaf != "kernel":
        return array
    return np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)))


def _from_torch(leaf: str, array: np.ndarray) -> np.ndarray:
    return np.moveaxis(array, (0, 1), (-1, -2)) if leaf == "kernel" else array


def _torch_shape(leaf: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    return (shape[-1], shape[-2], *shape[:-2]) if leaf == "kernel" else tuple(shape)


def _written(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"
