"""Which device holds what: data parallel over the whole mesh, the state split over one axis of it.

Models carry no sharding. A rule that looks at shapes alone places parameters and any optimizer's
state alike (as big_vision's `fsdp` does), and the compiler does the rest.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bocb_jax.errors import UserError

SMALLEST_SPLIT = 2**14  # elements; splitting less costs more in messages than it saves in memory


def make_mesh(fsdp: int = 1, devices: int | None = None) -> Mesh:
    """A ('data', 'fsdp') mesh.

    Args:
      fsdp: how many devices share one copy of the state.
      devices: how many devices to use, the first ones; None for all.
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


def replicated(mesh: Mesh) -> NamedSharding:
    """The same values on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis split over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def state_sharding(mesh: Mesh, abstract: Any, smallest: int = SMALLEST_SPLIT) -> Any:
    """A tree of shardings for a tree of shapes: parameters, statistics, optimizer state, averages.

    The largest axis that the 'fsdp' axis of the mesh divides is split; arrays of fewer than
    `smallest` elements are replicated.
    """
    parts = mesh.shape["fsdp"]

    def rule(leaf) -> NamedSharding:
        divisible = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
        if parts == 1 or not divisible or np.prod(leaf.shape) < smallest:
            return replicated(mesh)
        largest = max(divisible, key=lambda axis: leaf.shape[axis])
        spec = [None] * len(leaf.shape)
        spec[largest] = "fsdp"
        return NamedSharding(mesh, PartitionSpec(*spec))

    return jax.tree.map(rule, abstract)


def members_are_split(mesh: Mesh, members: int) -> bool:
    """Whether each device trains its own share of the members of a population.

    Otherwise each trains its share of every member's batch, as with a run alone.
    """
    return mesh.size > 1 and mesh.shape["fsdp"] == 1 and members % mesh.size == 0


def along_members(sharding: NamedSharding) -> NamedSharding:
    """The same for an array with a leading member axis, which every device holds whole."""
    return NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec))


def check_batch(batch_size: int, mesh: Mesh, accumulate: int = 1) -> None:
    """Every device, and every process, must get the same number of examples."""
    if batch_size % (mesh.size * accumulate):
        parts = f"{mesh.size} devices" + (f" x {accumulate} parts" if accumulate > 1 else "")
        nearest = max(1, round(batch_size / (mesh.size * accumulate))) * mesh.size * accumulate
        raise UserError(
            f"batch_size is {batch_size}, which cannot be divided evenly among {parts}; "
            f"{nearest} can."
        )
