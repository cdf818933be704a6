"""An interpreter of the pickles that `torch.save` writes. It imports nothing and calls nothing.

Python's own unpickler grows its memo to whatever index a pickle names, and hashes, copies and
compares what the pickle made. Here a pickle is a list of instructions that make tensors and plain
containers; everything else becomes an `Object` that only remembers what it was. The number of
instructions is bounded, so time and memory are as well.
"""

import dataclasses
import pickletools
from collections.abc import Callable, Sequence
from typing import IO, Any, Protocol, cast

MAX_BYTES = 32 << 20  # of the pickles of one file; those of ImageNet models take less than 1 MiB
MAX_STEPS = 1_000_000  # instructions in one file; a model and its optimizer take about 100,000


class NotWeights(Exception):
    """A file that holds no weights; the message completes a sentence that begins with the file."""


class Readable(Protocol):
    """What pickles are read from."""

    def read(self, size: int) -> bytes: ...
    def readline(self, size: int) -> bytes: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Name:
    """The name of a class or function in a pickle."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"[:200]


@dataclasses.dataclass(slots=True)
class Object:
    """Any object that is neither a tensor nor a plain container.

    Attributes:
      kind: its class.
      state: its attributes, if the pickle sets any.
    """

    kind: Name | None
    state: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Storage:
    """The flat memory that tensors are views of: name of its type, and key in the file."""

    kind: str
    key: str


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A strided view of a storage; offset and strides count elements.

    Attributes:
      dtype: the name of PyTorch's type where it is not that of the storage.
    """

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class OtherTensor:
    """A tensor that is no plain array, such as a sparse or a quantized one."""

    what: str


