"""Mapping over the leaves of parameter trees."""

from collections.abc import Callable
from typing import Any

import jax


def map_leaves(function: Callable[..., tuple], tree: Any, *rest: Any) -> tuple[Any, ...]:
    """`jax.tree.map` for a function with several results: a tuple of trees like the first.

    Where `tree` has a leaf, the other trees may have a whole subtree, which the function gets.
    """
    leaves, structure = jax.tree.flatten(tree)
    others = [structure.flatten_up_to(other) for other in rest]
    results = [function(*arguments) for arguments in zip(leaves, *others, strict=True)]
    return tuple(structure.unflatten(column) for column in zip(*results, strict=True))
