"""Tensors in files: `torch.save` of either age, and safetensors.

Nothing is taken on trust: sizes are compared with that of the file before anything is read.
"""

import io
import json
import math
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import IO, Any

import ml_dtypes
import numpy as np

from bocb_jax.weight_files.torch_pickle import (
    MAX_BYTES,
    NotWeights,
    OtherTensor,
    Reader,
    Storage,
    Tensor,
)

Arrays = dict[str, np.ndarray]
# Reads the memory of storages, each once.
Memory = Callable[[Iterable[Storage]], Iterable[tuple[Storage, bytes]]]

# Arrays may take so many times the size of their file: tensors can share memory.
SHARED = 4
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of PyTorch's older format

_DTYPES = {
    "float64": np.float64,
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8_e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "float8_e5m2": ml_dtypes.float8_e5m2,
    "float8_e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "float8_e8m0fnu": ml_dtypes.float8_e8m0fnu,
    "int64": np.int64,
    "int32": np.int32,
    "int16": np.int16,
    "int8": np.int8,
    "uint64": np.uint64,
    "uint32": np.uint32,
    "uint16": np.uint16,
    "uint8": np.uint8,
    "bool": np.bool_,
    "complex64": np.complex64,
    "complex128": np.complex128,
}
_STORAGES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "UntypedStorage": "uint8",
    "QInt8Storage": "int8",
    "QUInt8Storage": "uint8",
    "QInt32Storage": "int32",
}
_SAFETENSORS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E5M2FNUZ": "float8_e5m2fnuz",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
}


def size_of(file: IO[bytes]) -> int:
    """Return the size of an open file in bytes."""
    return os.fstat(file.fileno()).st_size


def _dtype(name: str | None, where: str) -> np.dtype:
    if name not in _DTYPES:
        raise NotWeights(f"holds {where} of a type that is not understood; save it as float32")
    return np.dtype(_DTYPES[name])


# --- PyTorch -----------------------------------------------------------------------------------


def open_torch_zip(file: IO[bytes]) -> tuple[Any, Memory]:
    """Open PyTorch's format since 1.6: a zip archive of a pickle and one member per storage.

    Returns:
      The object that was saved, with `Tensor` for tensors; and what reads their memory.

    Raises:
      NotWeights: the file is damaged, or an archive of something else.
    """
    size = size_of(file)
    archive = zipfile.ZipFile(file)
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise NotWeights("is damaged: its archive holds two members of one name")
    roots = [name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")]
    if len(roots) != 1:
        npz = bool(names) and all(name.endswith(".npy") for name in names)
        kind = "NumPy's .npz" if npz else "a zip archive, but not one that torch.save wrote"
        raise NotWeights(f"is {kind}; give the .pth or .safetensors file itself")
    [root] = roots
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in names):
        raise NotWeights(
            "is a TorchScript program, which is not run here; in PyTorch, save its weights: "
            "torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)"
        )

    present = set(names)

    def member(name: str) -> bytes:
        # PyTorch stores its members as they are. Compressed ones could unfold to any size.
        if name not in present:
            raise NotWeights(f"is damaged: its archive lacks {name!r:.100}")
        info = archive.getinfo(name)
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise NotWeights(
                "is compressed, as torch.save never does; unpack the archive and zip it again "
                "without compression (zip -0 -r)"
            )
        if info.header_offset + info.file_size > size:
            raise NotWeights("is damaged or cut off: its archive is longer than the file")
        return archive.read(info)

    if f"{root}byteorder" in present and member(f"{root}byteorder") != b"little":
        raise NotWeights("has a byte order other than little; save it on a little-endian machine")
    if archive.getinfo(f"{root}data.pkl").file_size > MAX_BYTES:
        raise NotWeights(f"describes its tensors in more than {MAX_BYTES >> 20} MiB")
    found = Reader(io.BytesIO(member(f"{root}data.pkl")), size).load()

    def memory(storages: Iterable[Storage]) -> Iterable[tuple[Storage, bytes]]:
        left = size  # members may not overlap
        for storage in storages:
            data = member(f"{root}data/{storage.key}")
            left -= len(data)
            if left < 0:
                raise NotWeights("is damaged: members of its archive overlap")
            yield storage, data

    return found, memory


def open_torch_legacy(file: IO[bytes]) -> tuple[Any, Memory]:
    """Open PyTorch's older format.

    Pickles of a magic number, a version, the system, the object and the keys of its storages; then
    the length and the bytes of each storage.

    Returns:
      As `open_torch_zip`.

    Raises:
      NotWeights: the file is damaged, or a pickle of something else.
    """
    size = size_of(file)
    reader = Reader(file, size)
    if reader.load() != _MAGIC:
        raise NotWeights(
            "is neither a zip archive nor in PyTorch's older format; save it with torch.save, or "
            "as .safetensors"
        )
    reader.load()
    system = reader.load()
    if isinstance(system, dict) and system.get("little_endian") is False:
        raise NotWeights("has a byte order other than little; save it on a little-endian machine")
    found, keys = reader.load(), reader.load()
    begin = file.tell()

    def memory(storages: Iterable[Storage]) -> Iterable[tuple[Storage, bytes]]:
        wanted = {storage.key for storage in storages}
        file.seek(begin)
        for key in keys if isinstance(keys, list) else ():
            storage = reader.storages.get(key)
            if storage is None:
                break
            count = int.from_bytes(file.read(8), "little")
            length = count * _dtype(_STORAGES.get(storage.kind), "tensors").itemsize
            if length > size - file.tell():
                break
            if key in wanted:
                wanted.remove(key)
                yield storage, file.read(length)
            else:
                file.seek(length, os.SEEK_CUR)
        if wanted:
            raise NotWeights("is damaged or cut off: the memory of a tensor is missing")

    return found, memory


