"""Check a run before it is paid for: `bocb preflight --model vit_s --opt lamb --topology v5e:4x4`.

Compiles the real training step ahead of time for devices that are not here, and says whether it
fits, what it moves, and how long the recipe takes at least. Settings that fit are tried, not
guessed. A TPU is compiled for with libtpu (`pip install 'bocb-jax[preflight]'`); for GPUs, the CPU
stands in, and the memory is an estimate.

Exit codes: 0 it fits, 1 it does not, 2 a setting is wrong.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import functools
import json
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from bocb_jax import __version__, paper
from bocb_jax.build import checked_steps, program_spec
from bocb_jax.checked import FilePath, Workers
from bocb_jax.command_line import Parser, value_of
from bocb_jax.config import TrainConfig, present_flags
from bocb_jax.console import console, duration, output
from bocb_jax.engine.program import Program
from bocb_jax.engine.sharding import batch_sharding, check_batch, make_mesh, replicated
from bocb_jax.models import platform
from bocb_jax.resolve import ResolvedConfig
from bocb_jax.roofline.chips import GIB, Chip
from bocb_jax.roofline.cost import (
    OutOfMemory,
    StepCost,
    compile_step,
    device_bytes,
    least_received,
)
from bocb_jax.roofline.table import markdown
from bocb_jax.roofline.topology import Topology, open_topology
from bocb_jax.storage.files import read_jsonl, write_atomically
from bocb_jax.tasks.kinds import KINDS, RunData
from bocb_jax.train import parse as parse_train
from bocb_jax.transfer import parse as parse_transfer

MOST_TRIES = 6  # settings that are compiled where the first does not fit
MARGIN = 0.95  # of the memory that a setting is chosen to fill at most
DOES_NOT_FIT = 1


def main(arguments: list[str]) -> int:
    """Check the run, or the table, that the command line asks for; return the exit code."""
    options, rest = parse(arguments)
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")
    topology = open_topology(options.topology)
    config = run_config(rest)
    if options.all:
        return write_table(options, rest, config)
    check = compile_run(config, topology)
    output.print(check.text(), markup=False, soft_wrap=True)
    if check.cost is not None:
        return 0
    fitting = None if options.no_search else find_setting(config, topology, check)
    if fitting is not None:
        output.print(fitting.text(), markup=False, soft_wrap=True)
    return DOES_NOT_FIT


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and the arguments that describe a run."""
    parser = Parser(
        prog="bocb preflight",
        description="Compile the training step of a run for a TPU or GPU that is not here, and say "
        "what it needs.",
        epilog="The options of `bocb train` follow; the data set is imagenet2012 unless --dataset "
        "is given.",
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--topology", required=True, help="chips: v5e:16x16, v5p:4x4x4, v6e:8x8, h100:8 ...")
    add("--all", action="store_true", help="a table of the paper's backbones")
    add("--table", type=value_of(FilePath), default="preflight.md", help="with --all: the file")
    add("--jobs", type=value_of(Workers), default=1, help="with --all: programs compiled at a time")
    add("--no-search", action="store_true", help="look for no other setting where it does not fit")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        parse_train(["--help"])  # and exits
    options, rest = parser.parse_known_args(arguments)
    return options, rest


def run_config(arguments: list[str]) -> TrainConfig:
    """Return the run that arguments describe: as `bocb train` reads them, or `bocb transfer`."""
    flags = present_flags(arguments)
    if any(flag.partition("=")[0] == "--task" for flag in flags):
        return parse_transfer(arguments)
    if not any(flag.startswith(("--dataset", "--config")) for flag in flags):
        arguments = ["--dataset", "imagenet2012", *arguments]
    return parse_train(arguments)


# --- One run -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Check:
    """What the compiler says about a run.

    Attributes:
      config: of the run.
      resolved: what the recipe fills in.
      topology: the chips.
      cost: of a step; None if it does not fit.
      shortage: set if it does not fit.
      fixed: bytes a device of state and gradients, whatever the batch.
      num_params: learned values.
      steps: of the whole run.
      seconds: that compiling took.
    """

    config: TrainConfig
    resolved: ResolvedConfig
    topology: Topology
    cost: StepCost | None
    shortage: OutOfMemory | None
    fixed: float
    num_params: int
    steps: int
    seconds: float

    def text(self) -> str:
        """Return the lines that a person reads."""
        config, resolved, chip = self.config, self.resolved, self.topology.chip
        lines = [
            f"{config.model} + {config.opt} on {self.topology.name} ({self.topology.num_chips} "
            f"chips), batch {resolved.batch_size:,}, {resolved.precision}, "
            f"{resolved.image_size} px{_settings(config)}"
        ]
        if self.cost is None:
            assert self.shortage is not None
            return "\n".join([*lines, _shortage(self.shortage)])
        lines += _memory(self.cost, self.topology) + _times(self, self.cost, chip)
        lines += _transfers(self, self.cost)
        verdict = "It fits."
        if self.topology.stand_in:
            verdict += (
                " An estimate: compiled for CPUs with the same shardings, which hold some arrays "
                "in float32 that a GPU holds in bfloat16."
            )
        return "\n".join([*lines, verdict])

    @property
    def least_hours(self) -> float:
        """Hours of the run at the published peaks of the chip."""
        assert self.cost is not None
        return self.steps * self.cost.seconds(self.topology.chip).least / 3600

    @property
    def traffic_ratio(self) -> float:
        """Bytes that arrive at a device, over those that must."""
        assert self.cost is not None
        sent = jnp.float32 if self.topology.stand_in else self.resolved.precision  # CPUs send that
        devices, fsdp = len(self.topology.devices), self.config.parallel.fsdp
        least = least_received(self.num_params, jnp.dtype(sent).itemsize, devices, fsdp)
        return self.cost.received / least if least else math.nan


def compile_run(config: TrainConfig, topology: Topology) -> Check:
    """Compile the training step of a run for a topology.

    Raises:
      UserError: a setting is wrong.
    """
    kind = KINDS[config.task]
    dataset, _ = kind.open_or_stand_in(config)
    started = time.monotonic()
    with platform.tracing_for(topology.chip.platform):
        resolved = kind.resolve(config, dataset)
        data = kind.data(config, resolved, dataset)
        epoch_steps = data.epoch_steps
        spec = program_spec(config, resolved, dataset, epoch_steps)
        mesh = topology.mesh(config.parallel.fsdp)
        check_batch(resolved.batch_size, mesh, config.step.accumulate)
        program = Program(checked_steps(spec, mesh), mesh)
        state = program.abstract_state
        if config.task == "classification":
            side = resolved.image_size
            shape = (resolved.batch_size, *(dataset.image_shape or (side, side, 3)))
            batch, key = _batch(
                program, {"image": (shape, jnp.uint8), "label": (shape[:1], jnp.int32)}
            )
        else:
            batch, key = _batch(program, _first_batch(data))
        cost, shortage = None, None
        try:
            cost = compile_step(program.train_step, state, batch, key, topology)
        except OutOfMemory as error:
            shortage = error
    return Check(
        config=config,
        resolved=resolved,
        topology=topology,
        cost=cost,
        shortage=shortage,
        fixed=device_bytes(state) + device_bytes(state.params),
        num_params=program.num_params,
        steps=resolved.epochs * epoch_steps,
        seconds=time.monotonic() - started,
    )


def _batch(program: Program, arrays: dict[str, tuple[tuple[int, ...], Any]]) -> tuple[Any, Any]:
    """Return shapes, types and shardings of a batch and of the key of a run."""
    batch = {
        name: jax.ShapeDtypeStruct(shape, dtype, sharding=program.batch_sharding)
        for name, (shape, dtype) in arrays.items()
    }
    key = jax.eval_shape(lambda: jax.random.key(0))
    everywhere = replicated(program.mesh)
    return batch, jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)


