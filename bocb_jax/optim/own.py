"""Check what a user's optimizer does whenever it is traced; nothing is added to the program."""

import re
from collections.abc import Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bocb_jax.errors import UserError, described


def checked(
    name: str, transformation: optax.GradientTransformation
) -> optax.GradientTransformationExtraArgs:
    """Return the transformation with its errors in one sentence.

    Raises:
      UserError: it is no Optax transformation; later, when it is traced, that it fails, asks for
        more than a training step passes, or returns updates or a state of another form.
    """
    if not (hasattr(transformation, "init") and hasattr(transformation, "update")):
        raise UserError(
            f"The optimizer '{name}' returns {_kind(transformation)}; it must return an Optax "
            "transformation, made by optax.chain or optax.GradientTransformation."
        )
    inner = optax.with_extra_args_support(transformation)

    def init_fn(params: optax.Params) -> optax.OptState:
        try:
            return inner.init(params)
        except Exception as error:
            raise _failed(name, "init", error, ()) from error

    def update_fn(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        **extra_args: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        try:
            new, after = inner.update(updates, state, params, **extra_args)
        except Exception as error:
            raise _failed(name, "update", error, extra_args) from error
        _check_form(name, "updates", new, updates, "the gradient", types=False)
        _check_form(name, "a state", after, state, "the state before it", types=True)
        return new, after

    return optax.GradientTransformationExtraArgs(init_fn, update_fn)


def _failed(name: str, function: str, error: Exception, passed: Collection[str]) -> Exception:
    """Return the UserError for an error of a function that was passed some extra arguments."""
    if isinstance(error, UserError):
        return error
    _, _, asked = str(error).partition("required keyword-only argument")
    missing = re.findall(r"'(\w+)'", asked)
    if isinstance(error, TypeError) and missing and passed:
        return UserError(
            f"The optimizer '{name}' cannot train a network here: its {function} asks for "
            f"{', '.join(missing)}, and a training step passes only {', '.join(passed)}. "
            "Choose an optimizer without a line search."
        )
    return UserError(f"The optimizer '{name}' fails in its {function}: {described(error)}.")


def _check_form(name: str, what: str, found: Any, expected: Any, like: str, *, types: bool) -> None:
    """Raise UserError unless two trees have the same structure, shapes and, if asked, types."""
    structure: Any = jax.tree.structure(found)
    if structure != jax.tree.structure(expected):
        raise UserError(
            f"The optimizer '{name}' returns {what} of another structure than {like}; return a "
            "tree with the same keys and types of containers."
        )
    leaves = zip(jax.tree.leaves_with_path(found), jax.tree.leaves(expected), strict=True)
    for (path, new), old in leaves:
        same = jnp.shape(new) == jnp.shape(old)
        if not (same and (not types or jnp.result_type(new) == jnp.result_type(old))):
            leaf = jax.tree_util.keystr(path) or "value"
            raise UserError(
                f"The optimizer '{name}' returns {what} whose {leaf} is {_form(new)}, not "
                f"{_form(old)} as in {like}; keep shapes and types."
            )


def _form(leaf: Any) -> str:
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _kind(value: object) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
