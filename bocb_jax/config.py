"""The config of a run: typed, frozen settings that are checked when they are made.

A config comes from the command line, from TOML or from Python, goes to `config.json` in the run
directory and comes back from there unchanged. `None` stands for "what the recipe or the optimizer
says"; `bocb_jax.resolve` fills it in.
"""

import ast
import contextlib
import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from bocb_jax.checked import (
    Count,
    CountOrZero,
    Decay,
    FilePath,
    FolderName,
    Fraction,
    FractionBelowOne,
    Minutes,
    NonNegative,
    Number,
    Pixels,
    Rate,
    Rule,
    Seed,
    Share,
    Table,
    Text,
    check,
    misfit,
    no_such_setting,
    read_toml,
    said,
    settings,
)  # fmt: skip
from bocb_jax.errors import UserError

# Present name of a setting -> its earlier one, which files and flags may still use.
EARLIER_NAMES = {"step.precise_bn_batches": "step.settling_batches"}
# Settings that the first version did not have -> the values with which a run is as it was before
# them. Run ids are hashes, so `TrainConfig.identity` leaves a setting out where it has this value.
OMITTED = {
    "init_ema": False,
    "test": True,
    "step.ema_warmup": None,
    "step.train": None,
    "step.layer_decay": None,
    "step.reduce_dtype": "auto",
    "task": "classification",
}
Task = Literal["classification", "detection", "pose"]

Alpha = Annotated[Number, Field(ge=0, le=1000)]
RandAugment = Annotated[
    Text,
    # timm's notation: m magnitude, n operations, p probability, mstd and mmax, inc.
    Field(
        pattern=r"^(none|rand(-(n[1-9]\d?|(m|mstd|mmax)\d{1,3}(\.\d*)?|p[01](\.\d*)?|inc[01]))*)$"
    ),
    Rule("none, or RandAugment in timm's words, such as rand-m9-mstd0.5-inc1"),
]


@settings("data")
class DataConfig:
    """How images are read."""

    dir: Text | None = None  # where TFDS data sets lie; None: TFDS's own default
    split_seed: Seed = 0  # which examples are held out for validation
    workers: Annotated[int, Field(ge=0, le=1024)] = 0  # processes that decode; 0: threads
    on_device: Literal["auto", "yes", "no"] = "auto"  # images live there; auto: if small
    repeats: Count | None = None  # times that an image comes in a row (repeated augmentation)
    # Share of the shorter side of a test image that is kept.
    crop_ratio: Annotated[Number, Field(ge=0.1, le=1)] | None = None


@settings("augment")
class AugmentConfig:
    """What happens to training images. Values that are not given come from the recipe."""

    only: bool = False  # just what is given here, nothing of the recipe's
    # Crop at random from an image with so many more pixels at each side.
    pad: Annotated[int, Field(ge=0, le=256)] | None = None
    pad_mode: Literal["zero", "reflect"] | None = None  # what these pixels are
    # Least and largest share of the area of a random crop.
    resized_crop: tuple[Share, Share] | None = None
    flip: bool | None = None  # random mirroring
    rand_augment: RandAugment | None = None  # such as rand-m9-mstd0.5-inc1; "none" for none
    three_augment: bool | None = None  # grey, solarized or blurred (DeiT III)
    # Largest change of brightness, contrast and saturation.
    color_jitter: Annotated[Number, Field(ge=0, le=10)] | None = None
    erase: Fraction | None = None  # probability that a rectangle becomes noise
    shift: FractionBelowOne | None = None  # largest random shift, as a fraction of the side
    # Largest random rotation, degrees.
    rotate: Annotated[Number, Field(ge=-360, le=360)] | None = None
    scale: FractionBelowOne | None = None  # largest random change of size, as a fraction
    mixup: Alpha | None = None  # alpha of the Beta distribution of Mixup's share; 0: no Mixup
    cutmix: Alpha | None = None  # alpha of that of CutMix; 0: no CutMix

    def __post_init__(self):
        if self.resized_crop is not None:
            least, largest = self.resized_crop
            check(least <= largest, "augment.resized_crop", self.resized_crop,
                   "two rising shares of the area in (0, 1]")  # fmt: skip