def _first_batch(data: RunData) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shapes and types of the first batch that a run trains on."""
    batches = data.loader(batch_sharding(make_mesh(devices=1))).train(seed=0)
    with contextlib.closing(batches):
        return {name: (array.shape, array.dtype) for name, array in next(batches).items()}


def find_setting(config: TrainConfig, topology: Topology, check: Check) -> Check | None:
    """Compile other settings of a run that does not fit, until one does.

    The batch is kept: first its gradient is accumulated over parts, then the state is split over
    devices. Each that is tried is said.

    Returns:
      The first that fits; None if none did.
    """
    for tried, changed in enumerate(_candidates(config, topology, check)):
        if tried == MOST_TRIES:
            break
        console.print(f"Trying{_settings(changed)} ...", markup=False)
        found = compile_run(changed, topology)
        if found.cost is not None:
            return found
        assert found.shortage is not None
        console.print(_shortage(found.shortage), markup=False)
    console.print("No setting that was tried fits; give a smaller batch or more chips.")
    return None


def _candidates(config: TrainConfig, topology: Topology, check: Check) -> Iterator[TrainConfig]:
    """Yield settings, the most likely to fit with the least change first."""
    devices, batch = len(topology.devices), check.resolved.batch_size
    shortage = check.shortage
    assert shortage is not None
    room = MARGIN * shortage.available
    needed = shortage.needed if math.isfinite(shortage.needed) else 2 * shortage.available
    for fsdp in (1, *(2**i for i in range(1, 15))):
        if devices % fsdp or fsdp < config.parallel.fsdp or fsdp > devices:
            continue
        left = room - check.fixed * config.parallel.fsdp / fsdp
        if left <= 0:
            continue
        parts = max(1, math.ceil((needed - check.fixed) / left)) * config.step.accumulate
        parts = 2 ** math.ceil(math.log2(parts))
        while batch % (devices * parts) == 0:
            if (fsdp, parts) != (config.parallel.fsdp, config.step.accumulate):
                yield _with(config, fsdp, parts)
            parts *= 2


def _with(config: TrainConfig, fsdp: int, accumulate: int) -> TrainConfig:
    return dataclasses.replace(
        config,
        parallel=dataclasses.replace(config.parallel, fsdp=fsdp),
        step=dataclasses.replace(config.step, accumulate=accumulate),
    )


# --- In words ----------------------------------------------------------------------------------


def _settings(config: TrainConfig) -> str:
    """Return the flags that decide how a step is split, where they are not the default."""
    flags = ""
    if config.step.accumulate > 1:
        flags += f" --step.accumulate {config.step.accumulate}"
    if config.parallel.fsdp > 1:
        flags += f" --parallel.fsdp {config.parallel.fsdp}"
    return flags


def _shortage(shortage: OutOfMemory) -> str:
    available = f"{shortage.available / GIB:.2f} GiB"
    if not math.isfinite(shortage.needed):
        return f"It does not fit into the {available} of a device."
    return f"It does not fit: it needs {shortage.needed / GIB:.1f} GiB a device, of {available}."


def _memory(cost: StepCost, topology: Topology) -> list[str]:
    parts = {
        "state": cost.state,
        "batch": cost.batch,
        "activations and workspace": cost.temporaries,
        "code": cost.code,
    }
    held = ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items() if size)
    chip = topology.chip
    each = "chip" if chip.devices == 1 else "device (half a chip)"
    room = f"{cost.memory / GIB:.2f} GiB of {chip.memory / chip.devices / GIB:.0f} a {each}"
    return [f"Memory      {room}: {held}"]


def _times(check: Check, cost: StepCost, chip: Chip) -> list[str]:
    seconds = cost.seconds(chip)
    share, lines = 1 / chip.devices, []
    if math.isfinite(cost.flops):
        lines.append(
            f"Arithmetic  {cost.flops / 1e12:.2f} TFLOP: {_ms(seconds.compute)} at "
            f"{chip.flops * share / 1e12:.0f} TFLOP/s"
        )
    if not check.topology.stand_in:
        lines.append(
            f"Memory      {cost.traffic / 1e9:.1f} GB read and written: {_ms(seconds.traffic)} at "
            f"{chip.bandwidth * share / 1e9:,.0f} GB/s"
        )
    else:  # a CPU fuses otherwise
        seconds = dataclasses.replace(seconds, traffic=math.nan)
    lines.append(
        f"Links       {cost.received / 1e6:.0f} MB arrive: {_ms(seconds.links)} at "
        f"{chip.links * share / 1e9:.0f} GB/s"
    )
    least = seconds.least
    batch = check.resolved.batch_size
    hours = check.steps * least / 3600
    lines.append(
        f"A step takes at least {_ms(least)}, for its {seconds.bound} ({batch / least:,.0f} "
        f"images/s); {check.resolved.epochs:,} epochs are {check.steps:,} steps: at least "
        f"{_hours(hours)}, {hours * check.topology.num_chips:,.1f} chip-hours. These are published "
        "peaks: a real step takes longer."
    )
    return lines


def _transfers(check: Check, cost: StepCost) -> list[str]:
    """Return a line for each kind of transfer, the largest first."""
    count: Counter[tuple[str, str, str, str]] = Counter()
    size: dict[tuple[str, str, str, str], float] = {}
    for transfer in cost.collectives:
        kind = transfer.kind, transfer.stage, transfer.operation, transfer.dtype
        count[kind] += transfer.times
        size[kind] = size.get(kind, 0) + transfer.bytes * transfer.times
    lines = []
    for kind, total in sorted(size.items(), key=lambda item: -item[1]):
        name, stage, operation, dtype = kind
        where = f"{stage} pass" if stage != "other" else "step"
        lines.append(
            f"  {name} x {count[kind]}: {total / 2**20:.2f} MiB of {dtype}, {where}, {operation}"
        )
    if not lines:
        return ["Nothing is sent between devices."]
    ratio = check.traffic_ratio
    return [
        f"Between devices, {ratio:.2f} times the bytes that gradients (and, with FSDP, parameters) "
        "must move:",
        *lines,
    ]


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"


def _hours(hours: float) -> str:
    return f"{hours / 24:.1f} days" if hours >= 48 else duration(3600 * hours)


# --- The table of backbones --------------------------------------------------------------------


def write_table(options: argparse.Namespace, rest: list[str], base: TrainConfig) -> int:
    """Check the paper's backbones with one optimizer, and write a table in Markdown.

    A backbone that was checked before, by the same version and command, is taken from the lines
    beside the table.

    Returns:
      The exit code: 0 if every backbone fits as it was asked for.
    """
    path = Path(options.table)
    lines_path = path.with_suffix(".jsonl")
    names = paper.backbones()
    known = {row["backbone"]: row for row in _known_rows(lines_path, _question(options, rest))}
    left = [name for name in names if name not in known]
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(options.jobs, context) as pool:
        check = functools.partial(table_row, options.topology, tuple(rest), options.no_search)
        futures = {pool.submit(check, name): name for name in left}
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            row = future.result()
            known[row["backbone"]] = row
            with lines_path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"question": _question(options, rest), **row}) + "\n")
            write_atomically(path, _text(options, base, known))
            spent = time.monotonic() - started
            remaining = duration(spent / done * (len(left) - done))
            said = f"{done}/{len(left)}  {duration(spent)}  {remaining} left"
            console.print(f"{said}  {row['backbone']}: {row['verdict']}", markup=False)
    write_atomically(path, _text(options, base, known))
    console.print(str(path), markup=False)
    return 0 if all(row["verdict"] == "fits" for row in known.values()) else DOES_NOT_FIT


def _question(options: argparse.Namespace, rest: list[str]) -> str:
    """Return what a row answers."""
    return json.dumps([__version__, jax.__version__, options.topology, rest])


def _known_rows(path: Path, question: str) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    return [row for row in read_jsonl(path) if row.get("question") == question]


def table_row(topology: str, rest: tuple[str, ...], no_search: bool, model: str) -> dict[str, Any]:
    """Return a row of the table; runs in a process of its own.

    Args:
      topology: name of the chips.
      rest: arguments of the run.
      no_search: whether to try no other setting.
      model: the backbone.
    """
    jax.config.update("jax_platforms", "cpu")
    opened = open_topology(topology)
    config = dataclasses.replace(run_config(list(rest)), model=model)
    check = compile_run(config, opened)
    verdict = "fits"
    if check.cost is None:
        assert check.shortage is not None
        verdict = _shortage(check.shortage)
        found = None if no_search else find_setting(config, opened, check)
        if found is None:
            return {"backbone": model, "verdict": verdict}
        check, verdict = found, f"{verdict} Fits with{_settings(found.config)}."
    cost = check.cost
    assert cost is not None
    seconds = cost.seconds(opened.chip)
    sent: dict[str, float] = {}
    for transfer in cost.collectives:
        name = f"{transfer.kind} {transfer.dtype} ({transfer.stage}, {transfer.operation})"
        sent[name] = sent.get(name, 0) + transfer.bytes * transfer.times
    return {
        "backbone": model,
        "verdict": verdict,
        "memory": cost.memory,
        "flops": cost.flops,
        "traffic": cost.traffic,
        "least": seconds.least,
        "bound": seconds.bound,
        "images_per_second": check.resolved.batch_size / seconds.least,
        "hours": check.least_hours,
        "chip_hours": check.least_hours * opened.num_chips,
        "received": cost.received,
        "ratio": check.traffic_ratio,
        "sent": dict(sorted(sent.items(), key=lambda item: -item[1])),
        "seconds": check.seconds,
    }


def _text(options: argparse.Namespace, base: TrainConfig, known: dict[str, dict[str, Any]]) -> str:
    """Return the table of what is known, in the paper's order."""
    rows = [known[name] for name in paper.backbones() if name in known]
    batch = f"{base.batch_size:,}" if base.batch_size else "the recipe's batch"
    spent = duration(sum(row.get("seconds", 0) for row in rows))
    title = (
        f"Training steps with {base.opt}, global batch {batch}, compiled for {options.topology} by "
        f"bocb_jax {__version__} with JAX {jax.__version__}; {spent} of compiling. Times are the "
        "least at published peaks."
    )
    return markdown(title, rows)
