"""The compiled programs of several runs that train together, vmapped over a leading member axis.

Made of the very functions that the program of a run alone is made of. Each member has its own
weights, optimizer state, rates, key and batches; they share the number of the step, and nothing
flows between them. On one device their work is one batch of work, which fills an accelerator that a
small model leaves idle; over several devices each takes its share of the members, without messages.

A member does what the run does alone, but not always to the last bit: XLA may add up a stack in
another order than its parts (a convolution over members becomes a grouped one), and then they
differ by rounding, as between two kinds of device. Going on after a stop changes no bit.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from bocb_jax.engine.program import Program, Pure
from bocb_jax.engine.sharding import along_members, batch_sharding, members_are_split, replicated
from bocb_jax.engine.state import TrainState


class Population:
    """The counterpart of `Program` for several runs: arrays have a leading member axis.

    `train_step(states, batches, keys)` -> (states, metrics of (members,)), with `states` donated;
    `eval_step(states, batch)` -> sums of (members,), of one batch for all;
    `settle(states, model_states, batches, keys)` -> model states, or None.

    Args:
      alone: the program of a run alone.
      pure: its functions; those for one device where the members are split over the devices.
      members: how many places there are.
    """

    def __init__(self, alone: Program, pure: Pure, members: int):
        self.members, self.mesh = members, alone.mesh
        self.evaluates_others = alone.evaluates_others
        everywhere = replicated(self.mesh)
        of_state = jax.tree.map(lambda leaf: leaf.sharding, alone.abstract_state)
        if members_are_split(self.mesh, members):
            axes = PartitionSpec(self.mesh.axis_names)
            self.batch_sharding = everywhere
            states = batches = keys = NamedSharding(self.mesh, axes)
            model_states = states

            def over_devices(function, in_specs):
                return jax.shard_map(
                    function, mesh=self.mesh, in_specs=in_specs, out_specs=axes, check_vma=False
                )
        else:
            axes = PartitionSpec()
            self.batch_sharding = batch_sharding(self.mesh)
            states = jax.tree.map(along_members, of_state)
            model_states = states.model_state
            batches, keys = along_members(self.batch_sharding), everywhere

            def over_devices(function, in_specs):
                del in_specs
                return function

        step = over_devices(functools.partial(_in_step, pure.train_step), (axes, axes, axes))
        evaluate = jax.vmap(pure.eval_step, in_axes=(0, None))
        evaluate = over_devices(evaluate, (axes, PartitionSpec()))
        settle = over_devices(jax.vmap(pure.settle), (axes, axes, axes, axes))

        def train_step_together(states, batches, keys):  # so that XLA's events name it
            return step(states, batches, keys)

        def eval_step_together(states, batch):
            return evaluate(states, batch)

        def settle_together(states, model_states, batches, keys):
            return settle(states, model_states, batches, keys)

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
        self.settle = alone.settle and jax.jit(
            settle_together,
            in_shardings=(states, model_states, batches, keys),
            out_shardings=model_states,
        )
        self._stack_states = jax.jit(_stack, out_shardings=states)
        self._stack_keys = jax.jit(_stack, out_shardings=keys)
        self._stack_batches = jax.jit(_stack, out_shardings=batches)
        self._member = jax.jit(_take, out_shardings=of_state)

    def stack_states(self, states: list[TrainState]) -> TrainState:
        """The states of the members; places that are left over repeat the last one."""
        return self._stack_states(self._filled(states))

    def stack(self, trees: list[Any]) -> Any:
        """The same for the batches of the members, and for their keys."""
        is_key = isinstance(trees[0], jax.Array)
        return (self._stack_keys if is_key else self._stack_batches)(self._filled(trees))

    def member(self, states: TrainState, place: int) -> TrainState:
        """The state of one member, as the program of a run alone has it."""
        return self._member(states, place)

    def _filled(self, trees: list[Any]) -> list[Any]:
        return trees + trees[-1:] * (self.members - len(trees))


def _in_step(train_step, states: TrainState, batches, keys):
    """`train_step` of every member.

    All of them are at one step, and so the counters of an optimizer are the same for all. These are
    left out of the member axis: a `cond` on one ("every tenth step") stays a branch, where on a
    vector of them it would become a `select` that computes both sides at every step.
    """
    leaves, structure = jax.tree.flatten(states)

    def step(leaves, batch, key):
        state, metrics = train_step(structure.unflatten(leaves), batch, key)
        return jax.tree.leaves(state), metrics

    counts = [leaf.ndim == 1 and jnp.issubdtype(leaf.dtype, jnp.integer) for leaf in leaves]
    shared = [leaf[0] if count else leaf for leaf, count in zip(leaves, counts, strict=True)]
    axes = [None if count else 0 for count in counts]
    try:
        stepped, metrics = jax.vmap(step, in_axes=(axes, 0, 0), out_axes=(axes, 0))(
            shared, batches, keys
        )
    except ValueError:  # one of them depends on what differs between members
        stepped, metrics = jax.vmap(step)(leaves, batches, keys)
    else:
        stepped = [
            jnp.broadcast_to(new, old.shape) if count else new
            for new, old, count in zip(stepped, leaves, counts, strict=True)
        ]
    return structure.unflatten(stepped), metrics


def _stack(trees: list[Any]) -> Any:
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _take(states: TrainState, place: jax.Array) -> TrainState:
    return jax.tree.map(lambda leaf: jnp.take(leaf, place, axis=0), states)
