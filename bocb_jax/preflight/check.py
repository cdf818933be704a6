"""Compile the training step of a run for devices that are not here."""

import contextlib
import dataclasses
import math
import os
import time
from typing import Any

import jax
import jax.numpy as jnp

from bocb_jax.build import checked_passes, checked_steps, program_spec
from bocb_jax.config import TrainConfig
from bocb_jax.engine.program import Program
from bocb_jax.engine.sharding import batch_sharding, check_batch, make_mesh, replicated
from bocb_jax.models import platform
from bocb_jax.resolve import ResolvedConfig
from bocb_jax.roofline.cost import (
    OutOfMemory,
    Seconds,
    StepCost,
    compile_step,
    device_bytes,
    least_received,
)
from bocb_jax.roofline.topology import Topology
from bocb_jax.tasks.kinds import KINDS, RunData, epoch_steps


def use_cpu() -> None:
    """Keep JAX from taking accelerators of this machine; call it before JAX has devices."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    jax.config.update("jax_platforms", "cpu")


@dataclasses.dataclass(frozen=True)
class Check:
    """What the compiler says about a run.

    Attributes:
      config: of the run.
      resolved: what the recipe fills in.
      topology: the chips that the run uses.
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

    @property
    def least(self) -> Seconds:
        """Time of a step at the published peaks of the chip."""
        assert self.cost is not None
        found = self.cost.seconds(self.topology.chip)
        if self.topology.stand_in:  # a CPU fuses otherwise
            return dataclasses.replace(found, traffic=math.nan)
        return found

    @property
    def least_hours(self) -> float:
        """Hours of the run at the published peaks of the chip."""
        return self.steps * self.least.least / 3600

    @property
    def asked_dtype(self) -> str:
        """Type in which gradients are to be summed over devices, as the settings say."""
        chosen = self.config.step.reduce_dtype
        return self.resolved.precision if chosen == "auto" else chosen

    @property
    def summed_in(self) -> str:
        """Type of the largest sum over devices, as it was compiled; stand-ins keep float32."""
        assert self.cost is not None
        sums = [t for t in self.cost.collectives if t.kind in ("all-reduce", "reduce-scatter")]
        if self.topology.stand_in or not sums:
            return self.asked_dtype
        largest = max(sums, key=lambda transfer: transfer.bytes * transfer.times).dtype
        return {"bf16": "bfloat16", "f32": "float32"}.get(largest, largest)

    @property
    def traffic_ratio(self) -> float:
        """Bytes that arrive at a device, over those that must."""
        assert self.cost is not None
        # CPUs send float32 in any case.
        gathered = "float32" if self.topology.stand_in else self.resolved.precision
        summed = "float32" if self.topology.stand_in else self.asked_dtype
        least = least_received(
            self.num_params,
            len(self.topology.devices),
            self.config.parallel.fsdp,
            gathered=jnp.dtype(gathered).itemsize,
            summed=jnp.dtype(summed).itemsize,
        )
        return self.cost.received / least if least else math.nan


def compile_run(config: TrainConfig, topology: Topology) -> Check:
    """Compile the training step of a run for a topology.

    Raises:
      UserError: a setting is wrong.
    """
    kind = KINDS[config.task]
    dataset, has_data = kind.open_or_stand_in(config)
    topology = topology.first(config.parallel.devices)
    started = time.monotonic()
    with platform.tracing_for(topology.chip.platform):
        resolved = kind.resolve(config, dataset)
        data = kind.data(config, resolved, dataset)
        steps = epoch_steps(config, resolved, data, has_data=has_data)
        spec = program_spec(config, resolved, dataset, steps)
        mesh = topology.mesh(config.parallel.fsdp)
        check_batch(resolved.batch_size, mesh, config.step.accumulate)
        program = Program(checked_steps(spec, checked_passes(spec, mesh)), mesh)
        state = program.abstract_state
        if config.task == "classification":
            side = resolved.image_size
            shape = (resolved.batch_size, *(dataset.image_shape or (side, side, 3)))
            batch, key = _batch(
                program, {"image": (shape, jnp.uint8), "label": (shape[:1], jnp.int32)}
            )
        else:
            batch, key = _batch(program, _largest_batch(data))
        cost, shortage = None, None
        try:
            cost = compile_step(program.whole_step, state, batch, key, topology)
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
        steps=resolved.epochs * steps,
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


def _largest_batch(data: RunData) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Return shapes and types of a batch that a run trains on, of its largest images."""
    batches = data.loader(batch_sharding(make_mesh(devices=1))).train(seed=0)
    with contextlib.closing(batches):
        found = {name: (array.shape, array.dtype) for name, array in next(batches).items()}
    shape, dtype = found["image"]
    if data.largest is not None:
        found["image"] = (shape[0], *data.largest, *shape[3:]), dtype
    return found
