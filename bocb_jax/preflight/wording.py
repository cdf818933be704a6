"""What a person reads of a check."""

import math
from collections import Counter

from bocb_jax.config import TrainConfig
from bocb_jax.console import duration
from bocb_jax.preflight.check import Check
from bocb_jax.roofline.chips import GIB
from bocb_jax.roofline.cost import OutOfMemory, StepCost
from bocb_jax.roofline.topology import Topology


def described(check: Check) -> str:
    """Return the lines about a run: memory, arithmetic, transfers, times and the verdict."""
    config, resolved = check.config, check.resolved
    lines = [
        f"{config.model} + {config.opt} on {check.topology.name} ({chips_text(check.topology)}), "
        f"batch {resolved.batch_size:,}, {resolved.precision}, "
        f"{resolved.image_size} px{settings(config)}"
    ]
    if check.cost is None:
        assert check.shortage is not None
        return "\n".join([*lines, shortage_text(check.shortage)])
    lines += _memory(check.cost, check.topology) + _times(check, check.cost)
    lines += _transfers(check, check.cost)
    verdict = "It fits."
    if check.topology.stand_in:
        verdict += (
            " An estimate: compiled for CPUs with the same shardings, which hold some arrays "
            "in float32 that a GPU holds in bfloat16."
        )
    return "\n".join([*lines, verdict])


def settings(config: TrainConfig) -> str:
    """Return the flags that decide how a step is split, where they are not the default."""
    flags = ""
    if config.step.accumulate > 1:
        flags += f" --step.accumulate {config.step.accumulate}"
    if config.parallel.fsdp > 1:
        flags += f" --parallel.fsdp {config.parallel.fsdp}"
    return flags


def shortage_text(shortage: OutOfMemory) -> str:
    """Return the sentence about a run that does not fit."""
    available = f"{shortage.available / GIB:.2f} GiB"
    if not math.isfinite(shortage.needed):
        return f"It does not fit into the {available} of a device."
    return f"It does not fit: it needs {shortage.needed / GIB:.1f} GiB a device, of {available}."


def hours_text(hours: float) -> str:
    """Return a time: in days from two days on, else in hours, minutes and seconds."""
    return f"{hours / 24:,.1f} days" if hours >= 48 else duration(3600 * hours)


def chips_text(topology: Topology) -> str:
    """Return how many chips are used."""
    return f"{topology.num_chips} chip" + ("s" if topology.num_chips > 1 else "")


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


def _times(check: Check, cost: StepCost) -> list[str]:
    chip = check.topology.chip
    seconds, share = check.least, 1 / chip.devices
    lines = []
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
    lines.append(
        f"Links       {cost.received / 1e6:.0f} MB arrive: {_ms(seconds.links)} at "
        f"{chip.links * share / 1e9:.0f} GB/s"
    )
    least, hours = seconds.least, check.least_hours
    batch = check.resolved.batch_size
    lines.append(
        f"A step takes at least {_ms(least)}, for its {seconds.bound} ({batch / least:,.0f} "
        f"images/s); {check.resolved.epochs:,} epochs are {check.steps:,} steps: at least "
        f"{hours_text(hours)}, {hours * check.topology.num_chips:,.1f} chip-hours. These are "
        "published peaks: a real step takes longer."
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
        _sums(check),
    ]


def _sums(check: Check) -> str:
    """Return in which type gradients are summed, and how to have the other one."""
    said = f"Gradients are summed over devices in {check.summed_in}"
    if check.resolved.precision == "float32":
        return f"{said}."
    if check.config.step.reduce_dtype == "float32":
        return f"{said}, as step.reduce_dtype asks for."
    if check.summed_in == "float32":
        return f"{said}, in which those of the parts of a batch are added up."
    return (
        f"{said}, in which the layers compute them (the default: half the bytes). "
        "--step.reduce-dtype float32 sums in float32."
    )


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms"
