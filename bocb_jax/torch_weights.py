"""Weights to and from PyTorch's names and layouts.

The attributes of a backbone mirror its reference, so the path of a parameter with dots for
slashes is the PyTorch name once `kernel` and `scale` read `weight`, and `mean` and `var`
read `running_mean` and `running_var`. Where a family differs, its class holds `torch_names`,
pairs of a regular expression and a replacement. Only kernels change their layout: (height, width,
in, out) becomes (out, in, height, width), and (in, out) becomes (out, in).
"""

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from os import PathLike
from pathlib import Path
from typing import BinaryIO

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
      UserError: names the entries that are missing, unexpected or of another shape.
    """
    return _fill(model, _named_variables(model), state_dict, new_head)


def load_weights(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], *, new_head: bool = False
) -> list[str]:
    """Puts arrays of ours into a model, in place, as `load_torch_weights` does PyTorch's.

    Args:
      model: backbone.
      arrays: by the variable's path with dots, such as "layer1.0.conv1.kernel".
      new_head: as there.

    Returns:
      Names that kept the model's own values.

    Raises:
      UserError: names the entries that are missing, unexpected or of another shape.
    """
    named = {".".join(map(str, path)): ("", variable) for path, variable in variables(model)}
    return _fill(model, named, arrays, new_head)


def _fill(model, named, given, new_head):
    """Copies `given` into the variables `named`: name -> (last part of a PyTorch path, variable)"""
    missing, misshapen, kept, arrays = [], [], [], {}
    heads = _head_variables(model) if new_head else ()
    for name, (leaf, variable) in named.items():
        theirs = _shape(given[name]) if name in given else None
        ours = _torch_shape(leaf, variable.shape)
        if theirs == ours:
            arrays[name] = _from_torch(leaf, np.asarray(given[name]))
        elif any(variable is head for head in heads):
            kept.append(name)
        elif theirs is None:
            missing.append(name)
        else:
            misshapen.append(f"{name} ({_written(theirs)} where {_written(ours)} is wanted)")
    unexpected = [name for name in given if name not in named and not _is_buffer(name, given)]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
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


def _some(names):
    """All names of a near miss, the first twenty of another model's."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _head_variables(model):
    """The classifier: kernels of kind "head" and their biases."""
    found = list(variables(model))
    heads = {path[:-1] for path, v in found if v.get_metadata().get("kind") == "head"}
    return [variable for path, variable in found if path[:-1] in heads]


def _is_buffer(name, given):
    return _BUFFERS.search(name) or np.asarray(given[name]).dtype.kind in "iub"


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


def read_weights(path: str | PathLike) -> dict[str, np.ndarray]:
    """Reads a `.safetensors`, `.pth`, `.pt` or `.bin` file, without PyTorch.

    Of a training checkpoint the weights are taken: what lies under "state_dict" or "model". A
    prefix "module." is removed. A `.pth` file is a pickle, but nothing in it is ever executed:
    tensors and plain containers are read, and every other object stays an empty shell.

    Args:
      path: file, in PyTorch's zip format or in the one before it.

    Returns:
      Arrays by name, for `load_torch_weights`.

    Raises:
      UserError: there is no such file, it is damaged, or it holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file of weights at {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found = load_file(path)
        else:
            with path.open("rb") as file:
                found = _read_zip(file) if zipfile.is_zipfile(file) else _read_legacy(file)
    except Exception as error:  # whatever a damaged or hostile file provokes
        raise UserError(f"{path} cannot be read as PyTorch weights: {error}.") from error
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not any(
        isinstance(value, np.ndarray | _Tensor) for value in found.values()
    ):
        raise UserError(f"{path} holds no state dict, that is, no tensors by name.")
    try:
        weights = {
            name.removeprefix("module."): v.array() if isinstance(v, _Tensor) else v
            for name, v in found.items()
            if isinstance(v, np.ndarray | _Tensor)
        }
    except Exception as error:
        raise UserError(f"{path} is damaged: {error}.") from error
    return weights


_STORAGE_TYPES = {
    "FloatStorage": np.float32,
    "DoubleStorage": np.float64,
    "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ShortStorage": np.int16,
    "CharStorage": np.int8,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}


class _Storage:
    """The flat memory that tensors are views of; `data` is filled in when it has been read."""

    def __init__(self, kind):
        self.dtype, self.data = np.dtype(_STORAGE_TYPES[kind]), None


class _Tensor:
    """A strided view of a storage."""

    def __init__(self, storage, offset, shape, strides, *_):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self):
        flat, size = self.storage.data, math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if flat is None or self.offset < 0 or min(self.strides, default=0) < 0:
            raise ValueError("a tensor's memory is missing")
        if size and last >= len(flat):
            raise ValueError("a tensor reaches beyond its memory")
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides).copy()


class _Shell:
    """Stands for any other object of a pickle. It does nothing, whatever is done to it."""

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state):
        pass

    def __setitem__(self, key, value):
        pass

    def append(self, item):
        """Takes no heed."""

    def extend(self, items):
        """Takes no heed."""


class _WeightsOnly(pickle.Unpickler):
    """An unpickler that knows tensors and plain containers and can call nothing else."""

    def __init__(self, file: BinaryIO):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module, name):
        # Nothing that a pickle could alter is handed out: only functions made for the occasion,
        # built-in types and the name of a storage's type.
        if module == "torch" and name in _STORAGE_TYPES:
            return name
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *view: _Tensor(*view),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        return known.get((module, name), _Shell)

    def persistent_load(self, saved):
        _, kind, key, *_ = saved
        return self.storages.setdefault(key, _Storage(kind))


def _read_zip(file):
    """PyTorch's format since 1.6: a pickle and one member for every storage."""
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
        if not roots:
            raise ValueError("it is a zip archive without a data.pkl")
        root = roots[0]
        order = "little"
        if f"{root}byteorder" in names:
            order = archive.read(f"{root}byteorder").decode()
        with archive.open(f"{root}data.pkl") as member:
            unpickler = _WeightsOnly(member)
            found = unpickler.load()
        for key, storage in unpickler.storages.items():
            storage.data = _flat(archive.read(f"{root}data/{key}"), storage.dtype, order)
    return found


def _read_legacy(file):
    """The format before: pickles of a magic number, a version, the system, the object and the
    keys of its storages; then the length and the bytes of each storage."""
    file.seek(0)
    if _WeightsOnly(file).load() != 0x1950A86A20F9469CFC6C:
        raise ValueError("it is neither a zip archive nor PyTorch's older format")
    for _ in range(2):
        _WeightsOnly(file).load()
    unpickler = _WeightsOnly(file)
    found = unpickler.load()
    for key in _WeightsOnly(file).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little")
        storage.data = _flat(file.read(count * storage.dtype.itemsize), storage.dtype)
    return found


def _flat(data, dtype, order="little"):
    if order != "little":
        raise ValueError(f"its byte order is {order}; save it on a little-endian machine")
    return np.frombuffer(data, dtype)