@settings("schedule")
class ScheduleConfig:
    """How the learning rate moves."""

    # After the warm-up; None: the optimizer's own, which is the cosine for nearly all.
    name: Literal["cosine", "step", "constant"] | None = None
    warmup_epochs: NonNegative | None = None  # linear
    warmup_start: Fraction | None = None  # where it begins, as a fraction of the peak
    end_fraction: Fraction | None = None  # cosine: where it ends, as a fraction of the peak
    cosine_from: Literal["start", "warmup"] | None = None  # of the run, or the end of the warm-up
    by: Literal["step", "epoch"] | None = None  # how often the cosine moves
    boundaries: tuple[Number, ...] = (0.5, 0.75)  # step: where, as fractions of the run
    factor: Rate = 0.1  # step: what the rate is multiplied by at each

    def __post_init__(self):
        inside = all(0 < boundary < 1 for boundary in self.boundaries)
        rising = list(self.boundaries) == sorted(set(self.boundaries))
        check(inside and rising, "schedule.boundaries", self.boundaries, "rising, inside (0, 1)")


@settings("step")
class StepConfig:
    """What one training step does beside the plain gradient."""

    loss: Literal["cross_entropy", "bce", "bce_sum"] | None = None  # bce: mean over the classes
    label_smoothing: FractionBelowOne | None = None  # share of the label spread over all classes
    clip_norm: NonNegative | None = None  # largest global norm of the gradient; 0: no clipping
    accumulate: Count = 1  # parts that a batch is split into, one after another
    ema: FractionBelowOne | None = None  # decay of the moving average of the weights; 0: none
    # Let that decay grow from 0 to `ema`, as timm's `use_warmup` does, so that the average of a
    # short run forgets the random start. None: yes, unless the recipe sets `ema` and the run is at
    # least as long as the recipe.
    ema_warmup: bool | None = None
    # Precise BatchNorm: training batches that update the running statistics before an evaluation.
    # None: 50 where the weights that are evaluated differ from those that are trained, else 0.
    precise_bn_batches: CountOrZero | None = None
    batch_norm_momentum: Share | None = None  # weight of the newest batch in these statistics
    batch_norm_groups: Count = 1  # parts of a batch with statistics of their own
    # What is trained; the rest keeps its weights and BatchNorm's statistics. None: as the recipe.
    train: Literal["all", "classifier"] | None = None
    layer_decay: Share | None = None  # factor on the learning rate from each layer to the one below
    # Type in which gradients are summed over devices and parts of a batch; auto: in which layers
    # compute, bfloat16 in runs of that precision.
    reduce_dtype: Literal["auto", "float32"] = "auto"


@settings("transfer")
class TransferConfig:
    """What detection and pose estimation have beside the settings of every run.

    Values that are not given come from the recipe of the task.
    """

    # Detection: whose anchors, targets and losses.
    style: Literal["mmdet", "torchvision", "torchvision_v2"] | None = None
    # Detection: range of the shorter side, from which training draws; tests take the upper end.
    short: tuple[Pixels, Pixels] | None = None
    long: Pixels | None = None  # detection: the longer side is at most this
    # Detection: padded shapes that images of all aspects are put into; each is compiled.
    shapes: Annotated[int, Field(ge=1, le=64)] | None = None
    finest_stride: Count | None = None  # detection: of the pyramid's first level, in pixels
    width: Count | None = None  # channels of what is put around the backbone
    # Detection: first stages that are not trained.
    frozen_stages: Annotated[int, Field(ge=0, le=64)] | None = None
    # Detection: what of the backbone's BatchNorm is fixed.
    batch_norm: Literal["nothing", "statistics", "all"] | None = None
    input_size: tuple[Pixels, Pixels] | None = None  # pose: width and height of a crop
    sigma: Annotated[int, Field(ge=1, le=1000)] | None = None  # pose: of Gaussians, on heat maps
    augmentation: Literal["1.3", "0.26"] | None = None  # pose: as this version of MMPose
    flip_test: bool = True  # pose: evaluate the mirrored crop as well
    soft_nms: bool = False  # pose: lower the scores of similar persons, rather than remove them
    boxes: FilePath | None = None  # pose: a detector's boxes of test images; None: annotated ones

    def __post_init__(self):
        if self.short is not None:
            check(self.short[0] <= self.short[1], "transfer.short", self.short,
                   "two rising numbers of pixels")  # fmt: skip


