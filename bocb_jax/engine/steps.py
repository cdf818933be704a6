"""What a run computes: its first state, a training step, an evaluation; pure functions.

`Program` jits them for one run, `Population` vmaps them over several. `Passes` has what the net
computes, this file what an optimizer makes of it.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from bocb_jax.engine.passes import Gradient, Microbatch, Passes, weights_of
from bocb_jax.engine.state import Batch, Metrics, Params, TrainState


@dataclasses.dataclass(frozen=True)
class Averaging:
    """The moving average of the weights."""

    ema: float | None = None  # decay; None for no average
    ema_warmup: bool = False  # let the decay grow from 0 to `ema`


@dataclasses.dataclass(frozen=True)
class OptimizerFunctions:
    """What a step asks of an optimizer; the engine knows no optimizer by name."""

    # The abstract model -> the transformation. Decay masks need to know the kinds of its layers.
    create: Callable[[nnx.Module], optax.GradientTransformationExtraArgs]
    set_hyperparameters: Callable[..., Any]  # (state, learning_rate=, weight_decay=) -> state
    learning_rate: Callable[[Any], jax.Array]  # state -> the rate of the last update
    # (state, params) -> the parameters to evaluate, for optimizers that train at another point.
    evaluation_parameters: Callable[[Any, Params], Params] | None = None


class ExtraArgs(NamedTuple):
    """What a training step passes to the `update` of an optimizer, beside Optax's arguments."""

    value: jax.Array  # (), the loss
    key: jax.Array  # of the optimizer's random numbers at this step
    batch_size: int  # examples of a gradient
    value_and_grad_fn: Callable[[Params], tuple[jax.Array, Params]]  # params -> loss, gradient
    # (params, key) -> gradient for targets drawn from the model's predictions
    sampled_label_grad_fn: Callable[[Params, jax.Array], Params]


