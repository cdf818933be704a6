"""Fill in what the config of a detector or a pose net leaves open."""

import dataclasses
import re
from typing import Any

from bocb_jax import optim
from bocb_jax.config import TrainConfig, TransferConfig
from bocb_jax.data.annotated import AnnotatedDataset
from bocb_jax.errors import UserError
from bocb_jax.models.factory import MODELS
from bocb_jax.optim.registry import OptimizerInfo
from bocb_jax.resolve import (
    ResolvedConfig,
    check_arguments,
    check_parts,
    decay_mask,
    first,
    from_command,
    precision_of,
    recorded_size,
)
from bocb_jax.tasks.recipes import TransferRecipe, recipe_of

# Settings under `transfer` that only one of the tasks has.
_OF_TASK = {
    "detection": (
        "style",
        "short",
        "long",
        "shapes",
        "finest_stride",
        "frozen_stages",
        "batch_norm",
    ),
    "pose": ("input_size", "sigma", "augmentation", "flip_test", "soft_nms", "boxes"),
}


def usual_rates(config: TrainConfig) -> tuple[float, float]:
    """Return learning rate and weight decay that the recipe has for the optimizer.

    Raises:
      UserError: the recipe or the optimizer is unknown.
    """
    _, recipe = recipe_of(config.task, config.recipe, config.dataset)
    batch_size = first(config.batch_size, recipe.batch_size)
    return _rates(recipe, optim.optimizer_info(config.opt), batch_size)


def _rates(recipe: TransferRecipe, optimizer: OptimizerInfo, batch: int) -> tuple[float, float]:
    rate, decay = recipe.rates.get(
        optimizer.name,
        (optimizer.default_learning_rate * recipe.rate_factor, optimizer.default_weight_decay),
    )
    if recipe.scaled_batch and optimizer.name == "sgd":
        rate *= batch / recipe.scaled_batch
    return rate, decay


def resolve(config: TrainConfig, dataset: AnnotatedDataset, images: int) -> ResolvedConfig:
    """Return the values of a run: those of the config, else of the recipe of its task.

    Args:
      config: of a run of detection or pose estimation.
      dataset: its data.
      images: number of training examples.

    Raises:
      UserError: the recipe is unknown, a setting has no meaning for the task, or the batch does not
        divide into the parts that are asked for.
    """
    check_arguments(config)
    _refuse(config)
    name, recipe = recipe_of(config.task, config.recipe, config.dataset)
    optimizer = optim.optimizer_info(config.opt)
    epochs = first(config.epochs, recipe.epochs)
    batch_size = first(config.batch_size, recipe.batch_size)
    check_parts(config, batch_size)
    rate, decay = _rates(recipe, optimizer, batch_size)
    step, schedule = config.step, config.schedule
    ema = step.ema or None
    special = (_of_detector if config.task == "detection" else _of_pose)(config, recipe)
    side = special["short"][1] if config.task == "detection" else special["input_size"][1]
    special["backbone_size"] = _backbone_size(config, side)
    rate, decay, source = from_command(config, rate, decay, f"the recipe {name} for {config.opt}")
    warmup = recipe.warmup_steps * batch_size / images  # in epochs
    return ResolvedConfig(
        recipe=name,
        epochs=epochs,
        batch_size=batch_size,
        image_size=side,
        test_size=side,
        crop_ratio=1.0,
        num_classes=dataset.num_classes,
        learning_rate=rate,
        weight_decay=decay,
        hparams_source=source,
        decay_mask=decay_mask("all", optimizer),
        # An optimizer that keeps its rate, as Schedule-Free, keeps it here.
        schedule=first(
            schedule.name, "step" if optimizer.default_schedule == "cosine" else "constant"
        ),
        warmup_epochs=first(schedule.warmup_epochs, min(warmup, epochs / 10)),
        warmup_start=first(schedule.warmup_start, recipe.warmup_start),
        end_fraction=first(schedule.end_fraction, 0.0),
        cosine_from=first(schedule.cosine_from, "warmup"),
        schedule_by=first(schedule.by, "step"),
        loss="focal" if config.task == "detection" else "heat maps",
        label_smoothing=0.0,
        clip_norm=first(step.clip_norm, recipe.clip_norm) or None,
        ema=ema,
        ema_warmup=ema is not None and first(step.ema_warmup, True),
        mixup=0.0,
        cutmix=0.0,
        repeats=1,
        drop_path=_drop_path(config, recipe),
        precision=precision_of(config),
        host_crop=None,
        augmentation={},
        layer_decay=first(step.layer_decay, _layer_decay(config, recipe)),
        transfer=special,
    )


