"""Fill in what a config leaves open, from the recipe, the optimizer and the backbone.

Nothing is compiled here.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from bocb_jax import optim, paper
from bocb_jax.checked import check, misfit
from bocb_jax.config import TrainConfig
from bocb_jax.data.dataset import Dataset
from bocb_jax.errors import UserError
from bocb_jax.models import platform
from bocb_jax.models.factory import MODELS, ModelEntry
from bocb_jax.optim.registry import OptimizerInfo
from bocb_jax.recipes import Recipe, get_recipe, regime_for
from bocb_jax.run_files import config_of


@dataclasses.dataclass(frozen=True)
class ResolvedConfig:
    """The values of a run that a config may leave open; "resolved" in `config.json`.

    A field that is renamed here needs a line in `engine.run_dir.EARLIER_NAMES`, a new one a line in
    `DEFAULTS_OF_EARLIER_VERSIONS` there, so that runs of earlier versions can be resumed.
    """

    recipe: str
    epochs: int
    batch_size: int
    image_size: int
    test_size: int
    crop_ratio: float
    num_classes: int
    learning_rate: float
    weight_decay: float
    hparams_source: str  # where learning rate and weight decay come from, in words
    decay_mask: str
    schedule: str
    warmup_epochs: float
    warmup_start: float | None
    end_fraction: float
    cosine_from: str
    schedule_by: str
    loss: str
    label_smoothing: float
    clip_norm: float | None
    ema: float | None
    ema_warmup: bool
    mixup: float
    cutmix: float
    repeats: int
    drop_path: float | None  # None if the backbone has none, or `model_args` sets it
    precision: str
    host_crop: tuple[float, float] | None  # shares of the area, if the host crops
    augmentation: dict[str, Any]
    train: str = "all"  # or "classifier"
    layer_decay: float | None = None  # factor on the learning rate from each layer to the one below
    transfer: dict[str, Any] | None = None  # of detection and pose, by the names of `config`


def resolve(config: TrainConfig, dataset: Dataset) -> ResolvedConfig:
    """Return the values of a run: those of the config, else of recipe, optimizer and backbone.

    Raises:
      UserError: the recipe is unknown, the paper has no tuned values for the pair, or the batch
        does not divide into the parts that are asked for.
    """
    model = MODELS.resolve(config.model)
    check_arguments(config)
    if not model.own:
        _check_sizes(config.model_args)
    optimizer = optim.optimizer_info(config.opt)
    side = dataset.image_shape[0] if dataset.image_shape else config.image_size
    regime = regime_for(config.dataset, side)
    name = config.recipe
    if name == "auto":
        name = "digits" if regime == "digits" else model.card.recipe or "pytorch"
    image_size = config.image_size or _input_size(model, regime)
    recipe = get_recipe(name, regime, image_size)
    if config.image_size is None and recipe.keeps_size:
        image_size = recorded_size(config.init) or model.image_size
        recipe = get_recipe(name, regime, image_size)
    if config.image_size is None and recipe.image_size is not None:
        # The recipe may ask for larger images than a small model was made for.
        image_size = min(recipe.image_size, model.image_size)

    epochs = first(config.epochs, recipe.epochs)
    batch_size = first(config.batch_size, recipe.batch_size)
    check_parts(config, batch_size)
    schedule, step, data = config.schedule, config.step, config.data
    ema = first(step.ema, recipe.ema) or None
    recipes_own = step.ema is None and epochs >= recipe.epochs  # plain, as its authors ran it
    augmentation, mixup, cutmix = _augmentation(config, recipe)
    host_crop = None
    if dataset.image_shape is None:
        host_crop = augmentation.pop("resized_crop", None)
    has_drop_path = "drop_path" in model.overrides and "drop_path" not in config.model_args
    learning_rate, weight_decay, source = _rates(config, optimizer, recipe, name)
    return ResolvedConfig(
        recipe=name,
        epochs=epochs,
        batch_size=batch_size,
        image_size=image_size,
        test_size=first(config.test_size, config.image_size, recipe.test_size, image_size),
        crop_ratio=first(data.crop_ratio, recipe.crop_ratio),
        num_classes=dataset.num_classes,
        learning_rate=learning_rate,
        weight_decay=weight_decay,
        hparams_source=source,
        decay_mask=decay_mask(recipe.decay_mask, optimizer),
        schedule=first(schedule.name, optimizer.default_schedule),
        # The warm-up of a recipe is for long runs; it takes at most a tenth of a shorter one.
        warmup_epochs=first(schedule.warmup_epochs, min(recipe.warmup_epochs, epochs / 10)),
        warmup_start=first(schedule.warmup_start, recipe.warmup_start),
        end_fraction=first(schedule.end_fraction, recipe.end_fraction),
        cosine_from=first(schedule.cosine_from, recipe.cosine_from),
        schedule_by=first(schedule.by, recipe.schedule_by),
        loss=first(step.loss, recipe.loss),
        label_smoothing=first(step.label_smoothing, recipe.label_smoothing),
        clip_norm=first(step.clip_norm, recipe.clip_norm) or None,
        ema=ema,
        ema_warmup=ema is not None and first(step.ema_warmup, not recipes_own),
        mixup=mixup,
        cutmix=cutmix,
        repeats=first(data.repeats, recipe.repeats),
        drop_path=recipe.drop_path if has_drop_path else None,
        precision=precision_of(config),
        host_crop=host_crop,
        augmentation=augmentation,
        train=first(step.train, recipe.train),
        layer_decay=first(step.layer_decay, _layer_decay(config, recipe)),
    )


def precision_of(config: TrainConfig) -> str:
    """Return "float32" or "bfloat16"; "auto" is the one that the devices compute faster in."""
    if config.precision != "auto":
        return config.precision
    return "float32" if platform.target() == "cpu" else "bfloat16"


def check_parts(config: TrainConfig, batch_size: int) -> None:
    """Raise UserError unless a batch divides into the parts that are asked for."""
    parts = config.step.accumulate * config.step.batch_norm_groups
    if batch_size % parts:
        raise UserError(
            f"A batch of {batch_size} does not divide into {parts} equal parts, "
            "step.accumulate times step.batch_norm_groups; choose a multiple of it."
        )


def _layer_decay(config: TrainConfig, recipe: Recipe) -> float | None:
    """Return the factor of the recipe, for a ViT with pre-trained weights."""
    is_vit = MODELS.canonical(config.model).partition("_")[0] == "vit"
    rates = recipe.rates.get(optim.optimizer_info(config.opt).name)
    return rates[2] if rates and is_vit and config.init is not None else None


def recorded_size(init: str | None) -> int | None:
    """Return the side in pixels that a run's backbone was built for; None for other weights.

    Args:
      init: what `--init` names: a file, or the folder of a run or of its `checkpoints/best`.
    """
    stored = None if init is None else config_of(init)
    resolved = (stored or {}).get("resolved") or {}
    special = resolved.get("transfer")
    found = special if isinstance(special, dict) else resolved
    size = found.get("backbone_size", found.get("image_size"))
    return size if isinstance(size, int) and 1 <= size <= _MOST_PIXELS else None


# Arguments of models and optimizers that other settings of a run decide.
_DECIDED = {
    "model_args": {
        "num_classes": "the data set decides it",
        "image_size": "give --image-size",
        "dtype": "give --precision",
        "rngs": "give --seed",
        "name": "give --model",
    },
    "opt_args": {
        "learning_rate": "give --lr",
        "lr": "give --lr",
        "weight_decay": "give --weight-decay",
        "schedule": "give --schedule.name",
        "parameter_kinds": "the backbone decides it",
        "name": "give --opt",
    },
}
_MOST_PIXELS = 2048  # of the images of a run that starting weights come from
_MOST, _MOST_DEPTH = 65_536, 1_000  # of a number in `model_args`; blocks are traced one by one


def check_arguments(config: TrainConfig) -> None:
    """Refuse arguments that are not for the model or optimizer to take."""
    for table, decided in _DECIDED.items():
        for name in getattr(config, table):
            if name in decided:
                raise UserError(f"{table}.{name} is not a setting of its own: {decided[name]}.")
    mask = config.opt_args.get("decay_mask", "all")
    if mask not in ("matrices", "all") and not _are_texts(mask):
        raise UserError(misfit("opt_args.decay_mask", mask, "matrices, all, or a list of paths"))
    factors = config.opt_args.get("lr_multipliers")
    if factors is not None:
        raise UserError(
            "opt_args.lr_multipliers is for Python, bocb_jax.create_optimizer; a run has none."
        )


def _check_sizes(model_args: dict[str, Any]) -> None:
    """Refuse sizes of a backbone of ours that are a slip, and would take hours or all memory."""
    for name, value in model_args.items():
        most = _MOST_DEPTH if name.startswith("depth") else _MOST
        too_large = any(isinstance(leaf, int | float) and leaf > most for leaf in _leaves(value))
        check(not too_large, f"model_args.{name}", value, f"at most {most:,}")


def _leaves(value: Any) -> Iterator[Any]:
    """Yield what is in a list, and in the lists within it; another value as it is."""
    if isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner)
    else:
        yield value


def _are_texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def first(*values: Any) -> Any:
    """Return the first value that is not None, or None."""
    return next((value for value in values if value is not None), None)


def _input_size(model: ModelEntry, regime: str) -> int:
    """Return the side in pixels: the paper's for small images, else the backbone's own."""
    made_for = model.image_size
    return made_for if regime == "imagenet" else min(made_for, model.card.input_size)


def _augmentation(config: TrainConfig, recipe: Recipe) -> tuple[dict[str, Any], float, float]:
    """Return the arguments of `Augmentation`, and the alphas of Mixup and CutMix."""
    given = dataclasses.asdict(config.augment)
    only = given.pop("only")
    given = {name: value for name, value in given.items() if value is not None}
    base = {} if only else {**recipe.augmentation, "mixup": recipe.mixup, "cutmix": recipe.cutmix}
    if "resized_crop" in given:
        base.pop("pad", None)
    if "pad" in given:
        base.pop("resized_crop", None)
    if given.get("three_augment") or given.get("color_jitter"):
        base.pop("rand_augment", None)
    merged = base | given
    if merged.get("rand_augment") == "none":
        del merged["rand_augment"]
    return merged, merged.pop("mixup", 0.0), merged.pop("cutmix", 0.0)


def decay_mask(wanted: str, optimizer: OptimizerInfo) -> str:
    """Return "all" if a recipe wants it and weight decay is added to the gradient (L2)."""
    coupled = bool(optimizer.decays) and optimizer.decays[0] == "l2"
    return "all" if wanted == "all" and coupled else "matrices"


def _rates(
    config: TrainConfig, optimizer: OptimizerInfo, recipe: Recipe, name: str
) -> tuple[float, float, str]:
    """Return learning rate, weight decay, and where they come from."""
    rate, decay, source = (
        optimizer.default_learning_rate,
        optimizer.default_weight_decay,
        f"the defaults of {config.opt}",
    )
    if recipe.rates:
        usual = (rate * recipe.rate_factor, decay if recipe.train == "all" else 0.0)
        rate, decay = recipe.rates.get(optimizer.name, usual)[:2]
        source = f"the recipe {name} for {config.opt}"
    if config.hparams == "paper":
        tuned = paper.tuned(config.model, config.opt)
        if tuned is None:
            raise UserError(
                f"The paper has no tuned values for {config.model} with {config.opt}, nor for a "
                "related backbone; leave out --hparams paper, or give --lr and --weight-decay."
            )
        rate, decay = tuned.learning_rate, tuned.weight_decay
        source = "the paper's tuned values" + (
            "" if tuned.exact else f" for {tuned.backbone}, which stands in for {config.model}"
        )
    return from_command(config, rate, decay, source)


def from_command(
    config: TrainConfig, rate: float, decay: float, source: str
) -> tuple[float, float, str]:
    """Return learning rate, weight decay, and where they come from, as the config decides."""
    given = [name for name in ("lr", "weight_decay") if getattr(config, name) is not None]
    if given:
        whole = len(given) == 2
        source = "the command" if whole else f"{source}; {given[0]} from the command"
    return first(config.lr, rate), first(config.weight_decay, decay), source
