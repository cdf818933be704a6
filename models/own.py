"""Build a backbone that the user wrote, and say in one sentence what it lacks."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from flax import nnx

from bocb_jax.errors import UserError, described

Builder = Callable[..., nnx.Module]  # (*, num_classes, image_size, rngs, dtype, **overrides)

_ALWAYS = {
    "num_classes": "make the last layer that wide",
    "rngs": "draw the initial weights from it",
}
_IF_DECLARED = ("image_size", "dtype")


def parameters_of(found: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Return the parameters of a class or function, those of a class without `self`."""
    if not inspect.isclass(found):
        return inspect.signature(found).parameters
    # The signature of an NNX class is that of its metaclass, which accepts anything.
    _, *rest = inspect.signature(found.__init__).parameters.items()
    return dict(rest)


def builder(name: str, found: Callable[..., Any]) -> Builder:
    """Return the builder of a user's class or function.

    It drops `image_size` and `dtype` where these are not declared, and raises UserError where the
    class or function cannot be called, fails, or returns something other than a callable
    `nnx.Module`.
    """

    def build(**arguments: Any) -> nnx.Module:
        parameters = parameters_of(found)
        kinds = [parameter.kind for parameter in parameters.values()]
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            for optional in _IF_DECLARED:
                if optional not in parameters:
                    arguments.pop(optional, None)
            _check_names(name, parameters, arguments)
        _check_required(name, parameters, arguments)
        try:
            model = found(**arguments)
        except UserError:
            raise
        except Exception as error:
            raise _refusal(name, error) from error
        _check_module(name, model)
        return model

    return build


def _check_names(
    name: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]
) -> None:
    for always, use in _ALWAYS.items():
        if always not in parameters:
            raise UserError(
                f"The model '{name}' has no parameter {always}: add it, and {use}. A backbone is "
                "built with the keywords num_classes and rngs, and with image_size and dtype if it "
                "has them."
            )
    unknown = [key for key in arguments if key not in parameters]
    if unknown:
        has = ", ".join(key for key in parameters if key not in (*_ALWAYS, *_IF_DECLARED))
        raise UserError(
            f"The model '{name}' has no parameter {', '.join(unknown)}. It has: {has or 'none'}."
        )


def _check_required(
    name: str, parameters: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]
) -> None:
    for key, parameter in parameters.items():
        by_name = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_name and parameter.default is parameter.empty and key not in arguments:
            raise UserError(
                f"The model '{name}' needs a value for its parameter {key}: give it with "
                f"--model-args.{key.replace('_', '-')}, or give the parameter a default."
            )


def _refusal(name: str, error: Exception) -> UserError:
    held = re.search(
        r"type '<class '(list|dict)'>' assigned to static attribute '(\w+)'", str(error)
    )
    if held:
        kind, attribute = held.groups()
        instead = {"list": "nnx.List([...])", "dict": "nnx.Dict({...})"}[kind]
        return UserError(
            f"The model '{name}' keeps layers in a {kind}, self.{attribute}, where Flax does not "
            f"look for them: write self.{attribute} = {instead}."
        )
    return UserError(f"The model '{name}' cannot be built: {described(error)}.")


def _check_module(name: str, model: object) -> None:
    if not isinstance(model, nnx.Module):
        linen = any(kind.__module__.startswith("flax.linen") for kind in type(model).__mro__)
        is_a = "a module of flax.linen" if linen else f"a {type(model).__name__}"
        raise UserError(
            f"The model '{name}' is {is_a}; it must be an nnx.Module (flax.nnx): write it as a "
            "class that inherits from it, or as a function that returns one."
        )
    if not callable(model):
        raise UserError(
            f"The model '{name}' has no __call__; add one that takes images (batch, height, width, "
            "channels) and returns logits (batch, num_classes)."
        )
