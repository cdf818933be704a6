"""The compiled functions of one run, and where its state lives.

Learning rate, weight decay and seed are inputs, so one program serves all their values. What does
not depend on the optimizer is compiled once for a net: `CompiledPasses`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bocb_jax.compiler_options import init_compiler_options
from bocb_jax.engine.passes import Gradient, Passes, weights_of
from bocb_jax.engine.sharding import batch_sharding, platform_of, replicated, state_sharding
from bocb_jax.engine.state import Batch, Metrics, Params, TrainState
from bocb_jax.engine.steps import Steps


class CompiledPasses:
    """The methods of `Passes`, jitted with their shardings; each is compiled at its first call.

    Args:
      passes: the functions.
      mesh: the devices.

    Attributes:
      abstract_weights: shapes and types of "params" and "model_state".
      batch_sharding: where batches are put.
      update_batch_stats: None for a net without BatchNorm.
    """

    def __init__(self, passes: Passes, mesh: Mesh):
        self.passes, self.mesh = passes, mesh
        self.batch_sharding = batches = batch_sharding(mesh)
        everywhere: Any = replicated(mesh)
        self.abstract_weights = weights_of(passes.abstract_model)
        weights = state_sharding(mesh, self.abstract_weights)
        params, model_state = weights["params"], weights["model_state"]
        self.init_weights = jax.jit(
            passes.init_weights,
            out_shardings=weights,
            compiler_options=init_compiler_options(platform_of(mesh)),
        )
        self.prepare = jax.jit(
            passes.prepare, in_shardings=(everywhere, batches, everywhere), out_shardings=batches
        )
        self.gradient_step = jax.jit(
            passes.gradient_step,
            in_shardings=(params, model_state, everywhere, batches, everywhere),
            out_shardings=Gradient(params, everywhere, everywhere, everywhere, model_state),
        )
        self.evaluate = jax.jit(
            passes.evaluate, in_shardings=(params, model_state, batches), out_shardings=everywhere
        )
        self.update_batch_stats: Callable[..., Params] | None = None
        if passes.has_batch_stats:
            self.update_batch_stats = jax.jit(
                passes.update_batch_stats,
                in_shardings=(params, model_state, batches, everywhere),
                out_shardings=model_state,
            )


class TwoPrograms:
    """A training step as two programs: the gradient, which all optimizers share, and the update.

    The gradient takes long to compile and the update does not, so a study of many optimizers
    compiles each net once.

    Args:
      gradient: `Passes.gradient_step`, jitted.
      update: `Steps.update_step`, jitted; the state and the gradient are donated.
    """

    def __init__(self, gradient: Any, update: Any):
        self._gradient, self._update = gradient, update

    def __call__(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        found = self._gradient(state.params, state.model_state, state.step, batch, key)
        return self._update(state, found, key, batch_size=len(batch["image"]))

    def lower(self, state: TrainState, batch: Batch, key: jax.Array) -> "_Lowered":
        """Return both programs, traced for these shapes."""
        arguments = state.params, state.model_state, state.step, batch, key
        found = jax.eval_shape(self._gradient, *arguments)
        size = batch["image"].shape[0]
        return _Lowered(
            self._gradient.lower(*arguments),
            self._update.lower(state, found, key, batch_size=size),
        )


@dataclasses.dataclass(frozen=True)
class _Lowered:
    gradient: jax.stages.Lowered
    update: jax.stages.Lowered

    def compile(self) -> TwoPrograms:
        """Return both programs, compiled."""
        gradient, update = self.gradient.compile(), self.update.compile()

        def update_step(state: TrainState, found: Gradient, key: jax.Array, batch_size: int) -> Any:
            del batch_size  # it was compiled in
            return update(state, found, key)

        return TwoPrograms(gradient, update_step)


class Program:
    """The functions of a run, jitted with their shardings; each is compiled at its first call.

    Args:
      steps: the functions.
      mesh: the devices.
      passes: those of the net, shared with other optimizers; None to compile them here.

    Attributes:
      whole_step: `Steps.train_step` as one program; the state is donated.
      train_step: the same, on CPUs as `TwoPrograms` unless the optimizer asks for gradients.
      weights: `Steps.weights`.
      abstract_state: shapes, types and shardings of the state.
      batch_sharding: where batches are put.
    """

    def __init__(self, steps: Steps, mesh: Mesh, passes: CompiledPasses | None = None):
        self.steps, self.mesh = steps, mesh
        self.passes = passes = passes or CompiledPasses(steps.passes, mesh)
        self.eval_params_differ = steps.eval_params_differ
        self.has_batch_stats = steps.passes.has_batch_stats
        self.batch_sharding = batches = passes.batch_sharding
        everywhere = replicated(mesh)
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        shapes = jax.eval_shape(steps.init_state, passes.abstract_weights, scalar, scalar)
        states = state_sharding(mesh, shapes)
        self.abstract_state: TrainState = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            shapes,
            states,
        )
        self._init_state = jax.jit(steps.init_state, out_shardings=states, donate_argnums=0)
        self.whole_step = jax.jit(
            steps.train_step,
            donate_argnums=0,
            in_shardings=(states, batches, everywhere),
            out_shardings=(states, everywhere),
        )
        self.train_step: Any = self.whole_step
        if steps.passes.platform == "cpu" and not steps.asks_for_gradients:
            update = jax.jit(
                steps.update_step,
                donate_argnums=0,
                static_argnames="batch_size",
                out_shardings=(states, everywhere),
            )
            self.train_step = TwoPrograms(passes.gradient_step, update)
        self._eval_params = jax.jit(steps.eval_params, out_shardings=states.params)
        self.weights = jax.jit(steps.weights)

    def eval_step(self, state: TrainState, batch: Batch) -> Metrics:
        """Return what the host needs to score a batch, see `Steps.eval_step`."""
        return self.passes.evaluate(self._evaluated(state), state.model_state, batch)

    def update_batch_stats(
        self, state: TrainState, model_state: Params, batch: Batch, key: jax.Array
    ) -> Params:
        """Return the running statistics after one more batch, see `Steps.update_batch_stats`.

        The net must have BatchNorm.
        """
        assert self.passes.update_batch_stats is not None
        return self.passes.update_batch_stats(self._evaluated(state), model_state, batch, key)

    def _evaluated(self, state: TrainState) -> Params:
        return self._eval_params(state) if self.eval_params_differ else state.params

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
            weights = self.passes.init_weights(key)
        return self._init_state(weights, learning_rate, weight_decay)

    @property
    def num_params(self) -> int:
        """Number of learned values."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.abstract_state.params))