@settings("parallel")
class ParallelConfig:
    """How the run is spread over devices."""

    fsdp: Count = 1  # devices that share one copy of the state; the rest is data parallel
    devices: Count | None = None  # use only the first so many; None: all
    distributed: bool = False  # start jax.distributed; TPU pods, Slurm and the like are found out
    coordinator: Text | None = None  # elsewhere: HOST:PORT of the first process,
    processes: Count | None = None  # how many processes there are,
    process: CountOrZero | None = None  # and which of them this one is
    wait: Annotated[int, Field(ge=1, le=86_400)] = 300  # seconds for all of them to start

    def __post_init__(self):
        address = self.coordinator
        check(address is None or bool(re.fullmatch(r"\S+:\d+", address)), "parallel.coordinator",
               address, "HOST:PORT")  # fmt: skip
        if self.processes is not None and self.process is not None:
            check(self.process < self.processes, "parallel.process", self.process,
                   f"below parallel.processes, {self.processes}")  # fmt: skip


@settings("checkpoint")
class CheckpointConfig:
    """When the state is saved."""

    every_steps: Count | None = None  # None: when `every_seconds` have passed
    # With several processes: at the end of every epoch instead.
    every_seconds: Annotated[Number, Field(gt=0, le=1e9)] = 60.0
    keep: Count = 2  # how many of the latest are kept; the best one is kept besides
    discard: bool = False  # remove them all once the run has ended


@settings("log")
class LogConfig:
    """What is said while the run goes on."""

    every_steps: Count = 10  # steps between lines of metrics.jsonl
    evaluate_every_epochs: Count = 1  # epochs between looks at the validation split
    progress: Literal["auto", "bar", "lines", "none"] = "auto"  # auto: a bar on a terminal
    tensorboard: bool = False  # also write TensorBoard events (extra `tensorboard`)
    wandb: Text | None = None  # Weights & Biases project to write to (extra `wandb`)