def _of_detector(config: TrainConfig, recipe: TransferRecipe) -> dict[str, Any]:
    given = config.transfer
    short, long = recipe.short, recipe.long
    if config.image_size is not None:
        factor = config.image_size / recipe.short[1]
        short = (round(recipe.short[0] * factor), config.image_size)
        long = round(recipe.long * factor)
    short = first(given.short, short)
    long = max(first(given.long, long), short[1])
    # Random weights must be trained, and their BatchNorm has no statistics yet.
    pretrained = config.init is not None
    frozen = recipe.frozen_stages.get(_family(config), 0) if pretrained else 0
    return {
        **_common(config, recipe),
        "style": first(given.style, recipe.style),
        "short": list(short),
        "long": long,
        "shapes": first(given.shapes, recipe.shapes),
        "finest_stride": first(given.finest_stride, recipe.finest_stride),
        "frozen_stages": first(given.frozen_stages, frozen),
        "batch_norm": first(given.batch_norm, "statistics" if pretrained else "nothing"),
    }


def _of_pose(config: TrainConfig, recipe: TransferRecipe) -> dict[str, Any]:
    given = config.transfer
    size = recipe.input_size
    if config.image_size is not None:  # the height
        size = (round(size[0] * config.image_size / size[1]), config.image_size)
    return {
        **_common(config, recipe),
        "input_size": list(first(given.input_size, size)),
        "sigma": first(given.sigma, recipe.sigma),
        "augmentation": first(given.augmentation, "1.3"),
    }


def _common(config: TrainConfig, recipe: TransferRecipe) -> dict[str, Any]:
    boundaries = config.schedule.boundaries
    unset = boundaries == type(config.schedule)().boundaries
    return {
        "boundaries": list(recipe.boundaries if unset else boundaries),
        "width": first(config.transfer.width, recipe.width),
    }


def _layer_decay(config: TrainConfig, recipe: TransferRecipe) -> float | None:
    """Return the factor of the recipe, for pre-trained weights."""
    return None if config.init is None else recipe.layer_decay.get(_family(config))


def _drop_path(config: TrainConfig, recipe: TransferRecipe) -> float | None:
    """Return the rate of the recipe for a backbone that has stochastic depth and none given."""
    decides = "drop_path" in MODELS.resolve(config.model).overrides
    given = "drop_path" in config.model_args
    return recipe.drop_path.get(_family(config)) if decides and not given else None


def _family(config: TrainConfig) -> str:
    """Return the letters that a backbone's name begins with: "resnet" of resnet50."""
    found = re.match("[a-z]*", MODELS.canonical(config.model))
    return found[0] if found else ""


def _backbone_size(config: TrainConfig, side: int) -> int:
    """Return the side in pixels that the backbone is built for.

    It decides the stem of some backbones, and the size of tables of positions, which are resized
    when other images are seen.
    """
    recorded = recorded_size(config.init)
    if recorded is not None:
        return recorded
    model = MODELS.resolve(config.model)
    return model.image_size if model.has_position_tables else side


def _refuse(config: TrainConfig) -> None:
    """Refuse settings that only classification has."""
    given = {
        "hparams": config.hparams != "default" and "the paper has published none for this task",
        "on_corrupt": config.on_corrupt != "fail" and "a damaged image ends the run",
        "test_size": config.test_size is not None and "tests resize as training does",
        "data.crop_ratio": config.data.crop_ratio is not None and "images are not cropped",
        "data.dir": config.data.dir is not None and "give coco:PATH, the folder of the data set",
        "data.on_device": config.data.on_device == "yes" and "images are read for each batch",
        "data.repeats": config.data.repeats is not None and "images are not repeated",
        "step.loss": config.step.loss is not None and "the task has its own",
        "step.label_smoothing": config.step.label_smoothing is not None and "there are no labels",
        "step.train": config.step.train is not None and "all is trained but frozen stages",
        "augment": any(
            value not in (None, False) for value in dataclasses.asdict(config.augment).values()
        )
        and "the recipe of the task decides it",
    }
    for setting, why in given.items():
        if why:
            raise UserError(f"{setting} is for classification; for {config.task}, {why}.")
    usual = TransferConfig()
    for task, names in _OF_TASK.items():
        for name in names:
            if task != config.task and getattr(config.transfer, name) != getattr(usual, name):
                raise UserError(f"transfer.{name} is for {task}, not for {config.task}.")
