"""Shardings: batches are split over the whole mesh, the state over one of its axes.

Models carry no sharding. A rule that looks only at shapes places parameters and the state of any
optimizer (as big_vision's `fsdp` does), and the compiler does the rest.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bocb_jax.errors import UserError

SMALLEST_SPLIT = 2**14  # elements; splitting less costs more communication than it saves memory


def make_mesh(fsdp: int = 1, devices: int | None = None) -> Mesh:
    """Return a ('data', 'fsdp') mesh.

    Args:
      fsdp: how many devices share one copy of the state.
      devices: how many devices to use, the first ones; None for all.

    Raises:
      UserError: there are fewer devices, or `fsdp` does not divide them.
    """
    available = jax.devices()
    count = len(available) if devices is None else devices
    if count > len(available):
        raise UserError(f"parallel.devices is {count}, but there are {len(available)} devices.")
    if count % fsdp:
        raise UserError(f"parallel.fsdp is {fsdp}, which does not divide the {count} devices.")
    axis_types = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh(
        (count // fsdp, fsdp), ("data", "fsdp"), axis_types=axis_types, devices=available[:count]
    )


def platform_of(mesh: Mesh) -> str:
    """Return the platform of the devices: "cpu", "gpu" or "tpu"."""
    return mesh.devices.flat[0].platform


def replicated(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array that every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Return the sharding of an array whose leading axis is split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, abstract: Any, smallest: int = SMALLEST_SPLIT) -> Any:
    """Return the shardings of a state, from its shapes.

    The largest axis that the mesh's 'fsdp' axis divides is split. Arrays with fewer than `smallest`
    elements are replicated.
    """
    parts = mesh.shape["fsdp"]

    def rule(leaf: jax.ShapeDtypeStruct) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not divisible or np.prod(leaf.shape) < smallest:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: leaf.shape[axis])
        spec: list[str | None] = [None] * len(leaf.shape)
        spec[largest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, abstract)


def members_are_split(mesh: Mesh, members: int) -> bool:
    """Whether each device trains its own members of a population.

    If not, each device trains its share of every member's batch, as for a single run.
    """
    return mesh.size > 1 and mesh.shape["fsdp"] == 1 and members % mesh.size == 0


def along_members(sharding: NamedSharding) -> NamedSharding:
    """Return the sharding for arrays with a leading member axis, which is not split."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Check that every device gets the same number of examples of every part.

    Raises:
      UserError: it names the nearest batch size that divides.
    """
    if batch_size % (mesh.size * accumulate):
        parts = f"{mesh.size} devices" + (f" x {accumulate} parts" if accumulate > 1 else "")
        nearest = max(1, round(batch_size / (mesh.size * accumulate))) * mesh.size * accumulate
        raise UserError(
            f"batch_size is {batch_size}, which cannot be divided evenly among {parts}; "
            f"{nearest} can."
        )
