"""Trees of parameters: functions that give a tree like them, and mapping over their leaves."""

from collections.abc import Callable
from typing import Any

import jax
import optax

# Parameters -> a tree like them: where weight decay applies, what kind each one is, its rate.
PerParam = Callable[[optax.Params], Any]


def map_leaves(function: Callable[..., tuple[Any, ...]], tree: Any, *rest: Any) -> tuple[Any, ...]:
    """Map a function with several results: `jax.tree.map` that returns a tuple of trees.

    Args:
      function: of one leaf of each tree; returns a tuple.
      tree: gives the structure of the results.
      *rest: trees like `tree`. Where it has a leaf, they may have a subtree, which is passed whole.
    """
    structure: Any  # which jaxlib's stubs do not resolve
    leaves, structure = jax.tree.flatten(tree)
    others = [structure.flatten_up_to(other) for other in rest]
    results = [function(*arguments) for arguments in zip(leaves, *others, strict=True)]
    return tuple(structure.unflatten(column) for column in zip(*results, strict=True))
