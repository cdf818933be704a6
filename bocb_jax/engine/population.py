"""The compiled functions of several runs that train together, with a leading member axis.

They are `Steps` under `jax.vmap`. Each member has its own weights, optimizer state, learning rate,
weight decay, key and batches; all are at the same step, and nothing flows between them. On one
device their work is one batch of work, which fills an accelerator that a small model leaves idle.
Several devices each take a share of the members, without communication.

A member computes what the run computes alone, but not always to the last bit: XLA may sum a
stacked array in another order (a convolution over members becomes a grouped one), and the results
differ by rounding, as between two kinds of device. Stopping and resuming changes no bit.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bocb_jax.engine.program import Program
from bocb_jax.engine.sharding import along_members, batch_sharding, members_are_split, replicated
from bocb_jax.engine.state import Batch, Metrics, Params, TrainState
from bocb_jax.engine.steps import Steps


class Population:
    """The counterpart of `Program` for several runs: arrays have a leading member axis.

    Args:
      alone: the program of one run.
      steps: the functions to vmap: those for one device where the members are split over devices,
        else those of `alone`.
      members: size of the member axis. Fewer runs may train in it: the last one is repeated.

    Attributes:
      train_step: (states, batches, keys) -> (states, metrics of (members,)); states are donated.
      eval_step: (states, batch) -> sums of (members,) over one batch that all members see.
      update_batch_stats: (states, model states, batches, keys) -> model states.
      batch_sharding: where the batch of one member is put.
    """

    def __init__(self, alone: Program, steps: Steps, members: int):
        self.members, self.mesh = members, alone.mesh
        self.eval_params_differ = alone.eval_params_differ
        everywhere = replicated(self.mesh)
        state = jax.tree.map(lambda leaf: leaf.sharding, alone.abstract_state)
        self._is_split = members_are_split(self.mesh, members)
        if self._is_split:
            self.batch_sharding = everywhere
            states = batches = keys = model_states = NamedSharding(
                self.mesh, PartitionSpec(self.mesh.axis_names)
            )
        else:
            self.batch_sharding = batch_sharding(self.mesh)
            states = jax.tree.map(along_members, state)
            model_states = states.model_state
            batches, keys = along_members(self.batch_sharding), everywhere

        step = self._over_devices(functools.partial(_in_step, steps.train_step), 3)
        evaluate = self._over_devices(jax.vmap(steps.eval_step, in_axes=(0, None)), 1, shared=1)
        update = self._over_devices(jax.vmap(steps.update_batch_stats), 4)

        # Functions of their own, since XLA's events carry their names.
        def train_step_together(states: TrainState, batches: Batch, keys: jax.Array) -> Any:
            return step(states, batches, keys)

        def eval_step_together(states: TrainState, batch: Batch) -> Metrics:
            return evaluate(states, batch)

        def update_batch_stats_together(
            states: TrainState, model_states: Params, batches: Batch, keys: jax.Array
        ) -> Params:
            return update(states, model_states, batches, keys)

        self.train_step = jax.jit(
            train_step_together,
            donate_argnums=0,
            in_shardings=(states, batches, keys),
            out_shardings=(states, everywhere),
        )
        self.eval_step = jax.jit(
            eval_step_together,
            in_shardings=(states, self.batch_sharding),
            out_shardings=everywhere,
        )
        self.has_batch_stats = alone.has_batch_stats
        self.update_batch_stats = jax.jit(
            update_batch_stats_together,
            in_shardings=(states, model_states, batches, keys),
            out_shardings=model_states,
        )
        self._stack_states = jax.jit(_stack, out_shardings=states)
        self._stack_keys = jax.jit(_stack, out_shardings=keys)
        self._stack_batches = jax.jit(_stack, out_shardings=batches)
        self._member = jax.jit(_take, out_shardings=state)

    def stack_states(self, states: list[TrainState]) -> TrainState:
        """Return the states of the runs, stacked."""
        return self._stack_states(self._filled(states))

    def stack_keys(self, keys: list[jax.Array]) -> jax.Array:
        """Return the keys of the runs, stacked."""
        return self._stack_keys(self._filled(keys))

    def stack_batches(self, batches: list[Batch]) -> Batch:
        """Return the batches of the runs, stacked."""
        return self._stack_batches(self._filled(batches))

    def member(self, states: TrainState, index: int) -> TrainState:
        """Return the state of one run, sharded as `Program` has it."""
        return self._member(states, index)

    def _filled(self, trees: list[Any]) -> list[Any]:
        return trees + trees[-1:] * (self.members - len(trees))

    def _over_devices(
        self, function: Callable[..., Any], own: int, shared: int = 0
    ) -> Callable[..., Any]:
        """Let each device call the function on its own members, where these are split.

        Args:
          function: of arguments with a member axis, then of arguments without one.
          own: number of the former.
          shared: number of the latter.
        """
        if not self._is_split:
            return function
        axes = PartitionSpec(self.mesh.axis_names)
        in_specs = (axes,) * own + (PartitionSpec(),) * shared
        return jax.shard_map(
            function, mesh=self.mesh, in_specs=in_specs, out_specs=axes, check_vma=False
        )


def _in_step(
    train_step: Callable[..., tuple[TrainState, Metrics]],
    states: TrainState,
    batches: Batch,
    keys: jax.Array,
) -> tuple[TrainState, Metrics]:
    """Map `train_step` over members that are all at the same step.

    An optimizer's counters are then equal in all members, and are left out of the member axis: a
    `cond` on one ("every tenth step") stays a branch. On a vector of counters it would become a
    `select`, which computes both sides at every step.
    """
    leaves, structure = jax.tree.flatten(states)
    whole = functools.partial(jax.tree.unflatten, structure)

    def step(
        leaves: list[jax.Array], batch: Batch, key: jax.Array
    ) -> tuple[list[jax.Array], Metrics]:
        state, metrics = train_step(whole(leaves), batch, key)
        return jax.tree.leaves(state), metrics

    counts = [leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves]
    shared = [leaf[0] if count else leaf for leaf, count in zip(leaves, counts, strict=True)]
    axes = [None if count else 0 for count in counts]
    try:
        stepped, metrics = jax.vmap(step, in_axes=(axes, 0, 0), out_axes=(axes, 0))(
            shared, batches, keys
        )
    except ValueError:  # a counter depends on what differs between members
        stepped, metrics = jax.vmap(step)(leaves, batches, keys)
    else:
        stepped = [
            jnp.broadcast_to(new, old.shape) if count else new
            for new, old, count in zip(stepped, leaves, counts, strict=True)
        ]
    return whole(stepped), metrics


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _take(states: TrainState, index: jax.Array) -> TrainState:
    return jax.tree.map(lambda leaf: jnp.take(leaf, index, axis=0), states)
