"""The state of a run: all that a step changes, and nothing else."""

import dataclasses
from typing import Any

import jax


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree. There is no generator in it: a step's randomness is a function of (seed, step)."""

    step: jax.Array  # () int32: steps taken
    params: Any  # nested dict of float32 arrays
    model_state: Any  # nested dict of what is not learned: BatchNorm's running statistics
    opt_state: Any
    ema: Any  # moving average of `params`, or None
