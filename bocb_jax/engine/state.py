"""The state of a run, and names for the trees that the engine handles."""

import dataclasses
from typing import Any, TypeAlias

import jax

Params: TypeAlias = dict[str, Any]  # a nested dict of arrays
Batch: TypeAlias = dict[str, jax.Array]  # "image", what the task needs and, to evaluate, "weight"
Metrics: TypeAlias = dict[str, jax.Array]  # name -> scalar


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a training step changes, as a pytree.

    It holds no random key: the randomness of a step is a function of (seed, step).
    """

    step: jax.Array  # () int32: steps taken
    params: Params  # float32
    model_state: Params  # what is not learned: BatchNorm's running statistics
    opt_state: Any
    ema: Any  # moving average of `params`, or None
