"""The weights that a run starts from: of a file, of another run, or random ones drawn again."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax import torch_weights
from bocb_jax.build import NetSpec, build_backbone, build_model, hashable
from bocb_jax.compiler_options import init_compiler_options
from bocb_jax.engine.checkpoint import by_path, read_best
from bocb_jax.engine.passes import weights_of
from bocb_jax.engine.sharding import make_mesh, platform_of
from bocb_jax.engine.state import Params
from bocb_jax.errors import UserError
from bocb_jax.models.factory import MODELS
from bocb_jax.models.recorded import Shapes, recorded_builder
from bocb_jax.tasks.net import Net
from bocb_jax.weight_files.read import Say, read_weights, warn


def starting_weights(
    spec: NetSpec, source: str, key: jax.Array, *, ema: bool = False, say: Say = warn
) -> tuple[Params, list[str]]:
    """Read the weights that `Program.init` starts from.

    Args:
      spec: of the program.
      source: a `.safetensors` or `.pth` file with PyTorch's names, or the folder of a run, of its
        `checkpoints/best`, or of what `bocb import-weights` made.
      key: of the run. A new classifier starts as it would without `source`.
      ema: take the averaged weights of a checkpoint that holds both.
      say: called with a sentence about what was chosen, resized or left out.

    Returns:
      "params" and "model_state", and the names of the parameters that are new: those of the
      classifier if the source has another number of classes; of a detector or a pose net, all but
      the backbone's.

    Raises:
      UserError: the source cannot be read, or belongs to another model; it names every difference.
    """
    model: Any = nnx.eval_shape(lambda: build_model(spec, nnx.Rngs(0)))
    path = Path(source).expanduser()
    if path.is_dir() and ema:
        raise UserError(
            f"{source} is a folder of a run, which holds one set of weights; omit --init-ema."
        )
    arrays = read_best(path) if path.is_dir() else read_weights(path, ema=ema, say=say)
    load = torch_weights.load_weights if path.is_dir() else torch_weights.load_torch_weights
    whole = True
    if spec.net is not None:
        arrays = torch_weights.renamed(model, arrays, spec.net.other_name)
        whole = torch_weights.has_around(model, arrays)
    if whole:
        new = load(model, arrays, new_head=True, say=say)
    else:
        # With its classifier, which the net around it does not need.
        backbone = nnx.eval_shape(lambda: build_backbone(spec, nnx.Rngs(0)))
        needed = {path for path, _ in torch_weights.variables(model.backbone)}
        if path.is_dir():  # of a classifier, or of a net of another kind
            arrays = torch_weights.of_backbone(backbone, arrays)
        load(backbone, arrays, needed=needed, say=say)
        new = torch_weights.copy_backbone(backbone, model)
    if spec.net is not None:
        taken = len(list(torch_weights.variables(model))) - len(new)
        say(_taken(source, taken, new, whole=whole))
    leaves, structure = jax.tree.flatten(weights_of(model))
    missing = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    # Jitted, so that only the missing ones are drawn.
    @functools.partial(jax.jit, compiler_options=_compiler_options())
    def draw(key: jax.Array) -> list[jax.Array]:
        drawn = jax.tree.leaves(weights_of(build_model(spec, nnx.Rngs(key))))
        return [drawn[i] for i in missing]

    for i, leaf in zip(missing, draw(key) if missing else (), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves), new


def _taken(source: str, taken: int, new: list[str], *, whole: bool) -> str:
    """Say what of a detector or a pose net starts from given weights.

    Args:
      source: of the weights.
      taken: number of arrays that start from them.
      new: names of the others.
      whole: whether the weights are those of a whole net, not of a backbone alone.
    """
    if not whole:
        return (
            f"The backbone starts from {source} ({taken} arrays), what is around it from random "
            "weights."
        )
    if not new:
        return f"All {taken} arrays start from {source}."
    return (
        f"{taken} arrays start from {source}, those of another number of classes ({', '.join(new)})"
        " from random weights."
    )


def initial_weights(
    model: str,
    model_args: dict[str, Any],
    *,
    num_classes: int,
    image_size: int,
    precision: str,
    seed: int,
    shapes: Shapes,
    net: Net | None = None,
) -> dict[str, np.ndarray]:
    """Return the random weights that a run started from, as its record describes it.

    Args:
      image_size: that the backbone is built for.
      shapes: of the run's weights, by dotted path; they bound the model, see `recorded_builder`.
      net: around the backbone.

    Returns:
      Arrays by dotted path, as `engine.checkpoint.read_best` returns them.

    Raises:
      UserError: no such model is registered, it has no such arguments, or is larger than `shapes`.
    """
    if precision not in ("float32", "bfloat16"):
        raise UserError(f"The precision of a run is float32 or bfloat16, not {precision[:60]!r}.")
    arguments = hashable("model_args", model_args)
    draw = _initializer(
        model, arguments, num_classes, image_size, precision, tuple(sorted(shapes.items())), net
    )
    return jax.tree.map(np.asarray, by_path(draw(jax.random.key(seed))))


@functools.lru_cache(maxsize=4)
def _initializer(
    model: str,
    model_args: tuple[tuple[str, Any], ...],
    num_classes: int,
    image_size: int,
    precision: str,
    shapes: tuple[tuple[str, tuple[int, ...]], ...],
    net: Net | None,
) -> Callable[[jax.Array], Params]:
    dtype = jnp.dtype(precision)
    build = recorded_builder(
        MODELS.get(model),
        dict(model_args),
        num_classes=num_classes,
        image_size=image_size,
        shapes=dict(shapes),
        dtype=dtype,
        around=None if net is None else functools.partial(net.around, dtype=dtype),
    )

    def draw(key: jax.Array) -> Params:
        return weights_of(build(rngs=nnx.Rngs(key)))

    return jax.jit(draw, compiler_options=_compiler_options())


def _compiler_options() -> dict[str, Any] | None:
    """Return the options by which a run compiles what draws its weights: they change last bits."""
    return init_compiler_options(platform_of(make_mesh(devices=1)))
