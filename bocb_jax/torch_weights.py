"""Weights in PyTorch's names and layouts, to and from our models; reading of weight files.

Attributes of a backbone mirror its reference: the path of a parameter, joined by dots, is the
PyTorch name once `kernel` and `scale` read `weight`, and `mean` and `var` read `running_mean` and
`running_var`. Where a family differs, its class holds `torch_names`, pairs of a regular expression
and a replacement. Only kernels change their layout: (height, width, in, out) becomes
(out, in, height, width), and (in, out) becomes (out, in).
"""

import math
import pickle
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.errors import UserError

NamePath = tuple[Any, ...]  # of a variable in a model, such as ("layer1", 0, "conv1", "kernel")
Named = dict[str, tuple[str, nnx.Variable]]  # name -> (last part of the path, variable)

# Entries of PyTorch checkpoints that are not learned: counters, index tables, masks.
_BUFFERS = re.compile(
    r"(^|\.)(num_batches_tracked|relative_position_index|relative_coords_table|attn_mask"
    r"|relative_pos_index|seq_length_scale|padding_mask)$"
)


def torch_name(model: nnx.Module, path: NamePath, variable: nnx.Variable) -> str:
    """Return the reference's name of a parameter or running statistic.

    Args:
      model: backbone; `torch_names` of its class are applied last.
      path: of the variable in the model, such as ("layer1", 0, "conv1", "kernel").
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
    """Load a PyTorch state dict into a model, in place.

    Entries of the reference that are not learned (counters and other integers, index tables) are
    ignored. The model is unchanged unless everything fits.

    Args:
      model: backbone of this project.
      state_dict: arrays of any floating type by the reference's names, in PyTorch's layout.
      new_head: keep the model's classifier if the checkpoint's is missing or of another shape, as
        for fine-tuning on other classes.

    Returns:
      Names of the variables that kept their values: none, or the classifier's with `new_head`.

    Raises:
      UserError: lists all entries that are missing, unexpected or of another shape.
    """
    return _fill(model, _named_variables(model), state_dict, new_head)


def load_weights(
    model: nnx.Module, arrays: Mapping[str, np.ndarray], *, new_head: bool = False
) -> list[str]:
    """Load arrays in our own names and layouts into a model, in place.

    Args:
      model: backbone.
      arrays: by the path of the variable, joined by dots, such as "layer1.0.conv1.kernel".
      new_head: as in `load_torch_weights`.

    Returns:
      Names of the variables that kept their values.

    Raises:
      UserError: lists all entries that are missing, unexpected or of another shape.
    """
    named = {".".join(map(str, path)): ("", variable) for path, variable in variables(model)}
    return _fill(model, named, arrays, new_head)


def _fill(
    model: nnx.Module, named: Named, given: Mapping[str, np.ndarray], new_head: bool
) -> list[str]:
    """Copy arrays into named variables and return the names that kept their values."""
    missing, misshapen, kept, arrays = [], [], [], {}
    heads = _head_variables(model) if new_head else []
    for name, (leaf, variable) in named.items():
        theirs = tuple(given[name].shape) if name in given else None
        ours = _torch_shape(leaf, variable.shape)
        if theirs == ours:
            arrays[name] = _from_torch(leaf, np.asarray(given[name]))
        elif any(variable is head for head in heads):
            kept.append(name)
        elif theirs is None:
            missing.append(name)
        else:
            misshapen.append(f"{name} ({_written(theirs)}, expected {_written(ours)})")
    unexpected = [name for name in given if name not in named and not _is_buffer(name, given)]
    faults = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    if any(faults.values()):
        listed = "; ".join(f"{what}: {_some(names)}" for what, names in faults.items() if names)
        raise UserError(
            f"The weights do not fit {type(model).__name__}: {listed}. Check that the model, the "
            "number of classes and the image size are those of the checkpoint."
        )
    for name, array in arrays.items():
        variable = named[name][1]
        variable.set_value(jnp.array(array, dtype=variable.dtype))
    return kept


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
        if isinstance(node, (nnx.Param, nnx.BatchStat)):
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


def _some(names: Sequence[str]) -> str:
    """Return up to twenty names as text: all of a near miss, a sample of another model's."""
    more = f" and {len(names) - 20} more" if len(names) > 20 else ""
    return ", ".join(names[:20]) + more


def _head_variables(model: nnx.Module) -> list[nnx.Variable]:
    """Return the classifier: kernels of kind "head" and their biases."""
    found = list(variables(model))
    heads = {path[:-1] for path, v in found if v.get_metadata().get("kind") == "head"}
    return [variable for path, variable in found if path[:-1] in heads]


