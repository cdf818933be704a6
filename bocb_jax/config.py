"""The config of a run: typed, frozen settings that are checked when they are made.

Standard library only. A config comes from the command line, from TOML or from Python, goes to
`config.json` in the run directory and comes back from there unchanged. `None` stands for "what the
recipe or the optimizer says"; `bocb_jax.resolve` fills it in.
"""

import ast
import contextlib
import dataclasses
import hashlib
import itertools
import json
import re
import tomllib
from pathlib import Path
from typing import Any, Literal

from bocb_jax.errors import UserError

# Present name of a setting -> its earlier one, which files and flags may still use.
EARLIER_NAMES = {"step.precise_bn_batches": "step.settling_batches"}


def _check(holds: bool, name: str, value: Any, rule: str) -> None:
    if not holds:
        raise UserError(f"{name} is {value}; it must be {rule}.")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """How images are read."""

    dir: str | None = None  # folder of TFDS data sets; None: TFDS's default
    split_seed: int = 0  # decides which examples are held out for validation
    workers: int = 0  # processes that decode images; 0: threads of this process
    on_device: Literal["auto", "yes", "no"] = (
        "auto"  # keep all images there; auto: if they are small
    )
    repeats: int | None = None  # times each image comes in a row (repeated augmentation)
    crop_ratio: float | None = None  # share of the shorter side of a test image that is kept

    def __post_init__(self) -> None:
        _check(self.workers >= 0, "data.workers", self.workers, "at least 0")
        repeats, ratio = self.repeats, self.crop_ratio
        _check(repeats is None or repeats >= 1, "data.repeats", repeats, "at least 1")
        _check(ratio is None or 0 < ratio <= 1, "data.crop_ratio", ratio, "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Augmentation of training images. Values that are not given come from the recipe."""

    only: bool = False  # ignore the recipe's augmentation
    pad: int | None = None  # pixels added at each side before a random crop
    pad_mode: Literal["zero", "reflect"] | None = None  # value of these pixels
    resized_crop: tuple[float, float] | None = (
        None  # least and largest area of a random crop, as fractions
    )
    flip: bool | None = None  # random mirroring
    rand_augment: str | None = None  # such as rand-m9-mstd0.5-inc1; "none" for none
    three_augment: bool | None = None  # gray, solarize or blur (DeiT III)
    color_jitter: float | None = None  # largest change of brightness, contrast and saturation
    erase: float | None = None  # probability of random erasing
    shift: float | None = None  # largest random shift, as a fraction of the side
    rotate: float | None = None  # largest random rotation, degrees
    scale: float | None = None  # largest random change of scale, as a fraction
    mixup: float | None = None  # alpha of Mixup's Beta distribution; 0: no Mixup
    cutmix: float | None = None  # alpha of CutMix's Beta distribution; 0: no CutMix

    def __post_init__(self) -> None:
        for name in ("shift", "scale"):
            value = getattr(self, name)
            _check(value is None or 0 <= value < 1, f"augment.{name}", value, "in [0, 1)")
        for name in ("pad", "color_jitter", "mixup", "cutmix"):
            value = getattr(self, name)
            _check(value is None or value >= 0, f"augment.{name}", value, "at least 0")
        _check(self.erase is None or 0 <= self.erase <= 1, "augment.erase", self.erase, "in [0, 1]")
        if self.resized_crop is not None:
            least, largest = self.resized_crop
            _check(0 < least <= largest <= 1, "augment.resized_crop", self.resized_crop,
                   "two rising shares of the area in (0, 1]")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule."""

    # After the warm-up; None: the optimizer's default, the cosine for nearly all.
    name: Literal["cosine", "step", "constant"] | None = None
    warmup_epochs: float | None = None  # length of the linear warm-up
    warmup_start: float | None = None  # first learning rate, as a fraction of the peak
    end_fraction: float | None = None  # cosine: last learning rate, as a fraction of the peak
    cosine_from: Literal["start", "warmup"] | None = (
        None  # cosine: start of the run or end of warm-up
    )
    by: Literal["step", "epoch"] | None = None  # how often the learning rate changes
    boundaries: tuple[float, ...] = (0.5, 0.75)  # step: when, as fractions of the run
    factor: float = 0.1  # step: of the learning rate at each boundary

    def __post_init__(self) -> None:
        warmup = self.warmup_epochs
        _check(warmup is None or warmup >= 0, "schedule.warmup_epochs", warmup, "at least 0")
        for name in ("warmup_start", "end_fraction"):
            value = getattr(self, name)
            _check(value is None or 0 <= value <= 1, f"schedule.{name}", value, "in [0, 1]")
        _check(self.factor > 0, "schedule.factor", self.factor, "positive")
        inside = all(0 < boundary < 1 for boundary in self.boundaries)
        rising = list(self.boundaries) == sorted(set(self.boundaries))
        _check(inside and rising, "schedule.boundaries", self.boundaries, "rising, inside (0, 1)")


@dataclasses.dataclass(frozen=True)
class StepConfig:
    """Loss, gradient accumulation, clipping, weight average and BatchNorm of a training step."""

    loss: Literal["cross_entropy", "bce", "bce_sum"] | None = None  # bce: mean over the classes
    label_smoothing: float | None = None  # probability spread over all classes
    clip_norm: float | None = None  # largest global norm of the gradient; 0: no clipping
    accumulate: int = 1  # micro-batches per step (gradient accumulation)
    ema: float | None = None  # decay of the moving average of the weights; 0: no average
    # Precise BatchNorm: training batches that update the running statistics before an evaluation.
    # None: 50 where the weights that are evaluated differ from those that are trained, else 0.
    precise_bn_batches: int | None = None
    batch_norm_momentum: float | None = None  # weight of the newest batch in these statistics
    batch_norm_groups: int = 1  # parts of a batch with statistics of their own

    def __post_init__(self) -> None:
        smoothing = self.label_smoothing
        _check(
            smoothing is None or 0 <= smoothing < 1, "step.label_smoothing", smoothing, "in [0, 1)"
        )
        clip, ema = self.clip_norm, self.ema
        _check(clip is None or clip >= 0, "step.clip_norm", clip, "at least 0")
        _check(self.accumulate >= 1, "step.accumulate", self.accumulate, "at least 1")
        _check(ema is None or 0 <= ema < 1, "step.ema", ema, "in [0, 1)")
        count, momentum = self.precise_bn_batches, self.batch_norm_momentum
        _check(count is None or count >= 0, "step.precise_bn_batches", count, "at least 0")
        _check(momentum is None or 0 < momentum <= 1, "step.batch_norm_momentum", momentum,
               "in (0, 1]")  # fmt: skip
        groups = self.batch_norm_groups
        _check(groups >= 1, "step.batch_norm_groups", groups, "at least 1")


@dataclasses.dataclass(frozen=True)
class ParallelConfig:
    """How the run is distributed over devices and processes."""

    fsdp: int = 1  # devices that shard one copy of the state; the rest is data parallel
    devices: int | None = None  # number of devices to use; None: all
    distributed: bool = False  # start jax.distributed; TPU pods, Slurm and others are detected
    coordinator: str | None = None  # where nothing is detected: HOST:PORT of process 0,
    processes: int | None = None  # the number of processes,
    process: int | None = None  # and the index of this one

    def __post_init__(self) -> None:
        _check(self.fsdp >= 1, "parallel.fsdp", self.fsdp, "at least 1")
        devices = self.devices
        _check(devices is None or devices >= 1, "parallel.devices", devices, "at least 1")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every_steps: int | None = None  # None: go by `every_seconds`
    every_seconds: float = 60.0  # with several processes: at the end of every epoch instead
    keep: int = 2  # number of latest states; the best weights are kept besides
    discard: bool = False  # delete them all at the end of the run

    def __post_init__(self) -> None:
        _check(self.every_steps is None or self.every_steps >= 1, "checkpoint.every_steps",
               self.every_steps, "at least 1")  # fmt: skip
        _check(self.every_seconds > 0, "checkpoint.every_seconds", self.every_seconds, "positive")
        _check(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is logged, and where."""

    every_steps: int = 10  # steps between lines of metrics.jsonl
    evaluate_every_epochs: int = 1  # epochs between evaluations on the validation split
    progress: Literal["auto", "bar", "lines", "none"] = "auto"  # auto: a bar on a terminal
    tensorboard: bool = False  # also write TensorBoard events (extra `tensorboard`)
    wandb: str | None = None  # Weights & Biases project to write to (extra `wandb`)

    def __post_init__(self) -> None:
        _check(self.every_steps >= 1, "log.every_steps", self.every_steps, "at least 1")
        _check(self.evaluate_every_epochs >= 1, "log.evaluate_every_epochs",
               self.evaluate_every_epochs, "at least 1")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run: one backbone, one optimizer, one data set, one seed."""

    model: str = "vit_s"  # a listed backbone, or an import path such as mypkg.nets:MyNet
    opt: str = "adamw"  # a listed optimizer, or an import path
    dataset: str = "digits"  # a listed data set, tfds:NAME or folder:PATH
    recipe: str = "auto"  # auto: the paper's for the backbone; see `bocb recipes`
    hparams: Literal["default", "paper"] = "default"  # paper: the tuned lr and weight decay
    protocol: Literal["held_out", "paper"] = "held_out"  # paper: tune on the test split, as it did
    init: str | None = None  # weights to start from: .safetensors, .pth or a run directory
    epochs: int | None = None  # passes over the training split
    batch_size: int | None = None  # over all devices together
    lr: float | None = None  # peak learning rate
    weight_decay: float | None = None
    seed: int = 0  # of the weights, the order of the data, the augmentation and the dropout
    image_size: int | None = None  # side in pixels that the backbone sees
    test_size: int | None = None  # side in pixels in evaluation; None: as in training
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators
    on_corrupt: Literal["fail", "skip"] = "fail"  # an image that cannot be read
    test: bool = True  # evaluate on the test split, once, at the end
    label: str | None = None  # what tables of results call the backbone; None: its name
    study: str | None = None  # the study that the run belongs to
    workdir: str = "runs"  # folder of runs, or the run directory itself; a path or a URL
    scratch: str | None = None  # local folder for runs at a URL; None: the user's cache
    run_id: str | None = None  # name of the run directory; None: made from the settings
    resume: bool = True  # continue where an earlier start of the same run stopped
    compile_cache: str | None = None  # None: JAX_COMPILATION_CACHE_DIR, or the user's cache
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # --model-args.stem cifar
    opt_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # --opt-args.momentum 0.95
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    step: StepConfig = StepConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self) -> None:
        _check(self.epochs is None or self.epochs >= 1, "epochs", self.epochs, "at least 1")
        size = self.batch_size
        _check(size is None or size >= 1, "batch_size", size, "at least 1")
        _check(self.lr is None or self.lr > 0, "lr", self.lr, "positive")
        decay = self.weight_decay
        _check(decay is None or decay >= 0, "weight_decay", decay, "at least 0")
        for name in ("image_size", "test_size"):
            side = getattr(self, name)
            _check(side is None or side >= 1, name, side, "at least 1")
        _check(0 <= self.seed < 2**32, "seed", self.seed, "in [0, 2**32)")
        if size is not None and size % self.step.accumulate:
            raise UserError(
                f"batch_size is {size}, which step.accumulate={self.step.accumulate} "
                "does not divide."
            )

    def identity(self) -> dict[str, Any]:
        """Return the settings that decide the result: not where it is stored or what is logged."""
        settings = to_dict(self)
        for name in (
            "label",
            "study",
            "workdir",
            "scratch",
            "run_id",
            "resume",
            "compile_cache",
            "checkpoint",
        ):
            del settings[name]
        if self.test:  # absent in the ids of runs made before this setting existed
            del settings["test"]
        for name in ("distributed", "coordinator", "processes", "process"):
            del settings["parallel"][name]
        for name in ("workers", "on_device"):  # these change no bit of the images
            del settings["data"][name]
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
    settings = _with_present_names(settings, where)
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        names = ", ".join(where + name for name in unknown)
        raise UserError(f"There is no setting {names}. There are: {', '.join(fields)}.")
    values = {}
    for name, value in settings.items():
        default = fields[name].default
        if dataclasses.is_dataclass(default):
            if not isinstance(value, dict):
                raise UserError(f"The setting {where}{name} is a table of settings, not {value!r}.")
            value = from_dict(type(default), value, f"{where}{name}.")
        elif isinstance(value, list):
            value = tuple(value)
        values[name] = value
    try:
        return kind(**values)
    except TypeError as error:
        raise UserError(
            f"A setting in {where or 'the config'} has the wrong type: {error}."
        ) from error


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


def from_toml(path: str) -> TrainConfig:
    """Read a config from a TOML file, which has the names of the command line.

    Raises:
      UserError: the file cannot be read, or a setting is unknown or out of range.
    """
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"The config {path} cannot be read: {error.strerror}.") from error
    try:
        return from_dict(TrainConfig, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The config {path} is not valid TOML: {error}.") from error


def dotted(arguments: list[str], name: str) -> dict[str, Any]:
    """Return the values of `--name.key value` and `--name.key=value` on a command line."""
    words = [word for argument in arguments for word in argument.split("=", 1)]
    found = {}
    for word, value in itertools.pairwise([*words, ""]):
        flag, _, key = word.replace("-", "_").partition(".")
        if flag == f"__{name}":
            with contextlib.suppress(ValueError, SyntaxError):
                value = ast.literal_eval(value)
            found[key] = value
    return found


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
