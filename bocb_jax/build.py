"""From the names in a config to a compiled program.

The one place where model, optimizer, data and engine meet. Everything that trains or measures a
training step starts here.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from bocb_jax import optim
from bocb_jax.augment.mixing import Mixing, mix, smoothed_one_hot
from bocb_jax.augment.preprocess import Augmentation, preprocess
from bocb_jax.checked import misfit
from bocb_jax.config import TrainConfig
from bocb_jax.data.dataset import Dataset
from bocb_jax.engine.own import check_backbone
from bocb_jax.engine.passes import GradientOptions, Passes, Preprocessing
from bocb_jax.engine.population import Population
from bocb_jax.engine.program import CompiledPasses, Program
from bocb_jax.engine.sharding import make_mesh, members_are_split
from bocb_jax.engine.state import Batch
from bocb_jax.engine.steps import Averaging, OptimizerFunctions, Steps
from bocb_jax.engine.task import Classification, Task
from bocb_jax.errors import UserError
from bocb_jax.models import create_model, platform
from bocb_jax.models.factory import MODELS
from bocb_jax.models.layers import BatchNorm
from bocb_jax.models.maps import freeze_all_but_classifier, inspect_maps, layers_of
from bocb_jax.models.parameters import parameter_kinds
from bocb_jax.optim import schedules
from bocb_jax.resolve import ResolvedConfig
from bocb_jax.tasks.kinds import KINDS, AnyDataset
from bocb_jax.tasks.net import Net


@dataclasses.dataclass(frozen=True)
class NetSpec:
    """Everything that is compiled in, but for the optimizer."""

    model: str
    model_args: tuple[tuple[str, Any], ...]
    num_classes: int
    image_size: int
    backbone_size: int  # side in pixels that the backbone is built for
    test_size: int
    crop_ratio: float
    precision: str
    net: Net | None  # around the backbone, for detection and pose estimation
    classification: Classification  # what a backbone alone is trained for
    gradient: GradientOptions
    augmentation: Augmentation
    mixing: Mixing
    mixed_smoothing: float  # label smoothing where batches are mixed
    batch_norm_momentum: float | None
    batch_norm_groups: int
    train: str  # "all", or "classifier"
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fsdp: int
    devices: int | None


@dataclasses.dataclass(frozen=True)
class ProgramSpec(NetSpec):
    """Everything that is compiled in. Learning rate, weight decay and seed are inputs instead."""

    opt: str
    opt_args: tuple[tuple[str, Any], ...]
    schedule: schedules.Schedule  # with a peak of 1
    averaging: Averaging
    layer_decay: float | None  # factor on the learning rate from each layer to the one below

    def without_optimizer(self) -> NetSpec:
        """Return what programs of all optimizers share."""
        return NetSpec(**{f.name: getattr(self, f.name) for f in dataclasses.fields(NetSpec)})


def program_spec(
    config: TrainConfig, resolved: ResolvedConfig, dataset: AnyDataset, steps_per_epoch: int
) -> ProgramSpec:
    """Return the part of a run that is compiled in."""
    model_args, opt_args = dict(config.model_args), dict(config.opt_args)
    if resolved.drop_path is not None:
        model_args["drop_path"] = resolved.drop_path
    opt_args.setdefault("decay_mask", resolved.decay_mask)
    return ProgramSpec(
        model=config.model,
        model_args=hashable("model_args", model_args),
        opt=config.opt,
        opt_args=hashable("opt_args", opt_args),
        num_classes=resolved.num_classes,
        image_size=resolved.image_size,
        backbone_size=(resolved.transfer or {}).get("backbone_size", resolved.image_size),
        test_size=resolved.test_size,
        crop_ratio=resolved.crop_ratio if _has_one_shape(dataset) else 1.0,  # else the host crops
        precision=resolved.precision,
        schedule=_schedule(config, resolved, steps_per_epoch),
        net=KINDS[config.task].net(config, resolved, dataset),
        # Mixed targets are smooth already.
        classification=Classification(
            resolved.loss, 0.0 if resolved.mixup or resolved.cutmix else resolved.label_smoothing
        ),
        gradient=_filled(GradientOptions, config, resolved),
        averaging=_filled(Averaging, config, resolved),
        augmentation=Augmentation(**resolved.augmentation),
        mixing=Mixing(resolved.mixup, resolved.cutmix),
        mixed_smoothing=resolved.label_smoothing,
        batch_norm_momentum=config.step.batch_norm_momentum,
        batch_norm_groups=config.step.batch_norm_groups,
        train=resolved.train,
        layer_decay=resolved.layer_decay,
        mean=tuple(dataset.mean),
        std=tuple(dataset.std),
        fsdp=config.parallel.fsdp,
        devices=config.parallel.devices,
    )


def _has_one_shape(dataset: AnyDataset) -> bool:
    return isinstance(dataset, Dataset) and dataset.image_shape is not None


def _schedule(
    config: TrainConfig, resolved: ResolvedConfig, steps_per_epoch: int
) -> schedules.Schedule:
    """Return the learning-rate schedule of a run, with a peak of 1."""
    total = resolved.epochs * steps_per_epoch
    warmup = round(resolved.warmup_epochs * steps_per_epoch)
    start = resolved.warmup_start
    if resolved.schedule == "cosine":
        return schedules.warmup_cosine(
            1.0,
            warmup,
            total,
            resolved.end_fraction,
            warmup_start=start,
            from_start=resolved.cosine_from == "start",
            every=steps_per_epoch if resolved.schedule_by == "epoch" else 1,
        )
    if resolved.schedule == "step":
        shares = (resolved.transfer or {}).get("boundaries", config.schedule.boundaries)
        boundaries = tuple(round(share * total) for share in shares)
        factor = config.schedule.factor
        return schedules.step_decay(1.0, boundaries, factor, warmup, warmup_start=start)
    return schedules.constant(1.0, warmup, warmup_start=start)


def _filled(options: type[Any], config: TrainConfig, resolved: ResolvedConfig) -> Any:
    """Fill a dataclass of options by name: from the resolved config, else from `config.step`."""
    given = dataclasses.asdict(config.step) | dataclasses.asdict(resolved)
    if resolved.precision == "float32":
        given["reduce_dtype"] = "auto"  # the same program
    return options(**{f.name: given[f.name] for f in dataclasses.fields(options)})


def hashable(table: str, arguments: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the items, sorted; lists, as TOML and JSON have them, become tuples.

    Args:
      table: name of the arguments, for messages.
      arguments: of a model or an optimizer.

    Raises:
      UserError: an argument is, or holds, a table.
    """

    found = tuple((name, _tuples(value)) for name, value in sorted(arguments.items()))
    for name, value in found:
        try:
            hash(value)
        except TypeError:
            rule = "text, a truth value, a number, or a list of these"
            raise UserError(misfit(f"{table}.{name}", value, rule)) from None
    return found


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def build_model(spec: NetSpec, rngs: nnx.Rngs, shards: int = 1) -> nnx.Module:
    """Build the net of a spec: its backbone, and what is around it.

    Args:
      spec: of the program.
      rngs: random streams; `params` draws the initial weights.
      shards: devices on which batches lie in equal parts.
    """
    model = build_backbone(spec, rngs)
    if spec.net is not None:
        model = spec.net.around(model, dtype=jnp.dtype(spec.precision), rngs=rngs)
    for _, module in nnx.iter_graph(model):
        if isinstance(module, BatchNorm):
            module.groups = spec.batch_norm_groups
            module.shards = shards
            if spec.batch_norm_momentum is not None:
                module.momentum = spec.batch_norm_momentum
    if spec.train == "classifier":
        freeze_all_but_classifier(model)
    return model