class Steps:
    """The functions of a run, pure and not yet compiled.

    Args:
      passes: of the net.
      optimizer: the functions of the optimizer.
      averaging: of the weights.
    """

    def __init__(
        self, passes: Passes, optimizer: OptimizerFunctions, averaging: Averaging | None = None
    ):
        self.passes = passes
        self.averaging = averaging or Averaging()
        self._functions = optimizer
        self._optimizer = optimizer.create(passes.abstract_model)

    @property
    def eval_params_differ(self) -> bool:
        """Whether the parameters that are evaluated are others than those that are trained."""
        return self.averaging.ema is not None or self._functions.evaluation_parameters is not None

    @functools.cached_property
    def asks_for_gradients(self) -> bool:
        """Whether the optimizer takes gradients beside the one that it is given.

        One update is traced with the initial optimizer state, without the net. What the user's own
        optimizer raises, it raises here, before anything is compiled.
        """
        scalar = jax.ShapeDtypeStruct((), jnp.float32)
        state = jax.eval_shape(
            self.init_state, weights_of(self.passes.abstract_model), scalar, scalar
        )
        asked = []

        def update(params: Params, opt_state: Any) -> Any:
            loss = jnp.zeros(())

            def value_and_grad_fn(params: Params) -> tuple[jax.Array, Params]:
                asked.append("value_and_grad_fn")
                return loss, params

            def sampled_label_grad_fn(params: Params, key: jax.Array) -> Params:
                asked.append("sampled_label_grad_fn")
                return params

            extra_args = ExtraArgs(
                loss, jax.random.key(0), 1, value_and_grad_fn, sampled_label_grad_fn
            )
            return self._optimizer.update(params, opt_state, params, **extra_args._asdict())

        jax.eval_shape(update, state.params, state.opt_state)
        return bool(asked)

    # --- The first state --------------------------------------------------------------------------

    def init_state(
        self, weights: Params, learning_rate: jax.Array, weight_decay: jax.Array
    ) -> TrainState:
        """Return the state before the first step, from "params" and "model_state"."""
        params, model_state = weights["params"], weights["model_state"]
        opt_state = self._functions.set_hyperparameters(
            self._optimizer.init(params), learning_rate=learning_rate, weight_decay=weight_decay
        )
        ema = jax.tree.map(jnp.copy, params) if self.averaging.ema is not None else None
        state = TrainState(jnp.zeros((), jnp.int32), params, model_state, opt_state, ema)
        return jax.tree.map(_strongly_typed, state)

    # --- Training ---------------------------------------------------------------------------------

    def train_step(
        self, state: TrainState, batch: Batch, key: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Return the state after one step, and its metrics; the arguments are those of `parts`."""
        parts = self.passes.parts(state.step, batch, key)
        found = self.passes.gradient(state.params, state.model_state, parts)
        size = parts.images.shape[0] * parts.images.shape[1]
        return self._update(state, found, key, size, *self._other_gradients(state, parts))

    def update_step(
        self, state: TrainState, found: Gradient, key: jax.Array, batch_size: int
    ) -> tuple[TrainState, Metrics]:
        """Return the state and the metrics of `train_step`, for a gradient that was taken before.

        Args:
          state: before the step; its optimizer does not ask for gradients.
          found: from `Passes.gradient_step`.
          key: of the run.
          batch_size: examples of the batch.
        """

        def cannot(*_: Any) -> Any:
            raise AssertionError("An optimizer asked for a gradient that it did not ask for before")

        return self._update(state, found, key, batch_size, cannot, cannot)

    def _update(
        self,
        state: TrainState,
        found: Gradient,
        key: jax.Array,
        batch_size: int,
        value_and_grad_fn: Callable[[Params], tuple[jax.Array, Params]],
        sampled_label_grad_fn: Callable[[Params, jax.Array], Params],
    ) -> tuple[TrainState, Metrics]:
        optimizer_key = jax.random.fold_in(jax.random.fold_in(key, state.step), 2)
        extra_args = ExtraArgs(
            found.loss, optimizer_key, batch_size, value_and_grad_fn, sampled_label_grad_fn
        )
        updates, opt_state = self._optimizer.update(
            found.grads, state.opt_state, state.params, **extra_args._asdict()
        )
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if self.averaging.ema is not None:
            ema = optax.incremental_update(params, ema, self._ema_share(state.step))
        metrics = {
            "loss": found.loss,
            **found.metrics,
            "learning_rate": jnp.asarray(self._functions.learning_rate(opt_state), jnp.float32),
            "grad_norm": found.norm,
        }
        return TrainState(state.step + 1, params, found.model_state, opt_state, ema), metrics

    def _ema_share(self, step: jax.Array) -> float | jax.Array:
        """Return the weight of the newest parameters in their moving average.

        A plain average still holds `ema**n` of the random start after n updates. With the warm-up
        the decay of update n is min(ema, 1 - n**(-2/3)), that of timm's ModelEmaV3.
        """
        decay = self.averaging.ema
        assert decay is not None
        if not self.averaging.ema_warmup:
            return 1 - decay
        return jnp.maximum(1 - decay, (step + 1.0) ** (-2 / 3))

    def _other_gradients(
        self, state: TrainState, parts: Microbatch
    ) -> tuple[Callable[..., tuple[jax.Array, Params]], Callable[..., Params]]:
        """Return the functions by which an optimizer asks for gradients, see `ExtraArgs`.

        They take `Passes.gradient` of the whole batch and see what the first gradient saw: its
        parts, dropout masks and initial running statistics. They are clipped like it, and the
        running statistics that they leave are dropped. What an optimizer does not call is never
        traced.
        """
        passes = self.passes

        def value_and_grad_fn(params: Params) -> tuple[jax.Array, Params]:
            found = passes.gradient(params, state.model_state, parts)
            return found.loss, found.grads

        def sampled_label_grad_fn(params: Params, key: jax.Array) -> Params:
            drawn = passes.sample_targets(params, state.model_state, parts, key)
            return passes.gradient(params, state.model_state, parts._replace(targets=drawn)).grads

        return value_and_grad_fn, sampled_label_grad_fn

    # --- Evaluation -------------------------------------------------------------------------------

    def eval_params(self, state: TrainState) -> Params:
        """Return the parameters to evaluate: average, optimizer's choice, or the trained ones."""
        if self.averaging.ema is not None:
            return state.ema
        if self._functions.evaluation_parameters is not None:
            return self._functions.evaluation_parameters(state.opt_state, state.params)
        return state.params

    def eval_step(self, state: TrainState, batch: Batch) -> Metrics:
        """Return what the host needs to score a batch, see `Passes.evaluate`."""
        return self.passes.evaluate(self.eval_params(state), state.model_state, batch)

    def update_batch_stats(
        self, state: TrainState, model_state: Params, batch: Batch, key: jax.Array
    ) -> Params:
        """Return the running statistics after one more batch, see `Passes.update_batch_stats`."""
        return self.passes.update_batch_stats(self.eval_params(state), model_state, batch, key)

    def weights(self, state: TrainState) -> Params:
        """Return copies of the evaluated parameters and of the model state."""
        weights = {"params": self.eval_params(state), "model_state": state.model_state}
        return jax.tree.map(jnp.copy, weights)


def _strongly_typed(x: jax.Array) -> jax.Array:
    """Remove a weak type, as of `jnp.full(8, 0.1)`: the second step would compile once more."""
    return jax.lax.convert_element_type(x, x.dtype) if x.weak_type else x