class Reader:
    """Reads the pickles of one file, one after the other, within one budget.

    Args:
      file: positioned at the first one.
      size: of the file in bytes.
    """

    def __init__(self, file: Readable, size: int):
        self._file, self._size = file, size
        self._bytes, self._steps = MAX_BYTES, MAX_STEPS
        self.storages: dict[str, Storage] = {}  # all that the pickles name, by key

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes; for `pickletools`."""
        return self._counted(self._file.read(min(size, self._bytes, self._size)))

    def readline(self) -> bytes:
        """Read a line; for `pickletools`."""
        return self._counted(self._file.readline(self._bytes))

    def _counted(self, data: bytes) -> bytes:
        self._bytes -= len(data)
        if self._bytes <= 0:
            raise NotWeights(
                f"describes its tensors in more than {MAX_BYTES >> 20} MiB, which is no state "
                "dict of a network; save model.state_dict() alone"
            )
        return data

    def spend(self, steps: int) -> None:
        """Count instructions.

        Raises:
          NotWeights: there are more than a file of weights needs.
        """
        self._steps -= steps
        if self._steps < 0:
            raise NotWeights(
                f"describes its tensors in more than {MAX_STEPS:,} steps, which is no state dict "
                "of a network; save model.state_dict() alone"
            )

    def load(self) -> Any:
        """Return the next object of the file.

        Raises:
          NotWeights: there is no whole pickle, or it is too long.
        """
        machine = _Machine(self)
        try:
            for opcode, argument, _ in pickletools.genops(cast(IO[bytes], self)):
                self.spend(1)
                if opcode.name == "STOP":
                    break
                machine.step(opcode.name, argument)
            return machine.stack.pop()
        except NotWeights:
            raise
        except Exception as error:  # whatever a damaged pickle provokes
            raise NotWeights(
                "is damaged, or no file of weights: its pickle is not whole"
            ) from error


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8", "UNICODE",
    "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "FLOAT", "BINFLOAT",
}  # fmt: skip
_SIZES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_KEYS = (str, int, float, bytes, type(None))  # hashed in a time that their own size bounds


class _Machine:
    """The stack and the memo of one pickle."""

    def __init__(self, reader: Reader):
        self.reader = reader
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # stacks below each mark
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction.

        Args:
          name: as `pickletools` calls it.
          argument: what follows it in the pickle.
        """
        if name in _LITERALS:
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self.stack.append(self.memo[argument])
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self.memo[argument] = self.stack[-1]
        elif name in _SIZES:
            count = _SIZES[name]
            self.stack[-count:] = [tuple(self.stack[-count:])]
        elif name not in ("PROTO", "FRAME"):
            _STEPS[name](self, argument)

    def above_mark(self) -> list[Any]:
        """Take what was pushed since the last mark."""
        items, self.stack = self.stack, self.outer.pop()
        return items

    def fill(self, items: Sequence[Any]) -> None:
        """Set alternating keys and values in the dict on top of the stack."""
        target = self.stack[-1]
        if isinstance(target, dict):
            target.update(
                (key, value)
                for key, value in zip(items[::2], items[1::2], strict=True)
                if isinstance(key, _KEYS)
            )

    def extend(self, items: Sequence[Any]) -> None:
        """Append to the list on top of the stack."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def call(self) -> None:
        """Replace a function and its arguments by what the function would have returned."""
        arguments, function = self.stack.pop(), self.stack.pop()
        self.stack.append(_result(function, arguments, self.reader))

    def make(self) -> None:
        """Replace a class and its arguments by an object."""
        _, kind = self.stack.pop(), self.stack.pop()
        self.stack.append(_instance(kind))

    def make_with_keywords(self) -> None:
        """Replace a class, its arguments and its keyword arguments by an object."""
        self.stack.pop()
        self.make()

    def set_state(self) -> None:
        """Give the object on top of the stack its attributes."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Object):
            self.stack[-1].state = state

    def global_name(self) -> None:
        """Replace a module and a name by the name of a class or function."""
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(Name(str(module), str(name)))

    def mark(self) -> None:
        """Begin a new stack above the present one."""
        self.outer.append(self.stack)
        self.stack = []

    def remember(self) -> None:
        """Put the top of the stack into the memo's next place."""
        self.memo[len(self.memo)] = self.stack[-1]

    def pop(self) -> None:
        """Drop the top of the stack, or an empty stack above a mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.outer.pop()

    def from_mark(self, kind: Callable[[list[Any]], Any]) -> None:
        """Replace what was pushed since the last mark by one thing made of it."""
        made = kind(self.above_mark())
        self.stack.append(made)

    def dict_from_mark(self) -> None:
        """Replace alternating keys and values by a dict."""
        items = self.above_mark()
        self.stack.append({})
        self.fill(items)

    def set_item(self) -> None:
        """Set one key of a dict."""
        value, key = self.stack.pop(), self.stack.pop()
        self.fill((key, value))

    def append(self) -> None:
        """Append one item to a list."""
        item = self.stack.pop()
        self.extend((item,))


_STEPS: dict[str, Callable[[_Machine, Any], Any]] = {
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.pop(),
    "POP_MARK": lambda m, _: m.above_mark(),
    "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "MEMOIZE": lambda m, _: m.remember(),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()),
    "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}),
    "EMPTY_SET": lambda m, _: m.stack.append(Object(Name("builtins", "set"))),
    "ADDITEMS": lambda m, _: m.above_mark(),
    "FROZENSET": lambda m, _: m.from_mark(lambda _: Object(Name("builtins", "frozenset"))),
    "TUPLE": lambda m, _: m.from_mark(tuple),
    "LIST": lambda m, _: m.from_mark(list),
    "DICT": lambda m, _: m.dict_from_mark(),
    "APPEND": lambda m, _: m.append(),
    "APPENDS": lambda m, _: m.extend(m.above_mark()),
    "SETITEM": lambda m, _: m.set_item(),
    "SETITEMS": lambda m, _: m.fill(m.above_mark()),
    "GLOBAL": lambda m, name: m.stack.append(Name(*name.split(" ", 1))),
    "STACK_GLOBAL": lambda m, _: m.global_name(),
    "REDUCE": lambda m, _: m.call(),
    "NEWOBJ": lambda m, _: m.make(),
    "NEWOBJ_EX": lambda m, _: m.make_with_keywords(),
    "INST": lambda m, name: m.from_mark(lambda _: _instance(Name(*name.split(" ", 1)))),
    "OBJ": lambda m, _: m.from_mark(lambda items: _instance(items[0])),
    "BUILD": lambda m, _: m.set_state(),
    "PERSID": lambda m, _: m.stack.append(None),
    "BINPERSID": lambda m, _: m.stack.append(_storage(m.stack.pop(), m.reader)),
}


def _instance(kind: Any) -> Any:
    """Return what an object of a class is read as."""
    if kind in (Name("collections", "OrderedDict"), Name("collections", "defaultdict")):
        return {}
    return Object(kind if isinstance(kind, Name) else None)


def _storage(saved: Any, reader: Reader) -> Storage | Name | None:
    """Return the storage, or the class of a module, that a persistent id stands for."""
    match saved:
        case ("storage", Name(name=kind), str(key), _, _) | (
            "storage", Name(name=kind), str(key), _, _, None
        ):  # fmt: skip
            return reader.storages.setdefault(key, Storage(kind, key))
        case ("storage", Name(), str(), _, _, _):
            raise NotWeights("shares memory as PyTorch did before 0.4; save it with a later one")
        case ("module", Name() as kind, *_):  # of a whole module, with its source
            return kind
    return None


def _result(function: Any, arguments: Any, reader: Reader) -> Any:
    """Return what a call of a pickle is read as.

    Args:
      function: what is called.
      arguments: a tuple in a whole pickle.
      reader: counts what takes more than one step.
    """
    if not isinstance(function, Name):
        return Object(None)
    known, name = function.module, function.name
    match known, name, arguments:
        case "collections", "OrderedDict", (list(pairs),):
            reader.spend(len(pairs))
            return {key: value for key, value in pairs if isinstance(key, _KEYS)}
        case "collections", "OrderedDict" | "defaultdict", _:
            return {}
        case "torch", "Size", (size,):
            return size
        case "torch._utils", "_rebuild_tensor", (storage, offset, shape, strides):
            return _tensor(storage, offset, shape, strides)
        case "torch._utils", "_rebuild_tensor_v2", (storage, offset, shape, strides, _, _, *more):
            if any(more):
                return OtherTensor("a conjugate or negative view")
            return _tensor(storage, offset, shape, strides)
        case "torch._utils", "_rebuild_tensor_v3", (
            storage, offset, shape, strides, _, _, Name(name=dtype), *_
        ):  # fmt: skip
            return _tensor(storage, offset, shape, strides, dtype)
        case "torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state", (tensor, *_):
            return tensor
        case "torch._tensor", "_rebuild_from_type_v2", (Name() as inner, _, tuple(given), _):
            # The tensor of a subclass, such as torchvision's; inner calls do not nest.
            nested = inner.name == name
            return OtherTensor("nested") if nested else _result(inner, given, reader)
        case "torch._utils", _, _ if name.startswith("_rebuild"):
            words = name.removeprefix("_rebuild").removesuffix("_tensor").strip("_")
            special = {"qtensor": "quantized", "meta_tensor_no_storage": "without values"}
            return OtherTensor(special.get(words, words.replace("_", " ") or "of another kind"))
        case "copyreg" | "copy_reg", "_reconstructor", (Name() as kind, *_):
            return _instance(kind)
    return Object(function)


def _tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, dtype: str | None = None
) -> Tensor:
    """Return a tensor if its parts are of the right types and in range."""
    whole = isinstance(storage, Storage) and len(shape) == len(strides) <= 32
    if not whole or any(type(n) is not int or n < 0 for n in (offset, *shape, *strides)):
        raise NotWeights("is damaged: the shape or the strides of a tensor are not possible")
    return Tensor(storage, offset, tuple(shape), tuple(strides), dtype)
