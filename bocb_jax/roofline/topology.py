"""Devices that a program can be compiled for without having them."""

import contextlib
import dataclasses
import importlib.util
import math
import os
import re
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh

from bocb_jax.errors import UserError
from bocb_jax.roofline.chips import CHIPS, Chip

MOST_DEVICES = 16_384


@dataclasses.dataclass(frozen=True)
class Topology:
    """Chips of one kind, connected.

    Attributes:
      name: "v5e:4x4", or "h100:8".
      chip: their kind.
      devices: as JAX sees them. For GPUs, devices of the CPU stand in, since nothing compiles for
        a GPU without one.
    """

    name: str
    chip: Chip
    devices: tuple[jax.Device, ...]

    @property
    def stand_in(self) -> bool:
        """Whether programs are compiled for other devices than the chip's."""
        return self.devices[0].platform != self.chip.platform

    @property
    def num_chips(self) -> int:
        """Number of chips."""
        return math.ceil(len(self.devices) / self.chip.devices)

    def first(self, devices: int | None) -> "Topology":
        """Return the first devices alone; None for all.

        Raises:
          UserError: there are fewer.
        """
        if devices is not None and devices > len(self.devices):
            raise UserError(
                f"parallel.devices is {devices}, but {self.name} has {len(self.devices)} devices."
            )
        return dataclasses.replace(self, devices=self.devices[:devices])

    def mesh(self, fsdp: int = 1) -> Mesh:
        """Return the ('data', 'fsdp') mesh of a run on all devices.

        Raises:
          UserError: `fsdp` does not divide them.
        """
        if len(self.devices) % fsdp:
            raise UserError(
                f"parallel.fsdp is {fsdp}, which does not divide the {len(self.devices)} devices "
                f"of {self.name}."
            )
        grid = np.array(self.devices).reshape(-1, fsdp)
        return Mesh(grid, ("data", "fsdp"), axis_types=(AxisType.Auto, AxisType.Auto))


def open_topology(name: str) -> Topology:
    """Return the devices of a topology: "v5e:16x16", "v5p:4x4x4", or "h100:8" for GPUs of a host.

    Call it before anything else asks JAX for its devices.

    Raises:
      UserError: there is no such chip or slice, or libtpu is missing.
    """
    found = re.fullmatch(r"([a-z0-9]+):(\d{1,5}(?:x\d{1,5})*)", name.strip().lower())
    if found is None or found[1] not in CHIPS:
        raise UserError(
            f"There is no topology {name!r}. Give a chip ({', '.join(CHIPS)}) and its slice, such "
            "as v5e:16x16, v5p:4x4x4 or h100:8."
        )
    chip, count = CHIPS[found[1]], math.prod(map(int, found[2].split("x")))
    if not 0 < count * chip.devices <= MOST_DEVICES:
        raise UserError(f"The topology {name!r} has {count:,} chips; give 1 to {MOST_DEVICES:,}.")
    if chip.platform == "tpu":
        return Topology(name, chip, _tpu_devices(chip, found[2], name))
    return Topology(name, chip, _stand_ins(count * chip.devices))


def _tpu_devices(chip: Chip, slice_: str, name: str) -> tuple[jax.Device, ...]:
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            "Compiling for a TPU needs the package libtpu; install it: pip install "
            "'bocb-jax[preflight]'. No TPU is needed."
        )
    # Nothing is run on a TPU: neither the lock on it nor the metadata server is needed.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    parts = {}
    if slice_ in ("1", "1x1"):  # a chip alone is part of a host
        slice_, parts = "1x1", {"chips_per_host_bounds": (1, 1, 1)}
    try:
        with _silent():
            found = topologies.get_topology_desc(f"{chip.name}:{slice_}", "tpu", **parts)
    except Exception as error:  # XLA's, of no documented class
        reason = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UserError(f"There is no slice {name}: {reason[:300]}") from error
    return tuple(found.devices)


def _stand_ins(count: int) -> tuple[jax.Device, ...]:
    if getattr(jax.config, "jax_num_cpu_devices") < count:  # noqa: B009  (no stub has it)
        with contextlib.suppress(RuntimeError):  # the backend is in use already
            jax.config.update("jax_num_cpu_devices", count)
    found = jax.devices("cpu")
    if len(found) < count:
        raise UserError(f"This process has {len(found)} devices of the CPU already; start it anew.")
    return tuple(found[:count])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Drop what libraries write to standard error: libtpu looks for a TPU and is loud about it."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as sink:
        os.dup2(sink.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
