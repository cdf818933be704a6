"""Read the text of a compiled program: what it moves between chips, and to and from memory."""

import dataclasses
import math
import re
from collections.abc import Iterator

_BYTES = {
    "pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2,
    "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16,
    "f8e4m3fn": 1, "f8e5m2": 1,
}  # fmt: skip
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# dtype[sizes]{layout:tiles S(memory space)}
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^{}]*\})?")
_OTHER_MEMORY = re.compile(r"S\([1-9]\d*\)")  # 0 is the chip's main memory
COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all",
)  # fmt: skip
# Instructions that move nothing themselves.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "after-all", "partition-id", "replica-id", "iota", "opt-barrier",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
      name: without the percent sign.
      type: text of the type of its result.
      opcode: what it does.
      arguments: text in its parentheses.
      rest: what follows them.
    """

    name: str
    type: str
    opcode: str
    arguments: str
    rest: str

    @property
    def operands(self) -> list[str]:
        """Names of the instructions whose results it takes."""
        return re.findall(r"%([\w.\-]+)", self.arguments)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A transfer between devices in one step.

    Attributes:
      kind: one of `COLLECTIVES`.
      bytes: of the whole array on one device: before a reduce-scatter, after any other.
      devices: that take part in one group; 0 if the text does not tell.
      dtype: of its largest array.
      stage: "forward", "backward" or "other".
      operation: the JAX primitive that it stands for.
      times: a step.
    """

    kind: str
    bytes: float
    devices: int
    dtype: str
    stage: str
    operation: str
    times: int

    @property
    def received(self) -> float:
        """Bytes that arrive at a device in a step, at least: on a ring, or on a torus by rings."""
        n = self.devices or math.inf
        share = 1 - 1 / n
        if self.kind == "all-reduce":
            share *= 2
        elif self.kind == "collective-permute":
            share = 1
        return self.bytes * share * self.times


def collectives(text: str) -> list[Collective]:
    """Return the transfers of a compiled program, in the order of its text."""
    computations = dict(_computations(text))
    found, seen = [], set()
    for name, times in _executed(text, computations).items():
        for instruction in computations[name]:
            kind = instruction.opcode.removesuffix("-done")
            if kind not in COLLECTIVES:
                continue
            channel = re.search(r"channel_id=(\d+)", instruction.rest)
            # A transfer that is spread over several fusions stands in each of them.
            if channel and (kind, channel[1]) in seen:
                continue
            if channel:
                seen.add((kind, channel[1]))
            found.append(_collective(kind, instruction, computations[name], times))
    return found


def memory_bytes(text: str) -> float:
    """Return the bytes that a compiled program reads from and writes to a device's main memory.

    Each instruction and fusion reads its operands and writes its result once; slices are counted as
    what is taken or replaced. What stays in the memory of the cores is not counted.
    """
    computations = dict(_computations(text))
    fused = {
        called
        for instructions in computations.values()
        for instruction in instructions
        if instruction.opcode == "fusion"
        for called in _called(instruction)
    }
    total = 0.0
    for name, times in _executed(text, computations).items():
        if name in fused:
            continue
        types = {instruction.name: instruction.type for instruction in computations[name]}
        for instruction in computations[name]:
            if instruction.opcode in _FREE or instruction.opcode.endswith("-done"):
                continue
            inner: list[Instruction] = []
            if instruction.opcode == "fusion":
                called = _called(instruction)
                inner = computations.get(called[0], []) if called else []
            total += _moved(instruction, types, inner) * times
    return total


def _moved(instruction: Instruction, types: dict[str, str], inner: list[Instruction]) -> float:
    """Return the bytes of main memory that an instruction reads and writes.

    Args:
      instruction: of a computation that is executed.
      types: of all results of that computation.
      inner: what is fused in it.
    """
    if instruction.opcode.endswith("-start"):  # its result names its operands
        return _main_memory(instruction.type)
    operands = [_main_memory(types.get(name, "")) for name in instruction.operands]
    result = _main_memory(instruction.type)
    if instruction.opcode == "dynamic-slice":
        return 2 * result
    if instruction.opcode == "dynamic-update-slice":
        return 2 * operands[1]
    users: dict[str, list[Instruction]] = {}
    for part in inner:
        for name in part.operands:
            users.setdefault(name, []).append(part)
    inner_types = {part.name: part.type for part in inner}
    for part in inner:
        if part.opcode != "parameter" or not users.get(part.name):
            continue
        position, taken = int(part.arguments), users[part.name]
        if position >= len(operands) or not operands[position]:
            continue
        if all(user.opcode == "dynamic-slice" for user in taken):
            read = sum(_bytes(user.type) for user in taken)
            operands[position] = min(operands[position], read)
        elif all(_updates(user, part.name) for user in taken):  # in place
            operands[position] = 0.0
            written = sum(_bytes(inner_types.get(user.operands[1], "")) for user in taken)
            result = min(result, written)
    return result + sum(operands)


def _updates(user: Instruction, name: str) -> bool:
    return user.opcode == "dynamic-update-slice" and user.operands[0] == name


def _computations(text: str) -> Iterator[tuple[str, list[Instruction]]]:
    name, instructions = "", list[Instruction]()
    for line in text.splitlines():
        if name and line.startswith("}"):
            yield name, instructions
            name = ""
        elif name:
            parsed = _instruction(line)
            if parsed:
                instructions.append(parsed)
        else:
            header = _COMPUTATION.match(line)
            if header:
                name, instructions = header[2], []


