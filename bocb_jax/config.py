"""What a run is: typed, frozen settings, checked when they are made.

Standard library only. A config comes from the command line, from TOML or from Python, goes to
`config.json` in the run's folder and comes back from there unchanged. `None` stands for "what the
recipe of the data set, or the row of the optimizer, says"; `bocb_jax.recipes` resolves it.
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

    dir: str | None = None  # where TFDS data sets lie; None: TFDS's own default
    split_seed: int = 0  # which examples are held out for validation
    workers: int = 0  # processes that decode; 0: threads of this process
    on_device: Literal["auto", "yes", "no"] = "auto"  # images live there; auto: if small
    repeats: int | None = None  # times that an image comes in a row (repeated augmentation)
    crop_ratio: float | None = None  # share of the shorter side of a test image that is kept

    def __post_init__(self):
        _check(self.workers >= 0, "data.workers", self.workers, "at least 0")
        repeats, ratio = self.repeats, self.crop_ratio
        _check(repeats is None or repeats >= 1, "data.repeats", repeats, "at least 1")
        _check(ratio is None or 0 < ratio <= 1, "data.crop_ratio", ratio, "in (0, 1]")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What happens to training images. Values that are not given come from the recipe."""

    only: bool = False  # just what is given here, nothing of the recipe's
    pad: int | None = None  # crop at random from an image with so many more pixels at each side
    pad_mode: Literal["zero", "reflect"] | None = None  # what these pixels are
    resized_crop: tuple[float, float] | None = None  # least and largest share of a random crop
    flip: bool | None = None  # random mirroring
    rand_augment: str | None = None  # such as rand-m9-mstd0.5-inc1; "none" for none
    three_augment: bool | None = None  # grey, solarized or blurred (DeiT III)
    color_jitter: float | None = None  # largest change of brightness, contrast and saturation
    erase: float | None = None  # probability that a rectangle becomes noise
    shift: float | None = None  # largest random shift, as a fraction of the side
    rotate: float | None = None  # largest random rotation, degrees
    scale: float | None = None  # largest random change of size, as a fraction
    mixup: float | None = None  # alpha of the Beta distribution of Mixup's share; 0: no Mixup
    cutmix: float | None = None  # alpha of that of CutMix; 0: no CutMix

    def __post_init__(self):
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
    """How the learning rate moves."""

    # After the warm-up; None: the optimizer's own, which is the cosine for nearly all.
    name: Literal["cosine", "step", "constant"] | None = None
    warmup_epochs: float | None = None  # linear
    warmup_start: float | None = None  # where it begins, as a fraction of the peak
    end_fraction: float | None = None  # cosine: where it ends, as a fraction of the peak
    cosine_from: Literal["start", "warmup"] | None = None  # of the run, or the end of the warm-up
    by: Literal["step", "epoch"] | None = None  # how often the cosine moves
    boundaries: tuple[float, ...] = (0.5, 0.75)  # step: where, as fractions of the run
    factor: float = 0.1  # step: what the rate is multiplied by at each

    def __post_init__(self):
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
    """What one training step does beside the plain gradient."""

    loss: Literal["cross_entropy", "bce", "bce_sum"] | None = None  # bce: mean over the classes
    label_smoothing: float | None = None  # share of the label spread over all classes
    clip_norm: float | None = None  # largest global norm of the gradient; 0: no clipping
    accumulate: int = 1  # parts that a batch is split into, one after another
    ema: float | None = None  # decay of the moving average of the weights; 0: no average
    # Precise BatchNorm: training batches that update the running statistics before an evaluation.
    # None: 50 where the weights that are evaluated differ from those that are trained, else 0.
    precise_bn_batches: int | None = None
    batch_norm_momentum: float | None = None  # weight of the newest batch in these statistics
    batch_norm_groups: int = 1  # parts of a batch with statistics of their own

    def __post_init__(self):
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
    """How the run is spread over devices."""

    fsdp: int = 1  # devices that share one copy of the state; the rest is data parallel
    devices: int | None = None  # use only the first so many; None: all
    distributed: bool = False  # start jax.distributed; TPU pods, Slurm and the like are found out
    coordinator: str | None = None  # elsewhere: HOST:PORT of the first process,
    processes: int | None = None  # how many processes there are,
    process: int | None = None  # and which of them this one is

    def __post_init__(self):
        _check(self.fsdp >= 1, "parallel.fsdp", self.fsdp, "at least 1")
        devices = self.devices
        _check(devices is None or devices >= 1, "parallel.devices", devices, "at least 1")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When the state is saved."""

    every_steps: int | None = None  # None: when `every_seconds` have passed
    every_seconds: float = 60.0  # with several processes: at the end of every epoch instead
    keep: int = 2  # how many of the latest are kept; the best one is kept besides
    discard: bool = False  # remove them all once the run has ended

    def __post_init__(self):
        _check(self.every_steps is None or self.every_steps >= 1, "checkpoint.every_steps",
               self.every_steps, "at least 1")  # fmt: skip
        _check(self.every_seconds > 0, "checkpoint.every_seconds", self.every_seconds, "positive")
        _check(self.keep >= 1, "checkpoint.keep", self.keep, "at least 1")


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is said while the run goes on."""

    every_steps: int = 10  # steps between lines of metrics.jsonl
    evaluate_every_epochs: int = 1  # epochs between looks at the validation split
    progress: Literal["auto", "bar", "lines", "none"] = "auto"  # auto: a bar on a terminal
    tensorboard: bool = False  # also write TensorBoard events (extra `tensorboard`)
    wandb: str | None = None  # Weights & Biases project to write to (extra `wandb`)

    def __post_init__(self):
        _check(self.every_steps >= 1, "log.every_steps", self.every_steps, "at least 1")
        _check(self.evaluate_every_epochs >= 1, "log.evaluate_every_epochs",
               self.evaluate_every_epochs, "at least 1")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run: one backbone, one optimizer, one data set, one seed."""

    model: str = "vit_s"  # a listed backbone, or an import path such as mypkg.nets:MyNet
    opt: str = "adamw"  # a listed optimizer, or an import path
    dataset: str = "digits"  # a listed data set, tfds:NAME or folder:PATH
    recipe: str = "auto"  # auto: the paper's for the backbone; `bocb recipes` lists them
    hparams: Literal["default", "paper"] = "default"  # paper: the tuned lr and weight decay
    protocol: Literal["held_out", "paper"] = "held_out"  # paper: tune on the test split, as it did
    init: str | None = None  # weights to start from: .safetensors, .pth, or a folder of a run
    epochs: int | None = None  # passes over the training split
    batch_size: int | None = None  # over all devices together
    lr: float | None = None  # peak learning rate
    weight_decay: float | None = None
    seed: int = 0  # of the weights, the order of the data, the augmentation and the dropout
    image_size: int | None = None  # side in pixels that the backbone sees
    test_size: int | None = None  # the same in evaluation; None: as in training
    precision: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on accelerators
    on_corrupt: Literal["fail", "skip"] = "fail"  # an image that cannot be read
    test: bool = True  # read the test split, once, at the end
    label: str | None = None  # what tables of results call the backbone; None: its name
    study: str | None = None  # the study that the run belongs to
    workdir: str = "runs"  # where the run's folder goes, or the folder itself; s3://... and so on
    scratch: str | None = None  # where runs at a URL work on this machine; None: the cache folder
    run_id: str | None = None  # the folder's name; None: made from the settings
    resume: bool = True  # go on where an earlier start of the same run stopped
    compile_cache: str | None = None  # None: JAX_COMPILATION_CACHE_DIR, or the user's cache folder
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # --model-args.stem cifar
    opt_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # --opt-args.momentum 0.95
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    step: StepConfig = StepConfig()
    parallel: ParallelConfig = ParallelConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    log: LogConfig = LogConfig()

    def __post_init__(self):
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
        """The settings that decide what comes out: all but where it goes and what is said."""
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
        if self.test:  # so that runs from before there was this setting keep their names
            del settings["test"]
        for name in ("distributed", "coordinator", "processes", "process"):
            del settings["parallel"][name]
        for name in ("workers", "on_device"):  # the same bits whichever way they come
            del settings["data"][name]
        # The other settings of `log` only decide what is said; this one decides what is "best".
        settings["log"] = {"evaluate_every_epochs": self.log.evaluate_every_epochs}
        # Run ids are hashes over these names, so a renamed setting keeps its first one here.
        for new, old in EARLIER_NAMES.items():
            table, _, name = new.rpartition(".")
            inner = settings[table] if table else settings
            inner[old.rpartition(".")[2]] = inner.pop(name)
        return settings

    def folder(self) -> Path:
        """The run's folder: `workdir` itself if it holds a run, else `workdir/<id>`."""
        workdir = Path(self.workdir)
        if (workdir / "config.json").exists():
            return workdir
        return workdir / (self.run_id or run_id(self))


