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
import numpy as np
from flax import nnx

from bocb_jax import optim, torch_weights
from bocb_jax.augment.mixing import Mixing, mix, smoothed_one_hot
from bocb_jax.augment.preprocess import Augmentation, preprocess
from bocb_jax.engine.checkpoint import by_path, read_best
from bocb_jax.engine.population import Population
from bocb_jax.engine.program import (
    Program,
    StepSettings,
    make_program,
    options_of_drawing,
    weights_of,
)
from bocb_jax.engine.sharding import make_mesh, members_are_split
from bocb_jax.models import create_model
from bocb_jax.models.layers import BatchNorm
from bocb_jax.models.parameters import parameter_kinds
from bocb_jax.optim import schedules
from bocb_jax.resolve import Settings


@dataclasses.dataclass(frozen=True)
class ProgramSpec:
    """All that is compiled in. Learning rate, weight decay and seed are not: they are inputs."""

    model: str
    model_args: tuple[tuple[str, Any], ...]
    opt: str
    opt_args: tuple[tuple[str, Any], ...]
    num_classes: int
    image_size: int
    test_size: int
    crop_ratio: float
    precision: str
    schedule: schedules.Schedule  # with a peak of 1
    step: StepSettings
    augmentation: Augmentation
    mixing: Mixing
    mixed_smoothing: float  # of the labels, where batches are mixed
    batch_norm_momentum: float | None
    batch_norm_groups: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fsdp: int
    devices: int | None


def program_spec(config, settings: Settings, dataset, steps_per_epoch: int) -> ProgramSpec:
    """The part of a run that is compiled in."""
    total = settings.epochs * steps_per_epoch
    warmup = round(settings.warmup_epochs * steps_per_epoch)
    start = settings.warmup_start
    if settings.schedule == "cosine":
        schedule = schedules.warmup_cosine(
            1.0,
            warmup,
            total,
            settings.end_fraction,
            warmup_start=start,
            from_start=settings.cosine_from == "start",
            every=steps_per_epoch if settings.schedule_by == "epoch" else 1,
        )
    elif settings.schedule == "step":
        boundaries = tuple(round(share * total) for share in config.schedule.boundaries)
        factor = config.schedule.factor
        schedule = schedules.step_decay(1.0, boundaries, factor, warmup, warmup_start=start)
    else:
        schedule = schedules.constant(1.0, warmup, warmup_start=start)
    model_args, opt_args = dict(config.model_args), dict(config.opt_args)
    if settings.drop_path is not None:
        model_args["drop_path"] = settings.drop_path
    opt_args.setdefault("decay_mask", settings.decay_mask)
    return ProgramSpec(
        model=config.model,
        model_args=_hashable(model_args),
        opt=config.opt,
        opt_args=_hashable(opt_args),
        num_classes=settings.num_classes,
        image_size=settings.image_size,
        test_size=settings.test_size,
        crop_ratio=settings.crop_ratio if dataset.image_shape else 1.0,  # else the host crops
        precision=settings.precision,
        schedule=schedule,
        step=StepSettings(
            settings.loss,
            0.0 if settings.mixup or settings.cutmix else settings.label_smoothing,
            settings.clip_norm,
            config.step.accumulate,
            settings.ema,
        ),
        augmentation=Augmentation(**settings.augmentation),
        mixing=Mixing(settings.mixup, settings.cutmix),
        mixed_smoothing=settings.label_smoothing,
        batch_norm_momentum=config.step.batch_norm_momentum,
        batch_norm_groups=config.step.batch_norm_groups,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        fsdp=config.parallel.fsdp,
        devices=config.parallel.devices,
    )