def torch_arrays(tensors: Mapping[str, Tensor | OtherTensor], memory: Memory, size: int) -> Arrays:
    """Return tensors as arrays, in their order.

    Args:
      tensors: by name.
      memory: reads their storages.
      size: of the file in bytes; bounds that of the arrays.

    Raises:
      NotWeights: a tensor is no array, is of an unknown type, or reaches beyond its memory.
    """
    made: Arrays = {}
    views: dict[Storage, list[tuple[str, Tensor, np.dtype]]] = {}
    total = 0
    for name, tensor in tensors.items():
        where = f"a tensor ({name!r:.100})"
        if isinstance(tensor, OtherTensor):
            raise NotWeights(f"holds {where} that is {tensor.what}; save it as a plain tensor")
        dtype = _dtype(tensor.dtype or _STORAGES.get(tensor.storage.kind), where)
        total += math.prod(tensor.shape) * dtype.itemsize
        if total > SHARED * size:
            raise NotWeights(
                f"is damaged, or repeats its memory: its tensors, up to {name!r:.100}, would take "
                f"{total:,} bytes, and the file has {size:,}; save them with .clone()"
            )
        made[name] = np.empty(0)  # keeps the order
        views.setdefault(tensor.storage, []).append((name, tensor, dtype))
    for storage, data in memory(list(views)):
        for name, tensor, dtype in views[storage]:
            made[name] = _view(tensor, data, dtype, name).copy()
    return made


def _view(tensor: Tensor, data: bytes, dtype: np.dtype, name: str) -> np.ndarray:
    size = dtype.itemsize
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((n - 1) * step for n, step in steps)
    if (last + 1) * size > len(data):
        raise NotWeights(f"is damaged: a tensor ({name!r:.100}) reaches beyond its memory")
    # Strides of axes of one element mean nothing; NumPy refuses huge ones.
    steps = zip(tensor.shape, tensor.strides, strict=True)
    strides = [step * size if n > 1 else 0 for n, step in steps]
    return np.ndarray(tensor.shape, dtype, data, tensor.offset * size, strides)


# --- safetensors -------------------------------------------------------------------------------


def read_safetensors(file: IO[bytes]) -> Arrays:
    """Read a `.safetensors` file, with the types that NumPy itself does not know.

    Raises:
      NotWeights: the header is damaged, or its tensors do not fill the file exactly.
    """
    left = size_of(file) - 8
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= left:
        raise NotWeights("is damaged or cut off: its header is longer than the file")
    if length > MAX_BYTES:
        raise NotWeights(f"is no file of weights: its header takes more than {MAX_BYTES >> 20} MiB")
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise NotWeights("is damaged: its header is not JSON") from error
    if not isinstance(header, dict):
        raise NotWeights("is damaged: its header is no table of tensors")
    header.pop("__metadata__", None)
    places, end = [], 0
    for name, entry in header.items():
        match entry:
            case {
                "dtype": str(kind),
                "shape": list(shape),
                "data_offsets": [int(), int()] as place,
            }:
                dtype = _dtype(_SAFETENSORS.get(kind), f"a tensor ({name!r:.100})")
            case _:
                raise NotWeights(f"is damaged: its header does not describe {name!r:.100}")
        if len(shape) > 32 or any(type(n) is not int or n < 0 for n in shape):
            raise NotWeights(f"is damaged: the shape of {name!r:.100} is not possible")
        if place[1] - place[0] != math.prod(shape) * dtype.itemsize:
            raise NotWeights(f"is damaged: {name!r:.100} has not as many bytes as its shape needs")
        places.append((*place, name, dtype, shape))
    made: Arrays = {}
    for start, stop, name, dtype, shape in sorted(places, key=lambda place: place[:2]):
        if start != end:
            raise NotWeights(
                f"is damaged: {name!r:.100} does not begin where the tensor before ends"
            )
        if stop > left - length:
            raise NotWeights("is damaged or cut off: a tensor reaches beyond its end")
        made[name] = np.fromfile(file, dtype, math.prod(shape)).reshape(shape)
        end = stop
    if end != left - length:
        raise NotWeights("is damaged: it goes on after its last tensor")
    return {name: made[name] for name in header}


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise NotWeights("is damaged: its header names a tensor twice")
    return found
