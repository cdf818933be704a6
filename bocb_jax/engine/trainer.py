"""What the training loop drives: one run, or several in step with one another.

A trainer owns the states on the devices, and the compiled functions that advance them. The loop
hands it one batch per run, and lets it take apart what comes back.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import NamedSharding

from bocb_jax.engine.population import Population
from bocb_jax.engine.program import Program
from bocb_jax.engine.state import Batch, Metrics, Params, TrainState


class Trainer(Protocol):
    """Trains runs that are all at the same step."""

    @property
    def batch_sharding(self) -> NamedSharding:
        """Where the batch of a run is put."""

    @property
    def eval_params_differ(self) -> bool:
        """Whether the parameters that are evaluated are others than those that are trained."""

    @property
    def has_batch_stats(self) -> bool:
        """Whether the backbone has BatchNorm, and so running statistics."""

    @property
    def model_state(self) -> Params:
        """The model state of the runs, as training left it."""

    def train_step(self, batches: list[Batch]) -> Metrics:
        """Advance every run by a step on its batch; return its metrics, still on the devices."""

    def eval_step(self, model_state: Params, batch: Batch) -> Metrics:
        """Return what scores a batch that all runs see, still on the devices."""

    def per_run(self, fetched: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        """Return what a step gave, fetched, as one dict per run: numbers, and arrays of its own."""

    def update_batch_stats(self, model_state: Params, batches: list[Batch], number: int) -> Params:
        """Return the model state after the training batches of this number (precise BatchNorm)."""

    def state(self, index: int) -> TrainState:
        """Return the state of a run."""

    def weights(self, index: int, model_state: Params) -> Params:
        """Return copies of the evaluated parameters of a run, and of its part of `model_state`."""


class SingleTrainer:
    """Trains one run.

    Args:
      program: its compiled functions.
      state: to start from; it is donated to the first step.
      key: of the run.
    """

    def __init__(self, program: Program, state: TrainState, key: jax.Array):
        self._program, self._state, self._key = program, state, key
        self.batch_sharding = program.batch_sharding
        self.eval_params_differ = program.eval_params_differ
        self.has_batch_stats = program.has_batch_stats

    @property
    def model_state(self) -> Params:
        return self._state.model_state

    def train_step(self, batches: list[Batch]) -> Metrics:
        (batch,) = batches
        self._state, metrics = self._program.train_step(self._state, batch, self._key)
        return metrics

    def eval_step(self, model_state: Params, batch: Batch) -> Metrics:
        return self._program.eval_step(self._with(model_state), batch)

    def per_run(self, fetched: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        return [{name: _plain(value) for name, value in fetched.items()}]

    def update_batch_stats(self, model_state: Params, batches: list[Batch], number: int) -> Params:
        (batch,) = batches
        key = jax.random.fold_in(self._key, number)
        return self._program.update_batch_stats(self._state, model_state, batch, key)

    def state(self, index: int) -> TrainState:
        return self._state

    def weights(self, index: int, model_state: Params) -> Params:
        return self._program.weights(self._with(model_state))

    def _with(self, model_state: Params) -> TrainState:
        return dataclasses.replace(self._state, model_state=model_state)


class PopulationTrainer:
    """Trains several runs as one program.

    Args:
      population: the compiled functions.
      program: those of one run.
      states: to start from, at the same step.
      keys: of the runs.
    """

    def __init__(
        self,
        population: Population,
        program: Program,
        states: list[TrainState],
        keys: list[jax.Array],
    ):
        self._population, self._program = population, program
        self._states = population.stack_states(states)
        self._run_keys, self._keys = keys, population.stack_keys(keys)
        self.batch_sharding = population.batch_sharding
        self.eval_params_differ = population.eval_params_differ
        self.has_batch_stats = population.has_batch_stats

    @property
    def model_state(self) -> Params:
        return self._states.model_state

    def train_step(self, batches: list[Batch]) -> Metrics:
        stacked = self._population.stack_batches(batches)
        self._states, metrics = self._population.train_step(self._states, stacked, self._keys)
        return metrics

    def eval_step(self, model_state: Params, batch: Batch) -> Metrics:
        return self._population.eval_step(self._with(model_state), batch)

    def per_run(self, fetched: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
        # Members that only repeat the last run are left out.
        return [
            {name: _plain(value[index]) for name, value in fetched.items()}
            for index in range(len(self._run_keys))
        ]

    def update_batch_stats(self, model_state: Params, batches: list[Batch], number: int) -> Params:
        keys = [jax.random.fold_in(key, number) for key in self._run_keys]
        return self._population.update_batch_stats(
            self._states,
            model_state,
            self._population.stack_batches(batches),
            self._population.stack_keys(keys),
        )

    def state(self, index: int) -> TrainState:
        return self._population.member(self._states, index)

    def weights(self, index: int, model_state: Params) -> Params:
        return self._program.weights(self._population.member(self._with(model_state), index))

    def _with(self, model_state: Params) -> TrainState:
        return dataclasses.replace(self._states, model_state=model_state)


def _plain(value: np.ndarray) -> Any:
    """Return an array of no axes as a number, any other as it is."""
    return value.item() if np.ndim(value) == 0 else value
