"""Weights to and from PyTorch's names and layouts.

The attributes of a backbone mirror its reference, so the path of a parameter with dots for
slashes is the PyTorch name once `kernel` and `scale` read `weight`, and `mean` and `var`
read `running_mean` and `running_var`. Where a family differs, its class holds `torch_names`,
pairs of a regular expression and a replacement. Only kernels change their layout: (height, width,
in, out) becomes (out, in, height, width), and (in, out) becomes (out, in).
"""

import re
from collections.abc import Iterator, Mapping

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.errors import UserError

# What a PyTorch checkpoint holds beside what is learned: counters, index tables, masks.
_BUFFERS = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask"
    r"|relative_pos_index|seq_length_scale|padding_mask)$"
)


def torch_name(model: nnx.Module, path: tuple, variable: nnx.Variable) -> str:
    """The reference's name of one parameter or running statistic.

    Args:
      model: backbone; `torch_names` of its class are applied last.
      path: where the variable lies in the model, such as ("layer1", 0, "conv1", "kernel").
      variable: the variable itself.
    """
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
    model: nnx.Module, state_dict: Mapping[str, np.ndarray], *, new_head: bool = False
) -> list[str]:
    """Puts a PyTorch state dict into a model, in place.

    Counters and index tables of the reference (`num_batches_tracked`, whatever is of an integer
    type and not ours) are passed over. Nothing is changed unless everything fits.

    Args:
      model: backbone of ours.
      state_dict: arrays by the reference's names, in PyTorch's layout, of any floating type.
      new_head: keep the model's own classifier where the checkpoint's is missing or of another
        shape, as at the start of fine-tuning.

    Returns:
      Names that kept the model's own values: empty, or the classifier's with `new_head`.

    Raises:
      UserError: names every entry that is missing, unexpected or of another shape.
    """
    named = _named_variables(model)
    optional = _head_names(model) if new_head else set()
    missing, misshapen, kept, arrays = [], [], [], {}
    for name, (leaf, variable) in named.items():
        theirs = _shape(state_dict[name]) if name in state_dict else None
        ours = _torch_shape(leaf, variable.shape)
        if theirs == ours:
            arrays[name] = _from_torch(leaf, np.asarray(state_dict[name]))
        elif name in optional:
            kept.append(name)
        elif theirs is None:
            missing.append(name)
        else:
            misshapen.append(f"{name} ({_written(theirs)} where {_written(ours)} is wanted)")
    unexpected = [
        name for name in state_dict if name not in named and not _is_buffer(name, state_dict)
    ]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in faults.items() if names)
        raise UserError(
            f"The weights do not fit {type(model).__name__}: {listed}. Is it the same model, at "
            "the same number of classes and image size?"
        )
    for name, array in arrays.items():
        variable = named[name][1]
        variable.set_value(jnp.array(array, dtype=variable.dtype))
    return kept


def to_torch_state_dict(model: nnx.Module) -> dict[str, np.ndarray]:
    """The parameters and running statistics by the reference's names, in PyTorch's layout.

    The inverse of `load_torch_weights`, bit for bit. `torch.nn.Module.load_state_dict` takes the
    result once each array has gone through `torch.from_numpy`.
    """
    return {
        name: _to_torch(leaf, np.array(variable.get_value()))
        for name, (leaf, variable) in _named_variables(model).items()
    }


def torch_shapes(model: nnx.Module) -> dict[str, tuple[int, ...]]:
    """The shape of every entry of the model's PyTorch state dict, by name."""
    return {
        name: _torch_shape(leaf, variable.shape)
        for name, (leaf, variable) in _named_variables(model).items()
    }


def variables(model: nnx.Module) -> Iterator[tuple[tuple, nnx.Variable]]:
    """(path, variable) of every parameter and running statistic: the model's own, no copies."""
    for path, node in nnx.iter_graph(model):
        if isinstance(node, (nnx.Param, nnx.BatchStat)):
            yield path, node


def _named_variables(model):
    """PyTorch name -> (last part of our path, variable)."""
    found = {}
    for path, variable in variables(model):
        name = torch_name(model, path, variable)
        if name in found:
            raise UserError(f"Two parameters of {type(model).__name__} would be called {name}.")
        found[name] = (path[-1], variable)
    return found


def _head_names(model):
    """Names of the classifier: kernels of kind "head" and their biases."""
    found = dict(variables(model))
    heads = {
        path[:-1]
        for path, variable in found.items()
        if variable.get_metadata().get("kind") == "head"
    }
    return {
        torch_name(model, path, variable) for path, variable in found.items() if path[:-1] in heads
    }


def _is_buffer(name, state_dict):
    return _BUFFERS.search(name) or np.asarray(state_dict[name]).dtype.kind in "iub"


def _to_torch(leaf, array):
    """Kernels have the output axis last, PyTorch's have it first and the input axis second."""
    if leaf != "kernel":
        return array
    return np.ascontiguousarray(np.moveaxis(array, (-1, -2), (0, 1)))


def _from_torch(leaf, array):
    return np.moveaxis(array, (0, 1), (-1, -2)) if leaf == "kernel" else array


def _torch_shape(leaf, shape):
    return (shape[-1], shape[-2], *shape[:-2]) if leaf == "kernel" else tuple(shape)


def _shape(array):
    return tuple(array.shape)


def _written(shape):
    return "x".join(map(str, shape)) or "a scalar"