def _hashable(settings: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """The items, sorted; lists, as TOML and JSON have them, become tuples."""

    def frozen(value):
        return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value

    return tuple((name, frozen(value)) for name, value in sorted(settings.items()))


def build_model(spec: ProgramSpec, rngs: nnx.Rngs) -> nnx.Module:
    """The backbone of a spec."""
    model = create_model(
        spec.model,
        num_classes=spec.num_classes,
        image_size=spec.image_size,
        rngs=rngs,
        dtype=jnp.dtype(spec.precision),
        **dict(spec.model_args),
    )
    for _, module in nnx.iter_graph(model):
        if isinstance(module, BatchNorm):
            module.groups = spec.batch_norm_groups
            if spec.batch_norm_momentum is not None:
                module.momentum = spec.batch_norm_momentum
    return model


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

    mesh = make_mesh(spec.fsdp, spec.devices)

    def prepare_train(images, labels, key):
        images = preprocess(
            images,
            image_size=spec.image_size,
            mean=spec.mean,
            std=spec.std,
            key=jax.random.fold_in(key, 0),
            policy=spec.augmentation,
            mesh=mesh,
        )
        if not spec.mixing.active:
            return images, labels
        targets = smoothed_one_hot(labels, spec.num_classes, spec.mixed_smoothing)
        return mix(images, targets, key=jax.random.fold_in(key, 1), policy=spec.mixing)

    prepare_eval = functools.partial(
        preprocess,
        image_size=spec.test_size,
        mean=spec.mean,
        std=spec.std,
        crop_ratio=spec.crop_ratio,
    )
    return make_program(
        functools.partial(build_model, spec),
        make_optimizer,
        optim.set_hyperparameters,
        optim.current_learning_rate,
        prepare_train=prepare_train,
        prepare_eval=prepare_eval,
        settings=spec.step,
        mesh=mesh,
        evaluation_parameters=optim.optimizer_info(spec.opt).evaluation_parameters,
    )


@functools.lru_cache(maxsize=64)
def compiled_population(spec: ProgramSpec, members: int) -> Population:
    """The program of so many runs of a spec that train together."""
    alone = compiled_program(spec)
    split = members_are_split(alone.mesh, members)
    # Where a device has members of its own, what it does is what a run does on one device.
    pure = compiled_program(dataclasses.replace(spec, devices=1)).pure if split else alone.pure
    return Population(alone, pure, members)


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
        new = torch_weights.load_weights(model, read_best(Path(source)), new_head=True)
    else:
        new = torch_weights.load_torch_weights(
            model, torch_weights.read_weights(source), new_head=True
        )
    leaves, structure = jax.tree.flatten(weights_of(model))
    empty = [i for i, leaf in enumerate(leaves) if isinstance(leaf, jax.ShapeDtypeStruct)]

    @jax.jit  # which draws only what is asked for
    def draw(key):
        drawn = jax.tree.leaves(weights_of(build_model(spec, nnx.Rngs(key))))
        return [drawn[i] for i in empty]

    for i, leaf in zip(empty, draw(key) if empty else (), strict=True):
        leaves[i] = leaf
    return jax.tree.unflatten(structure, leaves), new


def initial_weights(
    model: str,
    model_args: dict[str, Any],
    *,
    num_classes: int,
    image_size: int,
    precision: str,
    seed: int,
) -> dict[str, np.ndarray]:
    """The weights that a run of these settings began with, if none were given to it.

    Returns:
      Arrays by path with dots, as `engine.checkpoint.read_best` has them.

    Raises:
      UserError: there is no such model, or it has no such arguments.
    """
    draw = _initializer(model, _hashable(model_args), num_classes, image_size, precision)
    return jax.tree.map(np.asarray, by_path(draw(jax.random.key(seed))))


@functools.lru_cache(maxsize=4)
def _initializer(model, model_args, num_classes, image_size, precision):
    def draw(key):
        made = create_model(
            model,
            num_classes=num_classes,
            image_size=image_size,
            rngs=nnx.Rngs(key),
            dtype=jnp.dtype(precision),
            **dict(model_args),
        )
        return weights_of(made)

    # With the options of a run, which may decide the last bit.
    return jax.jit(draw, compiler_options=options_of_drawing(jax.default_backend()))


def use_compile_cache(folder: str | None) -> None:
    """Keeps compiled programs on disk, so that the next process does not compile them again."""
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(home) / "bocb_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    # The small programs too: a process that trains its thousandth run compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