def _instruction(line: str) -> Instruction | None:
    found = _INSTRUCTION.match(line)
    if found is None:
        return None
    name, rest = found.groups()
    end = _end_of_type(rest)
    call = re.match(r" ([\w\-]+)\(", rest[end:])
    if call is None:
        return None
    start = end + call.end()
    close = _closing(rest, start)
    return Instruction(name, rest[:end], call[1], rest[start:close], rest[close + 1 :])


def _end_of_type(text: str) -> int:
    """Return where the type at the start of a text ends; tuples are in parentheses."""
    if text.startswith("("):
        return _closing(text, 1) + 1
    space = text.find(" ")
    return len(text) if space < 0 else space


def _closing(text: str, start: int) -> int:
    """Return the position of the parenthesis that closes one opened before `start`."""
    depth = 1
    for found in re.finditer(r"[()]", text[start:]):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return start + found.start()
    return len(text)


def _executed(text: str, computations: dict[str, list[Instruction]]) -> dict[str, int]:
    """Return how often each computation runs, those that are fused or called asynchronously too."""
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, re.MULTILINE)
    times: dict[str, int] = {}
    pending = [(entry[1], 1)] if entry else []
    while pending:
        name, count = pending.pop()
        if name not in computations:
            continue
        times[name] = times.get(name, 0) + count
        for instruction in computations[name]:
            trips = 1
            if instruction.opcode == "while":
                trips = _trips(instruction.rest, computations)
            pending += [(called, count * trips) for called in _called(instruction)]
    return times


def _called(instruction: Instruction) -> list[str]:
    rest = instruction.rest
    if instruction.opcode == "conditional":
        branches = re.search(r"branch_computations=\{([^}]*)\}", rest)
        listed = branches[1] if branches else ""
        found = re.findall(r"%?([\w.\-]+)", listed)
        return found[:1] or re.findall(r"true_computation=%?([\w.\-]+)", rest)
    if instruction.opcode in ("while", "fusion", "call") or "async" in instruction.opcode:
        return re.findall(r"(?:body|calls|to_apply)=%?([\w.\-]+)", rest)
    return []


def _trips(rest: str, computations: dict[str, list[Instruction]]) -> int:
    """Return the trips of a loop: as the compiler states them, else bound over stride.

    A loop counts from 0; XLA unrolls some, whose counter then grows by more than 1.
    """
    known = re.search(r'known_trip_count[^\d]*"?(\d+)', rest)
    if known:
        return int(known[1])
    condition, body = (_named(rest, part, computations) for part in ("condition", "body"))
    compare = next((i for i in condition.values() if i.opcode == "compare"), None)
    if compare is None:
        return 1
    bound, position = 0, ""
    for name in compare.operands:
        side = condition.get(name)
        if side is not None and side.opcode == "constant" and side.arguments.isdecimal():
            bound = int(side.arguments)
        index = re.search(r"index=(\d+)", side.rest) if side is not None else None
        position = index[1] if index else position
    result = next(reversed(body.values()), None)
    if not bound or not position or result is None or result.opcode != "tuple":
        return max(bound, 1)
    counter = body.get(result.operands[int(position)])
    strides = [
        int(body[name].arguments)
        for name in (counter.operands if counter is not None and counter.opcode == "add" else ())
        if name in body and body[name].arguments.isdecimal()
    ]
    return math.ceil(bound / max([*strides, 1]))


def _named(
    rest: str, part: str, computations: dict[str, list[Instruction]]
) -> dict[str, Instruction]:
    """Return the instructions of a loop's condition or body by name, in their order."""
    found = re.search(rf"{part}=%?([\w.\-]+)", rest)
    return {i.name: i for i in computations.get(found[1] if found else "", ())}


def _main_memory(type_: str) -> float:
    """Return the bytes of a type that lie in the main memory of a device."""
    return sum(
        _size(dtype, sizes)
        for dtype, sizes, layout in _ARRAY.findall(type_)
        if not _OTHER_MEMORY.search(layout)
    )


def _bytes(type_: str) -> float:
    return sum(_size(dtype, sizes) for dtype, sizes, _ in _ARRAY.findall(type_))


def _size(dtype: str, sizes: str) -> float:
    return _BYTES.get(dtype, 0) * math.prod(int(size) for size in sizes.split(",") if size)


def _collective(
    kind: str, instruction: Instruction, computation: list[Instruction], times: int
) -> Collective:
    source = instruction
    if instruction.opcode.endswith("-done"):
        source = next((i for i in computation if i.name in instruction.operands), instruction)
    devices = _group_size(source.rest)
    arrays = [(_size(dtype, sizes), dtype) for dtype, sizes, _ in _ARRAY.findall(instruction.type)]
    size = sum(size for size, _ in arrays)
    if kind == "reduce-scatter":
        size *= devices or 1
    op_name = re.search(r'op_name="([^"]*)"', instruction.rest) or re.search(
        r'op_name="([^"]*)"', source.rest
    )
    path = op_name[1] if op_name else ""
    stage = "backward" if "transpose(" in path else "forward" if "jvp(" in path else "other"
    operation = path.rpartition("/")[2].rstrip(")")  # of `transpose(jvp(block/reduce_sum))`
    return Collective(kind, size, devices, max(arrays, default=(0, ""))[1], stage, operation, times)


def _group_size(rest: str) -> int:
    """Return how many devices a group of `replica_groups` has, in any of the forms XLA writes."""
    listed = re.search(r"replica_groups=\{\{([\d,]*)\}", rest)
    if listed:
        return listed[1].count(",") + 1
    tiled = re.search(r"replica_groups=\[\d+,(\d+)\]<=", rest)
    if tiled:
        return int(tiled[1])
    mesh = re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", rest)
    if mesh:
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", mesh[1]))
        return math.prod(int(sizes.get(axis, 1)) for axis in re.findall(r"'([^']+)'", mesh[2]))
    return 0
