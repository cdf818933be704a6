"""The parameters of a model: the kind of each, and their number."""

import math
from typing import Any

import jax
from flax import nnx

from bocb_jax.models import layers

_NORMS = (
    layers.BatchNorm,
    nnx.BatchNorm,
    nnx.LayerNorm,
    nnx.GroupNorm,
    nnx.RMSNorm,
    nnx.InstanceNorm,
)


def parameter_kinds(model: nnx.Module) -> dict[str, Any]:
    """Return the kind of each parameter, for optimizers that treat kinds differently.

    A parameter's own metadata comes first (`nnx.Param(value, kind="token")`), then its layer:
    kernels are "conv", "depthwise" or "matrix", biases "bias", and both vectors of a norm "norm".
    Otherwise, as in a user's own layer, it is a "matrix" if it has two axes or more, else a
    "vector".

    Returns:
      Nested dicts like `nnx.to_pure_dict(nnx.state(model, nnx.Param))`, with a string per leaf.
    """
    owners = dict(nnx.iter_modules(model))
    state = nnx.state(model, nnx.Param)
    return nnx.to_pure_dict(
        nnx.map_state(
            lambda path, param: param.replace(_kind(owners[path[:-1]], path, param)), state
        )
    )


def _kind(owner: nnx.Module, path: tuple[Any, ...], param: nnx.Param) -> str:
    declared = param.get_metadata().get("kind")
    if declared:
        return declared
    if isinstance(owner, _NORMS):
        return "norm"
    if path[-1] == "bias" and param.ndim == 1:
        return "bias"
    if isinstance(owner, (layers.Conv, nnx.Conv)):
        groups = owner.groups if isinstance(owner, layers.Conv) else owner.feature_group_count
        return "depthwise" if groups > 1 and param.shape[-2] == 1 else "conv"
    return "matrix" if param.ndim >= 2 else "vector"


def count_params(model: nnx.Module) -> int:
    """Return the number of learned values, `sum(p.numel() for p in model.parameters())` in PyTorch.

    Works on a model of shapes from `nnx.eval_shape` as well.
    """
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
