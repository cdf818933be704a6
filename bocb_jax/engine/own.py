"""Check a user's own backbone by shapes, before anything is compiled.

Its faults would otherwise appear in a training step, as errors of the optimizer or the loss.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from bocb_jax.engine.passes import Passes, weights_of
from bocb_jax.errors import UserError, described

# Arguments by which other libraries tell a module its mode.
_MODES = ("train", "training", "is_training", "deterministic", "use_running_average")
_CHANNELS = 3


def check_backbone(
    passes: Passes, name: str, *, num_classes: int, image_size: int, test_size: int, batch_size: int
) -> None:
    """Check parameters, call and outputs of a backbone, by shapes alone.

    Args:
      passes: of the backbone.
      name: of the backbone, for messages.
      num_classes: that the data set has.
      image_size: side in pixels in training.
      test_size: side in pixels in evaluation.
      batch_size: any that the layers can divide.

    Raises:
      UserError: it cannot be trained; the message says what to change.
    """
    params = jax.tree.leaves(weights_of(passes.abstract_model)["params"])
    if not params:
        raise UserError(
            f"The model '{name}' has no parameters to train; hold its weights in nnx.Param or in "
            "layers such as nnx.Linear."
        )
    for leaf in params:
        if leaf.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
            raise UserError(
                f"The model '{name}' has a parameter of type {leaf.dtype}; make it float32, or an "
                "nnx.Variable if it is not to be trained."
            )
    _check_call(name, passes.abstract_model)
    before = weights_of(passes.abstract_model)["model_state"]
    for training, side in ((True, image_size), (False, test_size)):
        shape = (batch_size, side, side, _CHANNELS)
        outputs, after = _outputs(passes, name, shape, training, image_size)
        _check_outputs(name, outputs, batch_size, num_classes)
        _check_state(name, before, after)


def _check_call(name: str, model: object) -> None:
    signature = inspect.signature(type(model).__call__)
    try:
        signature.bind_partial(model, None)
    except TypeError:
        raise UserError(
            f"The __call__ of the model '{name}' takes no images; write it as __call__(self, x), x "
            "of (batch, height, width, channels)."
        ) from None
    for parameter in [*signature.parameters.values()][2:]:
        required = parameter.default is parameter.empty and parameter.kind in (
            parameter.POSITIONAL_OR_KEYWORD,
            parameter.KEYWORD_ONLY,
        )
        if parameter.name in _MODES and (required or parameter.default is not None):
            raise UserError(
                f"The __call__ of the model '{name}' takes {parameter.name}, which a run does not "
                "pass: remove it. nnx.Dropout and nnx.BatchNorm are told the mode by model.train() "
                "and model.eval()."
            )
        if required and parameter.name != "rngs":
            raise UserError(
                f"The __call__ of the model '{name}' needs {parameter.name}; a run passes the "
                f"images, and rngs if it takes them: give {parameter.name} a default, or set it in "
                "__init__."
            )


def _outputs(
    passes: Passes, name: str, shape: tuple[int, ...], training: bool, image_size: int
) -> tuple[Any, Any]:
    try:
        return passes.abstract_outputs(shape, training=training)
    except UserError:
        raise
    except Exception as error:
        batch, height, width, channels = shape
        if _works(passes, (batch, channels, height, width), training):
            raise UserError(
                f"The model '{name}' takes images as (batch, channels, height, width); they come "
                f"as (batch, height, width, channels), here {shape}: write it for these, or begin "
                "its __call__ with x = x.transpose(0, 3, 1, 2)."
            ) from error
        mode = "training" if training else "evaluation"
        other = f" It takes the {image_size} pixels of training: leave out --test-size, or let it "
        other += "take images of any size."
        differs = height != image_size and _works(passes, (batch, image_size, image_size, 3), False)
        raise UserError(
            f"The model '{name}' fails in {mode} on images of (batch, height, width, channels) = "
            f"{shape}: {described(error)}.{other if differs else ''}"
        ) from error


def _works(passes: Passes, shape: tuple[int, ...], training: bool) -> bool:
    try:
        passes.abstract_outputs(shape, training=training)
    except Exception:  # whatever a user's code raises
        return False
    return True


def _check_outputs(name: str, outputs: Any, batch_size: int, num_classes: int) -> None:
    wanted = f"logits of shape (batch, num_classes), here ({batch_size}, {num_classes})"
    if not isinstance(outputs, jax.ShapeDtypeStruct):
        kind = "nothing" if outputs is None else f"a {type(outputs).__name__}"
        raise UserError(f"The model '{name}' returns {kind}; return the {wanted}, alone.")
    if outputs.dtype not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise UserError(
            f"The model '{name}' returns values of type {outputs.dtype}; its logits must be "
            "float32, bfloat16 or float16."
        )
    if outputs.shape == (batch_size, num_classes):
        return
    if outputs.ndim == 2 and outputs.shape[0] == batch_size:
        raise UserError(
            f"The model '{name}' returns {outputs.shape[1]} values for an image, but the data set "
            f"has {num_classes} classes: make its last layer num_classes wide."
        )
    raise UserError(
        f"The model '{name}' returns an array of shape {outputs.shape} for {batch_size} "
        f"images; it must return {wanted}."
    )


def _check_state(name: str, before: Any, after: Any) -> None:
    def form(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)

    if form(before) != form(after):
        raise UserError(
            f"A call of the model '{name}' adds variables or changes their shapes or types; make "
            "all of them in __init__, and keep their shapes and types."
        )
