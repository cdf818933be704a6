"""From the names in a config to a compiled program.

The one place where model, optimizer, data and engine meet; every door that trains or measures
something starts here.
"""

import dataclasses
import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax import interop, optim
from bocb_jax.config import TrainConfig
from bocb_jax.data.augment import Augmentation, preprocess
from bocb_jax.data.sources import Dataset
from bocb_jax.engine.checkpoint import read_best
from bocb_jax.engine.sharding import make_mesh
from bocb_jax.engine.step import Program, StepSettings, make_program, weights_of
from bocb_jax.models import create_model
from bocb_jax.models.factory import MODELS
from bocb_jax.models.layers import parameter_kinds
from bocb_jax.optim import schedules
from bocb_jax.recipes import recipe_for


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the config leaves open, as it came out."""

    epochs: int
    batch_size: int
    image_size: int
    num_classes: int
    learning_rate: float
    weight_decay: float
    schedule: str
    warmup_epochs: float
    label_smoothing: float
    precision: str
    augmentation: dict[str, Any]


def resolve(config: TrainConfig, dataset: Dataset) -> Settings:
    """Fills in from the recipe of the data set, the row of the optimizer and the device."""
    side = dataset.image_shape[0] if dataset.image_shape else None
    recipe = recipe_for(config.dataset, side)
    model = MODELS.get(config.model)
    optimizer = optim.optimizer_info(config.opt)
    epochs = _first(config.epochs, recipe.epochs)
    precision = config.precision
    if precision == "auto":
        precision = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    asked = {name: getattr(config.data, name) for name in ("shift", "flip", "rotate", "scale")}
    asked = {name: value for name, value in asked.items() if value is not None}
    return Settings(
        epochs=epochs,
        batch_size=_first(config.batch_size, recipe.batch_size),
        image_size=_first(config.image_size, min(recipe.image_size, model.image_size)),
        num_classes=dataset.num_classes,
        learning_rate=_first(config.lr, optimizer.default_learning_rate),
        weight_decay=_first(config.weight_decay, optimizer.default_weight_decay),
        schedule=_first(config.schedule.name, optimizer.default_schedule),
        # A warm-up longer than a tenth of the run is not what a short run means.
        warmup_epochs=_first(config.schedule.warmup_epochs, min(recipe.warmup_epochs, epochs / 10)),
        label_smoothing=_first(config.step.label_smoothing, recipe.label_smoothing),
        precision=precision,
        augmentation={**dataset.augmentation, **asked},
    )


def _first(*values):
    return next(value for value in values if value is not None)


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """All that is compiled in. Learning rate, weight decay and seed are not: they are inputs."""

    model: str
    model_args: tuple[tuple[str, Any], ...]
    opt: str
    opt_args: tuple[tuple[str, Any], ...]
    num_classes: int
    image_size: int
    precision: str
    schedule: schedules.Schedule  # with a peak of 1
    step: StepSettings
    augmentation: tuple[tuple[str, Any], ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fsdp: int
    devices: int | None


def program_spec(config, settings: Settings, dataset, steps_per_epoch: int) -> ProgramSpec:
    """The part of a run that is compiled in."""
    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    if settings.schedule == "cosine":
        schedule = schedules.warmup_cosine(1.0, warmup, total, config.schedule.end_fraction)
    elif settings.schedule == "step":
        boundaries = tuple(round(share * total) for share in config.schedule.boundaries)
        schedule = schedules.step_decay(1.0, boundaries, config.schedule.factor, warmup)
    else:
        schedule = schedules.constant(1.0, warmup)
    return ProgramSpec(
        model=config.model,
        model_args=tuple(sorted(config.model_args.items())),
        opt=config.opt,
        opt_args=tuple(sorted(config.opt_args.items())),
        num_classes=settings.num_classes,
        image_size=settings.image_size,
        precision=settings.precision,
        schedule=schedule,
        step=StepSettings(
            settings.label_smoothing, config.step.clip_norm, config.step.accumulate, config.step.ema
        ),
        augmentation=tuple(sorted(settings.augmentation.items())),
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        fsdp=config.parallel.fsdp,
        devices=config.parallel.devices,
    )


def build_model(spec: ProgramSpec, rngs: nnx.Rngs) -> nnx.Module:
    """The backbone of a spec."""
    return create_model(
        spec.model,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        rngs=rngs,
        dtype=jnp.dtype(spec.precision),
        **dict(spec.model_args),
    )


@functools.lru_cache(maxsize=64)
def compiled_program(spec: ProgramSpec) -> Program:
    """The program of a spec; runs that differ in numbers alone share one, and its compilation."""

    def make_optimizer(model):
        return optim.create_optimizer(
            spec.opt,
            spec.schedule,
            parameter_kinds=parameter_kinds(model),
            **dict(spec.opt_args),
        )

    prepare = functools.partial(
        preprocess, image_size=spec.image_size, mean=spec.mean, std=spec.std
    )
    policy = Augmentation(**dict(spec.augmentation))
    return make_program(
        functools.partial(build_model, spec),
        make_optimizer,
        optim.set_hyperparameters,
        optim.current_learning_rate,
        prepare_train=lambda images, key: prepare(images, key=key, policy=policy),
        prepare_eval=prepare,
        settings=spec.step,
        mesh=make_mesh(spec.fsdp, spec.devices),
        evaluation_parameters=optim.optimizer_info(spec.opt).evaluation_parameters,
    )


def starting_weights(
    spec: ProgramSpec, source: str, key: jax.Array
) -> tuple[dict[str, Any], list[str]]:
    """Weights of elsewhere, for `Program.init` to start from.

    Args:
      spec: the program's.
      source: a `.safetensors` or `.pth` file with PyTorch's names, or the folder of a run, of its
        `checkpoints/best`, or of what `bocb import-weights` made.
      key: of the run; a new head begins as it would without `source`.

    Returns:
      A tree like that of `Program.weights`, and the names of the parameters that are new: the
      classifier's, where the source has another number of classes.

    Raises:
      UserError: the source cannot be read, or is of another model; all that differs is named.
    """
    model = nnx.eval_shape(lambda: build_model(spec, nnx.Rngs(0)))
    if Path(source).is_dir():
        new = interop.load_weights(model, read_best(Path(source)), new_head=True)
    else:
        new = interop.load_torch_weights(model, interop.read_weights(source), new_head=True)
    leaves, structure = jax.tree.flatten(weights_of(model))
    empty = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    @jax.jit  # which draws only what is asked for
    def draw(key):
        drawn = jax.tree.leaves(weights_of(build_model(spec, nnx.Rngs(key))))
        return [drawn[i] for i in empty]

    for i, leaf in zip(empty, draw(key) if empty else (), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves), new


def use_compile_cache(folder: str | None) -> None:
    """Keeps compiled programs on disk, so that the next process does not compile them again."""
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(home) / "bocb_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
