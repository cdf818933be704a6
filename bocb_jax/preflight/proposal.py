"""Other settings for a run that does not fit: each is compiled, and the first that fits taken."""

import dataclasses
import math
from collections.abc import Iterator

from bocb_jax.config import TrainConfig
from bocb_jax.console import console
from bocb_jax.preflight.check import Check, compile_run
from bocb_jax.preflight.wording import settings, shortage_text
from bocb_jax.roofline.topology import Topology

MOST_TRIES = 6  # settings that are compiled where the first does not fit
MARGIN = 0.95  # of the memory that a setting is chosen to fill at most


def find_setting(check: Check, topology: Topology) -> Check | None:
    """Compile other settings of a run that does not fit, until one does.

    The batch is kept: first its gradient is accumulated over parts, then the state is split over
    devices. Each that is tried is said.

    Args:
      check: of the run as it was asked for.
      topology: the chips.

    Returns:
      The first that fits; None if none did.
    """
    for tried, changed in enumerate(_candidates(check)):
        if tried == MOST_TRIES:
            break
        console.print(f"Trying{settings(changed)} ...", markup=False)
        found = compile_run(changed, topology)
        if found.cost is not None:
            return found
        assert found.shortage is not None
        console.print(shortage_text(found.shortage), markup=False)
    console.print("No setting that was tried fits; give a smaller batch or more chips.")
    return None


def _candidates(check: Check) -> Iterator[TrainConfig]:
    """Yield settings, the most likely to fit with the least change first."""
    config, batch = check.config, check.resolved.batch_size
    devices = len(check.topology.devices)
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
