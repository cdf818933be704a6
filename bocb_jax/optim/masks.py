"""How parameters are told apart: their kinds, decay masks and learning-rate multipliers.

Parameters are nested plain dictionaries; the path of one is "blocks/0/attn/qkv/kernel". Patterns
are shell patterns over the whole path, in which `*` also matches slashes.
"""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from bocb_jax.errors import UserError

DECAYED_KINDS = ("conv", "depthwise", "matrix", "head")
_MATRIX_NAMES = ("kernel", "weight", "w")
_HEAD_NAMES = ("head", "fc", "classifier")  # of the first module on the path
_VECTOR_KINDS = {"bias": "bias", "b": "bias", "scale": "norm"}


def parameter_paths(params: Any) -> Any:
    """Return a tree like `params` of slash-separated paths."""
    return jax.tree_util.tree_map_with_path(lambda path, _: _join(path), params)


def _join(path: Sequence[Any]) -> str:
    return "/".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path)


def infer_kinds(params: Any) -> Any:
    """Infer a tree like `params` of parameter kinds from leaf names and ranks.

    A leaf called kernel (or weight, or w) is a "matrix" (in, out), a "head" if the first module on
    its path is called head, fc or classifier, a "conv" (height, width, in, out) or, with one input
    channel to a group, a "depthwise" kernel. Vectors are "bias", "norm" or "vector"; everything
    else (tables, tokens, position embeddings) is an "embedding".
    """
    return jax.tree_util.tree_map_with_path(lambda path, leaf: _kind(_join(path), leaf), params)


def _kind(path: str, leaf: Any) -> str:
    name = path.rpartition("/")[2]
    if leaf.ndim < 2:
        return _VECTOR_KINDS.get(name, "vector")
    if name not in _MATRIX_NAMES:
        return "embedding"
    if leaf.ndim == 2:
        return "head" if path.partition("/")[0] in _HEAD_NAMES else "matrix"
    return "depthwise" if leaf.shape[-2] == 1 and leaf.shape[-1] > 1 else "conv"


def kinds_of(params: Any, parameter_kinds: Any | None) -> Any:
    """Return the kinds that the user gave, checked against `params`, or else the inferred ones.

    Raises:
      UserError: the kinds are no tree like the parameters.
    """
    if parameter_kinds is None:
        return infer_kinds(params)
    return _same_structure("parameter_kinds", parameter_kinds, params)


def decay_tree(
    params: Any, decay_mask: Any, parameter_kinds: Any | None = None, must_match: bool = False
) -> Any:
    """Return a tree like `params` of booleans: where weight decay applies.

    Args:
      params: the parameters; only names and shapes matter.
      decay_mask: "matrices" (kernels of convolutions and linear layers, no biases, norms, tokens
        or tables), "all", a list of path patterns, or a tree of booleans.
      parameter_kinds: a tree of kinds, or None to infer them.
      must_match: refuse "matrices" that finds none although some tensor has two axes or more.

    Raises:
      UserError: a mask that is none of these, or matches nothing.
    """
    if isinstance(decay_mask, str):
        if decay_mask == "all":
            return jax.tree.map(lambda _: True, params)
        if decay_mask == "matrices":
            kinds = kinds_of(params, parameter_kinds)
            mask = jax.tree.map(lambda kind: kind in DECAYED_KINDS, kinds)
            if must_match and not any(jax.tree.leaves(mask)) and _has_tensors(params):
                some = ", ".join(jax.tree.leaves(parameter_paths(params))[:3])
                raise UserError(
                    "decay_mask='matrices' finds no matrix among the parameters, such as "
                    f"{some}: no leaf is called kernel. Pass parameter_kinds, path patterns or "
                    "decay_mask='all'; or weight_decay=0."
                )
            return mask
        raise UserError(
            "decay_mask is 'matrices', 'all', a list of path patterns or a tree of booleans, "
            f"not '{decay_mask}'."
        )
    if isinstance(decay_mask, (list, tuple)) and all(isinstance(x, str) for x in decay_mask):
        found = match_patterns(params, dict.fromkeys(decay_mask, True), "decay_mask")
        return jax.tree.map(lambda x: x is not None, found, is_leaf=lambda x: x is None)
    return _same_structure("decay_mask", decay_mask, params)


def _has_tensors(params: Any) -> bool:
    return any(leaf.ndim > 1 for leaf in jax.tree.leaves(params))


def multiplier_tree(params: Any, lr_multipliers: Mapping[str, float] | None) -> Any:
    """Return a tree like `params` of factors on the learning rate.

    The first pattern that matches decides; parameters without one have the factor 1.
    """
    if not lr_multipliers:
        return jax.tree.map(lambda _: 1.0, params)
    found = match_patterns(params, lr_multipliers, "lr_multipliers")
    return jax.tree.map(lambda x: 1.0 if x is None else x, found, is_leaf=lambda x: x is None)


def match_patterns(params: Any, values: Mapping[str, Any], what: str) -> Any:
    """Return a tree like `params` of the value of the first pattern that matches, or None.

    Args:
      params: the parameters; only their paths matter.
      values: pattern -> value.
      what: the argument that the patterns come from, for the message.

    Raises:
      UserError: a pattern matches no parameter at all.
    """
    paths = parameter_paths(params)
    for pattern in values:
        if not any(fnmatch.fnmatchcase(path, pattern) for path in jax.tree.leaves(paths)):
            some = ", ".join(jax.tree.leaves(paths)[:3])
            raise UserError(
                f"The {what} pattern '{pattern}' matches no parameter. Paths look like: {some}."
            )

    def value(path: str) -> Any:
        return next((v for p, v in values.items() if fnmatch.fnmatchcase(path, p)), None)

    return jax.tree.map(value, paths)


def _same_structure(what: str, tree: Any, params: Any) -> Any:
    given: Any = jax.tree.structure(tree)  # a type that jaxlib's stubs do not resolve
    wanted: Any = jax.tree.structure(params)
    if given != wanted:
        raise UserError(
            f"{what} must be a tree like the parameters: it has {given}, they have {wanted}."
        )
    return tree