def _is_buffer(name: str, given: Mapping[str, np.ndarray]) -> bool:
    return bool(_BUFFERS.search(name)) or np.asarray(given[name]).dtype.kind in "iub"


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


def read_weights(path: str | PathLike[str]) -> dict[str, np.ndarray]:
    """Read a `.safetensors`, `.pth`, `.pt` or `.bin` file, without PyTorch.

    A training checkpoint gives what lies under "state_dict" or "model", and a prefix "module." of
    names is removed. A `.pth` file is a pickle, but nothing in it is executed: tensors and plain
    containers are read, and all other objects become empty placeholders.

    Args:
      path: file, in PyTorch's zip format or the older one.

    Returns:
      Arrays by name, for `load_torch_weights`.

    Raises:
      UserError: the file does not exist, is damaged, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"There is no file of weights at {path}.")
    try:
        if path.suffix == ".safetensors":
            from safetensors.numpy import load_file

            found: Any = load_file(path)
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
        raise UserError(f"{path} holds no state dict: there are no tensors with names in it.")
    try:
        return {
            name.removeprefix("module."): v.array() if isinstance(v, _Tensor) else v
            for name, v in found.items()
            if isinstance(v, np.ndarray | _Tensor)
        }
    except Exception as error:
        raise UserError(f"{path} is damaged: {error}.") from error


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
    """The flat memory that tensors are views of; `data` is set once it has been read."""

    def __init__(self, kind: str):
        self.dtype = np.dtype(_STORAGE_TYPES[kind])
        self.data: np.ndarray | None = None


class _Tensor:
    """A strided view of a storage."""

    def __init__(
        self, storage: _Storage, offset: int, shape: Sequence[int], strides: Sequence[int], *_: Any
    ):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> np.ndarray:
        """Return a copy of the tensor.

        Raises:
          ValueError: the view reaches outside the memory that was read.
        """
        flat, size = self.storage.data, math.prod(self.shape)
        last = self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
        if flat is None or self.offset < 0 or min(self.strides, default=0) < 0:
            raise ValueError("a tensor's memory is missing")
        if size and last >= len(flat):
            raise ValueError("a tensor reaches beyond its memory")
        strides = [s * flat.itemsize for s in self.strides]
        return np.lib.stride_tricks.as_strided(flat[self.offset :], self.shape, strides).copy()


class _Placeholder:
    """Stands for any other object of a pickle, and ignores all that the pickle does to it."""

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, item: Any) -> None:
        """Do nothing."""

    def extend(self, items: Any) -> None:
        """Do nothing."""


class _WeightsOnly(pickle.Unpickler):
    """An unpickler of tensors and plain containers that cannot call anything else."""

    def __init__(self, file: IO[bytes]):
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Returns nothing that a pickle could alter: functions made here, built-in types, and the
        # name of a storage type.
        if module == "torch" and name in _STORAGE_TYPES:
            return name
        known = {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch", "Size"): tuple,
            ("torch._utils", "_rebuild_tensor_v2"): lambda *view: _Tensor(*view),
            ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
        }
        return known.get((module, name), _Placeholder)

    def persistent_load(self, saved: Any) -> _Storage:
        _, kind, key, *_ = saved
        return self.storages.setdefault(key, _Storage(kind))


def _read_zip(file: IO[bytes]) -> Any:
    """Read PyTorch's format since 1.6: a zip archive of a pickle and one member per storage."""
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


def _read_legacy(file: IO[bytes]) -> Any:
    """Read PyTorch's older format.

    Pickles of a magic number, a version, the system, the object and the keys of its storages; then
    the length and the bytes of each storage.
    """
    file.seek(0)
    if _WeightsOnly(file).load() != 0x1950A86A20F9469CFC6C:
        raise ValueError("it is neither a zip archive nor in PyTorch's older format")
    for _ in range(2):
        _WeightsOnly(file).load()
    unpickler = _WeightsOnly(file)
    found = unpickler.load()
    for key in _WeightsOnly(file).load():
        storage = unpickler.storages[key]
        count = int.from_bytes(file.read(8), "little")
        storage.data = _flat(file.read(count * storage.dtype.itemsize), storage.dtype)
    return found


def _flat(data: bytes, dtype: np.dtype, order: str = "little") -> np.ndarray:
    if order != "little":
        raise ValueError(f"its byte order is {order}; save it on a little-endian machine")
    return np.frombuffer(data, dtype)
