"""The parameters of a model: what each of them is, and how many there are."""

import math

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


def parameter_kinds(model: nnx.Module) -> dict:
    """What each parameter is, for optimizers that treat kinds apart.

    A parameter may say so itself (`nnx.Param(value, kind="token")`); else its layer tells: "conv",
    "depthwise", "matrix" for kernels, "bias", and "norm" for both vectors of a norm. What neither
    tells, as in a user's own layer, is a "matrix" from two axes on and a "vector" below.

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


def _kind(owner, path, param):
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


def parameter_count(model: nnx.Module) -> int:
    """Number of learned values, as PyTorch's `sum(p.numel() for p in model.parameters())`."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