def build_backbone(spec: NetSpec, rngs: nnx.Rngs) -> nnx.Module:
    """Build the backbone of a spec, with its classifier."""
    return create_model(
        spec.model,
        num_classes=spec.num_classes,
        image_size=spec.backbone_size,
        rngs=rngs,
        dtype=jnp.dtype(spec.precision),
        **dict(spec.model_args),
    )


def build_optimizer(
    spec: ProgramSpec,
    parameter_kinds: Any = None,
    lr_multipliers: dict[str, float] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Build the optimizer of a spec.

    Args:
      spec: of the program.
      parameter_kinds: a tree like the parameters; None to infer it from names and shapes.
      lr_multipliers: path of a parameter -> factor on its learning rate; 1 for the others.
    """
    return optim.create_optimizer(
        spec.opt,
        spec.schedule,
        parameter_kinds=parameter_kinds,
        lr_multipliers=lr_multipliers,
        **dict(spec.opt_args),
    )


def lr_multipliers(spec: ProgramSpec, net: Any) -> dict[str, float] | None:
    """Return factors on the learning rates of a backbone that fall from layer to layer below.

    The classifier, or what is around the backbone, has the whole rate, the last block `layer_decay`
    times it.

    Raises:
      UserError: the backbone has no blocks to count.
    """
    if spec.layer_decay is None:
        return None
    backbone, start = (net, ()) if spec.net is None else (net.backbone, ("backbone",))
    layers, top = layers_of(inspect_maps(backbone, spec.image_size, spec.image_size).order)
    if top == 1:
        raise UserError(
            f"layer_decay counts the entries of a backbone's lists, such as blocks; {spec.model} "
            "has no list. Leave layer_decay out."
        )
    return {
        "/".join(map(str, (*start, *path))): spec.layer_decay ** (top - layers.get(path, top))
        for path, node in nnx.iter_graph(backbone)
        if isinstance(node, nnx.Param)
    }


def build_passes(spec: NetSpec, mesh: Mesh) -> Passes:
    """Build what the net of a spec computes, for the devices of a mesh."""

    def create_task(model: nnx.Module) -> Task:
        return spec.classification if spec.net is None else spec.net.task(model)

    def preprocess_train(batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        images, labels = batch["image"], batch["label"]
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

    def preprocess_evaluation(batch: Batch) -> jax.Array:
        return preprocess(
            batch["image"],
            image_size=spec.test_size,
            mean=spec.mean,
            std=spec.std,
            crop_ratio=spec.crop_ratio,
        )

    return Passes(
        functools.partial(build_model, spec, shards=mesh.size),
        Preprocessing(preprocess_train, preprocess_evaluation)
        if spec.net is None
        else spec.net.preprocessing(spec.mean, spec.std),
        create_task,
        spec.gradient,
        platform.target(),
    )


def build_steps(spec: ProgramSpec, passes: Passes) -> Steps:
    """Build the functions of a spec on the passes of its net."""

    def create_optimizer(model: nnx.Module) -> optax.GradientTransformationExtraArgs:
        return build_optimizer(spec, parameter_kinds(model), lr_multipliers(spec, model))

    functions = OptimizerFunctions(
        create_optimizer,
        optim.set_hyperparameters,
        optim.current_learning_rate,
        optim.optimizer_info(spec.opt).evaluation_parameters,
    )
    return Steps(passes, functions, spec.averaging)


def checked_passes(spec: NetSpec, mesh: Mesh) -> Passes:
    """Build what a net computes, and trace a backbone of the user's own; nothing is compiled.

    Raises:
      UserError: the user's own backbone is not what a run can train, or a backbone takes no images
        of the test size.
    """
    passes = build_passes(spec, mesh)
    if spec.net is None and (MODELS.resolve(spec.model).own or spec.test_size != spec.image_size):
        check_backbone(
            passes,
            spec.model,
            num_classes=spec.num_classes,
            image_size=spec.image_size,
            test_size=spec.test_size,
            batch_size=2 * spec.batch_norm_groups,
        )
    return passes


def checked_steps(spec: ProgramSpec, passes: Passes) -> Steps:
    """Build the functions of a run, and trace an optimizer of the user's own.

    Raises:
      UserError: the user's own optimizer is not what a run can train with.
    """
    steps = build_steps(spec, passes)
    if optim.optimizer_info(spec.opt).own:
        _ = steps.asks_for_gradients  # traces an update
    return steps


@functools.lru_cache(maxsize=64)
def compiled_passes(spec: NetSpec) -> CompiledPasses:
    """Return the passes of a net. Programs of all optimizers on it share their compilation.

    Raises:
      UserError: see `checked_passes`.
    """
    mesh = make_mesh(spec.fsdp, spec.devices)
    return CompiledPasses(checked_passes(spec, mesh), mesh)


@functools.lru_cache(maxsize=64)
def compiled_program(spec: ProgramSpec) -> Program:
    """Return the program of a spec. Runs with equal specs share one, and its compilation.

    Raises:
      UserError: see `checked_passes` and `checked_steps`; nothing was compiled.
    """
    passes = compiled_passes(spec.without_optimizer())
    return Program(checked_steps(spec, passes.passes), passes.mesh, passes)


@functools.lru_cache(maxsize=64)
def compiled_population(spec: ProgramSpec, members: int) -> Population:
    """Return the program of `members` runs of a spec that train together."""
    alone = compiled_program(spec)
    split = members_are_split(alone.mesh, members)
    # A device that has members of its own computes what a run on one device does.
    steps = compiled_program(dataclasses.replace(spec, devices=1)).steps if split else alone.steps
    return Population(alone, steps, members)
