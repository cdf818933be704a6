"""The compiled functions of one run, and where its state lives.

Learning rate, weight decay and seed are inputs, so one program serves all their values.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bocb_jax.engine.sharding import batch_sharding, platform_of, replicated, state_sharding
from bocb_jax.engine.state import Params, TrainState
from bocb_jax.engine.steps import Steps, weights_of


class Program:
    """The methods of `Steps`, jitted with their shardings; each is compiled at its first call.

    Args:
      steps: the functions.
      mesh: the devices.

    Attributes:
      prepare: `Steps.prepare`.
      train_step: `Steps.train_step`; the state is donated.
      eval_step: `Steps.eval_step`.
      weights: `Steps.weights`.
      update_batch_stats: `Steps.update_batch_stats`; None for a backbone without BatchNorm.
      abstract_state: shapes, types and shardings of the state.
      batch_sharding: where batches are put.
    """

    def __init__(self, steps: Steps, mesh: Mesh):
        self.steps, self.mesh = steps, mesh
        self.eval_params_differ = steps.eval_params_differ
        self.batch_sharding = batches = batch_sharding(mesh)
        everywhere = replicated(mesh)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        weights = weights_of(steps.abstract_model)
        shapes = jax.eval_shape(steps.init_state, weights, scalar, scalar)
        states = state_sharding(mesh, shapes)
        self.abstract_state: TrainState = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            states,
        )
        self._init_weights = jax.jit(
            steps.init_weights,
            out_shardings=state_sharding(mesh, weights),
            compiler_options=init_compiler_options(platform_of(mesh)),
        )
        self._init_state = jax.jit(steps.init_state, out_shardings=states, donate_argnums=0)
        self.prepare = jax.jit(
            steps.prepare, in_shardings=(everywhere, batches, everywhere), out_shardings=batches
        )
        self.train_step = jax.jit(
            steps.train_step,
            donate_argnums=0,
            in_shardings=(states, batches, everywhere),
            out_shardings=(states, everywhere),
        )
        self.eval_step = jax.jit(
            steps.eval_step, in_shardings=(states, batches), out_shardings=everywhere
        )
        self.weights = jax.jit(steps.weights)
        self.update_batch_stats: Callable[..., Params] | None = None
        if steps.has_batch_stats:
            self.update_batch_stats = jax.jit(
                steps.update_batch_stats,
                in_shardings=(states, states.model_state, batches, everywhere),
                out_shardings=states.model_state,
            )

    def init(
        self,
        key: jax.Array,
        learning_rate: float,
        weight_decay: float,
        weights: Params | None = None,
    ) -> TrainState:
        """Return the state before the first step.

        Args:
          key: of the run.
          learning_rate: the peak of the schedule.
          weight_decay: of the optimizer.
          weights: "params" and "model_state" to start from, which are donated; None for random
            ones.
        """
        if weights is None:
            weights = self._init_weights(key)
        return self._init_state(weights, learning_rate, weight_decay)

    @property
    def num_params(self) -> int:
        """Number of learned values."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))


def init_compiler_options(platform: str) -> dict[str, Any] | None:
    """Return the compiler options of the program that draws random weights.

    On CPUs it takes longer to compile than a training step, and it runs once: LLVM need not
    optimize it.
    """
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else None
