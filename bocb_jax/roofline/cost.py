"""Compile a training step for devices that are not here, and say what it needs there."""

import dataclasses
import math
import re
from typing import Any

import jax
import numpy as np

from bocb_jax.roofline import hlo
from bocb_jax.roofline.chips import Chip
from bocb_jax.roofline.topology import Topology

_UNITS = {"B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
# XLA's sentences for TPUs: of a whole program, and of its temporaries alone.
_USED = re.compile(r"Used ([\d.]+)([BKMGT]?) of ([\d.]+)([BKMGT]?) hbm")
_TEMPORARIES = re.compile(
    r"temporaries \(([\d.]+)([BKMGT]?)\) exceeds available HBM \(([\d.]+)([BKMGT]?)\)"
)


class OutOfMemory(Exception):
    """A program that does not fit.

    Attributes:
      needed: bytes on each device; NaN where the compiler does not say.
      available: bytes on each device.
    """

    def __init__(self, needed: float, available: float):
        super().__init__(needed, available)
        self.needed, self.available = needed, available


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a training step needs on each device.

    Attributes:
      state: bytes of parameters, optimizer state and running statistics.
      batch: bytes of images and labels.
      temporaries: bytes of activations, gradients and workspace, at their peak.
      code: bytes of the program.
      flops: operations as XLA counts them; NaN where it does not.
      traffic: bytes between main memory and cores.
      collectives: transfers between devices.
    """

    state: float
    batch: float
    temporaries: float
    code: float
    flops: float
    traffic: float
    collectives: tuple[hlo.Collective, ...]

    @property
    def memory(self) -> float:
        """Bytes in all."""
        return self.state + self.batch + self.temporaries + self.code

    @property
    def received(self) -> float:
        """Bytes that arrive from other devices."""
        return sum(transfer.received for transfer in self.collectives)

    def seconds(self, chip: Chip) -> "Seconds":
        """Return the time of a step at the published peaks of a chip."""
        share = 1 / chip.devices
        return Seconds(
            self.flops / (chip.flops * share),
            self.traffic / (chip.bandwidth * share),
            self.received / (chip.links * share),
        )


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Time of a step by what takes it, each at its peak rate.

    Attributes:
      compute: of the arithmetic.
      traffic: of the main memory.
      links: between the chips.
    """

    compute: float
    traffic: float
    links: float

    @property
    def least(self) -> float:
        """Everything overlaps."""
        return float(np.nanmax([self.compute, self.traffic, self.links]))

    @property
    def bound(self) -> str:
        """What takes longest."""
        named = {"arithmetic": self.compute, "memory": self.traffic, "links": self.links}
        return max(named, key=lambda name: np.nan_to_num(named[name]))


def compile_step(
    step: jax.stages.Wrapped, state: Any, batch: Any, key: Any, topology: Topology
) -> StepCost:
    """Compile a jitted training step for a topology.

    Args:
      step: (state, batch, key) -> (state, metrics), jitted with its shardings.
      state: shapes, types and shardings; donated.
      batch: likewise.
      key: likewise, of the run.
      topology: whose devices the shardings name.

    Raises:
      OutOfMemory: the compiler finds that it does not fit.
    """
    platform = topology.devices[0].platform
    lowered = step.trace(state, batch, key).lower(lowering_platforms=(platform,))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) and "Ran out of memory" not in str(error):
            raise
        raise out_of_memory(str(error), topology, device_bytes((state, batch))) from error
    memory, text = compiled.memory_analysis(), compiled.as_text()
    costs = compiled.cost_analysis() or {}
    found = StepCost(
        state=device_bytes(state),
        batch=device_bytes(batch),
        temporaries=memory.temp_size_in_bytes
        + max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0),
        code=memory.generated_code_size_in_bytes,
        flops=float(costs.get("flops", math.nan)),
        traffic=hlo.memory_bytes(text),
        collectives=tuple(hlo.collectives(text)),
    )
    available = topology.chip.memory / topology.chip.devices
    if found.memory > available:  # stand-ins have the memory of the host
        raise OutOfMemory(found.memory, available)
    return found


def out_of_memory(message: str, topology: Topology, arguments: float) -> OutOfMemory:
    """Return what XLA says about memory in an error message.

    Args:
      message: of the error.
      topology: the chips.
      arguments: bytes of state and batch, which some messages leave out.
    """
    for pattern, more in ((_USED, 0.0), (_TEMPORARIES, arguments)):
        found = pattern.search(message)
        if found:
            needed, limit = (float(found[i]) * _UNITS[found[i + 1] or "B"] for i in (1, 3))
            return OutOfMemory(needed + more, limit)
    return OutOfMemory(math.nan, topology.chip.memory / topology.chip.devices)


def device_bytes(tree: Any) -> float:
    """Return the bytes of a tree of abstract arrays on one of the devices of their shardings."""
    return float(
        sum(
            math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(tree)
        )
    )


def least_received(
    num_params: int, devices: int, fsdp: int, *, gathered: float, summed: float
) -> float:
    """Return the bytes that must arrive at a device in a step.

    The gradients are summed over all devices once; where `fsdp` devices share a state, parameters
    are gathered for the forward and for the backward pass, and gradients are scattered.

    Args:
      num_params: learned values.
      devices: in all.
      fsdp: that share one copy of the state.
      gathered: bytes of a parameter as it is sent.
      summed: bytes of a value of the gradient as it is sent.
    """
    among, between = 1 - 1 / fsdp, 1 - fsdp / devices
    return num_params * ((2 * gathered + summed) * among + 2 * summed * between / fsdp)