def run_id(config: TrainConfig) -> str:
    """A folder name that says what the run is, with a hash over all that decides its outcome."""
    canonical = json.dumps(config.identity(), sort_keys=True)
    digest = hashlib.sha256(canonical.encode()).hexdigest()[:8]
    words = (config.dataset, config.model, config.opt, f"s{config.seed}", digest)
    return "-".join(re.sub(r"[^A-Za-z0-9_.@+]+", "_", word).strip("_") for word in words)


def to_dict(config: Any) -> dict[str, Any]:
    """Plain JSON types; tuples become lists."""
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
    """A config from a TOML file, with the same names as the command line."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise UserError(f"The config {path} cannot be read: {error.strerror}.") from error
    try:
        return from_dict(TrainConfig, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise UserError(f"The config {path} is not valid TOML: {error}.") from error


def dotted(arguments: list[str], name: str) -> dict[str, Any]:
    """The values of `--name.key value` and `--name.key=value` on a command line."""
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
    """One line for each setting in which two configs differ: "lr: 0.1 there, 0.2 here"."""
    lines = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if isinstance(before, dict) and isinstance(after, dict):
            lines += difference(before, after, f"{where}{name}.")
        elif before != after:
            lines.append(f"{where}{name}: {before!r} there, {after!r} here")
    return lines