@settings()
class TrainConfig:
    """One run: one backbone, one optimizer, one data set, one seed."""

    model: Text = "vit_s"  # a listed backbone, or an import path such as mypkg.nets:MyNet
    opt: Text = "adamw"  # a listed optimizer, or an import path
    # A listed data set, tfds:NAME or folder:PATH; for detection and pose: coco:PATH or shapes, for
    # which --data stands as well.
    dataset: FilePath = "digits"
    recipe: Text = "auto"  # auto: the paper's for the backbone; see `bocb recipes`
    hparams: Literal["default", "paper"] = "default"  # paper: the tuned lr and weight decay
    protocol: Literal["held_out", "paper"] = "held_out"  # paper: tune on the test split, as it did
    init: FilePath | None = None  # weights to start from: .safetensors, .pth or a run directory
    init_ema: bool = False  # of a checkpoint that holds both, take the averaged weights
    pretrained_with: Text | None = None  # the optimizer that trained them; None: as their run says
    epochs: Count | None = None  # passes over the training split
    batch_size: Count | None = None  # over all devices together
    lr: Rate | None = None  # peak learning rate
    weight_decay: Decay | None = None
    seed: Seed = 0  # of the weights, the order of the data, the augmentation and the dropout
    image_size: Pixels | None = None  # side in pixels that the backbone sees
    test_size: Pixels | None = None  # side in pixels in evaluation; None: as in training
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators
    on_corrupt: Literal["fail", "skip"] = "fail"  # an image that cannot be read
    test: bool = True  # evaluate on the test split, once, at the end
    label: Text | None = None  # what tables of results call the backbone; None: its name
    study: Text | None = None  # the study that the run belongs to
    workdir: FilePath = "runs"  # folder of runs, or the run directory itself; a path or a URL
    scratch: FilePath | None = None  # local folder for runs at a URL; None: the user's cache
    run_id: FolderName | None = None  # name of the run directory; None: made from the settings
    resume: bool = True  # continue where an earlier start of the same run stopped
    # Save and stop, as for SIGTERM, so that this start takes no longer; None: no limit.
    max_minutes: Minutes | None = None
    compile_cache: FilePath | None = None  # None: JAX_COMPILATION_CACHE_DIR, or the user's cache
    model_args: Table = dataclasses.field(default_factory=dict)  # --model-args.stem cifar
    opt_args: Table = dataclasses.field(default_factory=dict)  # --opt-args.momentum 0.95
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    step: StepConfig = StepConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()
    task: Task = "classification"  # what the net is trained for
    transfer: TransferConfig = TransferConfig()  # of detection and pose

    def __post_init__(self) -> None:
        if self.task != "classification" and self.dataset == "digits":  # not given
            object.__setattr__(self, "dataset", "shapes")
        if self.init_ema and self.init is None:
            raise UserError("init_ema chooses among the weights of a file; give it as init.")
        if self.pretrained_with is not None and self.init is None:
            raise UserError("pretrained_with is about the weights of a file; give it as init.")

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result: not where it is stored or what is logged."""
        settings = to_dict(self)
        for name in (
            "label",
            "pretrained_with",
            "study",
            "workdir",
            "scratch",
            "run_id",
            "resume",
            "max_minutes",
            "compile_cache",
            "checkpoint",
        ):
            del settings[name]
        for name, value in OMITTED.items():
            table, _, last = name.rpartition(".")
            inner = settings[table] if table else settings
            if inner[last] == value:
                del inner[last]
        for name in ("distributed", "coordinator", "processes", "process", "wait"):
            del settings["parallel"][name]
        for name in ("workers", "on_device"):  # these change no bit of the images
            del settings["data"][name]
        if self.task == "classification":
            del settings["transfer"]
        # The only setting of `log` that decides the result: it decides which weights are best.
        settings["log"] = {"evaluate_every_epochs": self.log.evaluate_every_epochs}
        # Run ids are hashes over these names, so a renamed setting keeps its first one here.
        for new, old in EARLIER_NAMES.items():
            table, _, name = new.rpartition(".")
            inner = settings[table] if table else settings
            inner[old.rpartition(".")[2]] = inner.pop(name)
        return settings

    def folder(self) -> Path:
        """Return the run directory: `workdir` itself if it holds a run, else `workdir/<id>`."""
        workdir = Path(self.workdir)
        if (workdir / "config.json").exists():
            return workdir
        return workdir / (self.run_id or run_id(self))


def with_omitted(identity: dict[str, Any]) -> dict[str, Any]:
    """Return an `identity`, as `config.json` holds it, with the settings of `OMITTED`."""
    found = dict(identity)
    for name, value in OMITTED.items():
        table, _, last = name.rpartition(".")
        if table:
            found[table] = {last: value} | found.get(table, {})
        else:
            found.setdefault(last, value)
    return found


def run_id(config: TrainConfig) -> str:
    """Return a name for the run directory, with a hash over `identity`."""
    canonical = json.dumps(config.identity(), sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    words = (config.dataset, config.model, config.opt, f"s{config.seed}", digest)
    return "-".join(re.sub(r"[^A-Za-z0-9_.@+]+", "_", word).strip("_") for word in words)


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config in plain JSON types; tuples become lists."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: type, settings: dict[str, Any], where: str = "") -> Any:
    """The inverse of `to_dict`; an unknown or misshapen setting is named."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(settings, dict):
        raise UserError(misfit(where.rstrip(".") or "the config", settings, "a table of settings"))
    settings = _with_present_names(settings, where)
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise UserError(no_such_setting([where + name for name in unknown], fields))
    values = {}
    for name, value in settings.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise UserError(
                    f"The setting {where}{name} is a table of settings, not {said(value)}."
                )
            value = from_dict(type(default), value, f"{where}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    return kind(**values)


def _with_present_names(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Return the settings with earlier names replaced by those of `EARLIER_NAMES`."""
    settings = dict(settings)
    for new, old in EARLIER_NAMES.items():
        table, _, name = old.rpartition(".")
        if name not in settings or where != (f"{table}." if table else ""):
            continue
        value = settings.pop(name)
        present = new.rpartition(".")[2]
        if settings.setdefault(present, value) != value:
            raise UserError(f"{old} is the earlier name of {new}; give only one of them.")
    return settings


def present_flags(arguments: list[str]) -> list[str]:
    """Return command-line arguments with the flags of earlier names replaced by present ones."""
    flags = {f"--{old}": f"--{new}" for new, old in EARLIER_NAMES.items()}
    found = []
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        found.append(
            flags.get(flag.replace("-", "_").replace("__", "--", 1), flag) + equals + value
        )
    return found


def from_toml(path: str, defaults: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read a config from a TOML file, which has the names of the command line.

    Args:
      path: of the file.
      defaults: settings that the file may leave out, where they differ from those of `TrainConfig`.

    Raises:
      UserError: the file cannot be read, or a setting is unknown or out of range.
    """
    found = read_toml(path, "config")
    try:
        return from_dict(TrainConfig, {**(defaults or {}), **found})
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def dotted(words: list[str], table: str) -> tuple[dict[str, Any], list[str]]:
    """Take `--table.name value` and `--table.name=value` out of a command line.

    Args:
      words: of the command line.
      table: "model_args" or the like, whose names no config declares.

    Returns:
      The values by name, and the remaining words.

    Raises:
      UserError: a flag has no value.
    """
    prefix = f"{table}."
    found, remaining = settings_in(words, lambda name: name.startswith(prefix) and name != prefix)
    return {name.removeprefix(prefix): value for name, value in found.items()}, remaining


def settings_in(
    words: list[str], is_wanted: Callable[[str], bool] = bool
) -> tuple[dict[str, Any], list[str]]:
    """Take `--name value` and `--name=value` out of a command line.

    Args:
      words: of the command line.
      is_wanted: whether to take a name, in which "-" is "_" already.

    Returns:
      The values by name, and the remaining words.

    Raises:
      UserError: a flag has no value.
    """
    found: dict[str, Any] = {}
    remaining = []
    words = list(words)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        name = flag[2:].replace("-", "_")
        if not flag.startswith("--") or not is_wanted(name):
            remaining.append(word)
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                raise UserError(f"{flag} needs a value.")
            value = words.pop(0)
        found[name] = value_in(value)
    return found, remaining


def value_in(text: str) -> Any:
    """Return the value of a word: a Python literal, true or false in any case, else its text."""
    with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
        return ast.literal_eval(text)
    return {"true": True, "false": False}.get(text.lower(), text)


def difference(old: dict[str, Any], new: dict[str, Any], where: str = "") -> list[str]:
    """Return a line per setting in which two configs differ: "lr: 0.1 there, 0.2 here"."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{where}{name}.")
        elif before != after:
            lines.append(f"{where}{name}: {before!r} there, {after!r} here")
    return lines
