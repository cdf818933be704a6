"""Files as `torch.save` writes them, made without PyTorch."""

import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np


class Storage:
    """What a pickle of PyTorch refers to by a persistent id."""

    def __init__(self, kind, key, data):
        self.kind, self.key, self.data = kind, key, data


class Global:
    """Pickled as the name of a class or function, whether it exists or not."""

    def __init__(self, module, name):
        self.module, self.name = module, name


class Call:
    """Pickled as a call of a function, with a state if one is given."""

    def __init__(self, module, name, *arguments, state=None):
        self.function, self.arguments, self.state = Global(module, name), arguments, state


KINDS = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage",
         "int8": "CharStorage", "bool": "BoolStorage", "complex64": "ComplexFloatStorage",
         "bfloat16": "BFloat16Storage", "float64": "DoubleStorage"}  # fmt: skip


class Pickler(pickle._Pickler):
    """Pickles the classes above, and arrays as tensors, in protocol 2."""

    def __init__(self, file):
        super().__init__(file, 2)
        self.storages = []

    def save(self, obj, save_persistent_id=True):
        if isinstance(obj, Global):
            self.write(pickle.GLOBAL + f"{obj.module}\n{obj.name}\n".encode())
        elif isinstance(obj, Storage):
            if obj not in self.storages:
                self.storages.append(obj)
            self.save(("storage", Global("torch", obj.kind), obj.key, "cpu", len(obj.data)))
            self.write(pickle.BINPERSID)
        elif isinstance(obj, Call):
            self.save(obj.function)
            self.save(obj.arguments)
            self.write(pickle.REDUCE)
            if obj.state is not None:
                self.save(obj.state)
                self.write(pickle.BUILD)
        elif isinstance(obj, np.ndarray):
            self.save(tensor(obj, f"s{len(self.storages)}"))
        else:
            super().save(obj)


def tensor(array, key="0", shape=None, strides=None, offset=0):
    """A tensor of an array's memory, or any view of it."""
    array = np.ascontiguousarray(array)
    shape = array.shape if shape is None else shape
    if strides is None:
        strides = tuple(s // array.itemsize for s in array.strides)
    storage = Storage(KINDS[array.dtype.name], key, array.tobytes())
    more = (offset, tuple(shape), tuple(strides), False, OrderedDict())
    return Call("torch._utils", "_rebuild_tensor_v2", storage, *more)


def pickled(found):
    """The pickle of an object, and its storages."""
    out = io.BytesIO()
    pickler = Pickler(out)
    pickler.dump(found)
    return out.getvalue(), pickler.storages


def zipped(found, *, compression=zipfile.ZIP_STORED, root="archive", **members):
    """The bytes of a file in PyTorch's format since 1.6."""
    data, storages = found if isinstance(found, tuple) else pickled(found)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", data)
        for name, content in members.items():
            archive.writestr(f"{root}/{name}", content)
        for storage in storages:
            archive.writestr(f"{root}/data/{storage.key}", storage.data)
    return out.getvalue()


def legacy(found, *, little_endian=True):
    """The bytes of a file in PyTorch's older format."""
    data, storages = found if isinstance(found, tuple) else pickled(found)
    parts = [pickle.dumps(0x1950A86A20F9469CFC6C, 2), pickle.dumps(1001, 2)]
    parts += [pickle.dumps({"little_endian": little_endian}, 2), data]
    parts += [pickle.dumps([storage.key for storage in storages], 2)]
    sizes = {"FloatStorage": 4, "LongStorage": 8, "DoubleStorage": 8, "ComplexFloatStorage": 8,
             "HalfStorage": 2, "BFloat16Storage": 2}  # fmt: skip
    for storage in storages:
        count = len(storage.data) // sizes.get(storage.kind, 1)
        parts += [count.to_bytes(8, "little"), storage.data]
    return b"".join(parts)
