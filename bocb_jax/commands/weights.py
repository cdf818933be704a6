"""PyTorch weights in and out: `bocb import-weights FILE --model NAME`, `bocb export-weights RUN`.

Imported weights become a folder like a run directory: `config.json` names the model, and the
weights are in `checkpoints/best`. So `train --init` and `export-weights` take either.
"""

import contextlib
import dataclasses
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro
from flax import nnx
from safetensors import SafetensorError
from safetensors.numpy import save_file
from tyro.conf import Positional

from bocb_jax import command_line, torch_weights
from bocb_jax.config import dotted
from bocb_jax.console import console
from bocb_jax.engine import run_dir
from bocb_jax.engine.checkpoint import Checkpoints, read_best
from bocb_jax.engine.passes import weights_of
from bocb_jax.errors import UserError
from bocb_jax.models import create_model
from bocb_jax.models.factory import MODELS, ModelEntry
from bocb_jax.models.recorded import Shapes, recorded_builder
from bocb_jax.prediction.nets import net_of
from bocb_jax.prediction.recorded import Record, read_record
from bocb_jax.run_files import read_config
from bocb_jax.storage.files import write_json
from bocb_jax.weight_files.read import read_weights


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """Turn a file of PyTorch weights into a folder for `train --init` and `export-weights`."""

    file: Positional[str]  # .safetensors, .pth, .pt, .bin or .ckpt
    model: str  # the backbone that the weights belong to
    out: str | None = None  # the new folder; None: weights/MODEL
    image_size: int | None = None  # pixels that the weights are for; None: the model's default
    init_ema: bool = False  # of a checkpoint that holds both, take the averaged weights
    model_args: dict[str, Any] = dataclasses.field(default_factory=dict)  # --model-args.stem cifar


@dataclasses.dataclass(frozen=True)
class ExportOptions:
    """Write the best weights of a run to a file with PyTorch's names."""

    run: Positional[str]  # a run directory, or a folder that import-weights made
    # The library whose names to use; a backbone has those of its reference only. A detector has
    # MMDetection's unless torchvision's are asked for, a pose net has MMPose's.
    to: Literal["timm", "torchvision", "official"] | None = None
    backbone: bool = False  # of a detector or a pose net, the backbone alone
    out: str | None = None  # the new file; None: RUN/MODEL.safetensors
    # The import path of the run's backbone, if it is one of yours. A run directory may come from
    # somebody else, so the path in its config.json is not followed.
    model: str | None = None


def import_main(arguments: list[str]) -> int:
    """Import weights as the command line says, and return the exit code."""
    model_args, arguments = dotted(arguments, "model_args")
    default = ImportOptions(tyro.MISSING, tyro.MISSING, model_args=model_args)
    print(
        import_weights(
            command_line.parse(
                ImportOptions, arguments, prog="bocb import-weights", default=default
            )
        )
    )
    return 0


def export_main(arguments: list[str]) -> int:
    """Export weights as the command line says, and return the exit code."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors; ours is one sentence
    print(export_weights(command_line.parse(ExportOptions, arguments, prog="bocb export-weights")))
    return 0


def import_weights(options: ImportOptions) -> Path:
    """Read a file of PyTorch weights into a new folder, and return the folder.

    The number of classes is that of the classifier in the file.

    Raises:
      UserError: the file cannot be read or belongs to another model, or the folder exists.
    """
    entry = MODELS.resolve(options.model)
    out = _new(Path(options.out or Path("weights") / entry.name))
    size = entry.image_size if options.image_size is None else options.image_size
    if size < 1:
        raise UserError(f"image_size is {size}; it must be at least 1.")
    weights = read_weights(options.file, ema=options.init_ema, say=_say)
    # The classifier's width is known once the names are.
    model = _abstract(options.model, 1000, size, options.model_args)
    named = torch_weights.without_prefix(model, weights, _say)
    num_classes = _num_classes(model, named)
    if num_classes != 1000:
        model = _abstract(options.model, num_classes, size, options.model_args)
    torch_weights.load_torch_weights(model, named, say=_say)
    with contextlib.closing(Checkpoints(out / "checkpoints")) as checkpoints:
        checkpoints.save_best(0, weights_of(model), {})
        checkpoints.wait()
    config = {"model": options.model, "model_args": options.model_args, "init": options.file}
    resolved = {"num_classes": num_classes, "image_size": size}
    write_json(
        out / "config.json", {"config": config, "resolved": resolved, **run_dir.surroundings()}
    )
    return out


def export_weights(options: ExportOptions) -> Path:
    """Write a run's best weights to a new `.safetensors` file, and return the file.

    In PyTorch: `model.load_state_dict(safetensors.torch.load_file(path))`, strictly; a backbone
    that was a part of a net has no classifier.

    Raises:
      UserError: the run has no weights, the model has no names of that library, or the file exists.
    """
    run = Path(options.run)
    stored = read_config(run)
    if stored is None:
        raise UserError(f"{run} is not a run directory: there is no config.json in it.")
    name = stored["config"]["model"]
    record = read_record(run, stored, recorded_entry(name, options.model))
    file_name = re.sub(r"[^A-Za-z0-9_.-]+", "_", MODELS.canonical(name))
    out = _new(Path(options.out or run / f"{file_name}.safetensors"))
    if record.task == "classification":
        if options.backbone:
            raise UserError(f"{run} is a backbone already; leave out --backbone.")
        state = _backbone_state(record, options.to)
    else:
        state = _net_state(record, options)
    # Readers of PyTorch weights look for "format" in the metadata.
    metadata = {"format": "pt", "model": name}
    # Written beside it first, so that a full disk leaves no file that looks whole.
    temporary = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        save_file(state, temporary, metadata)
        os.replace(temporary, out)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"{out} cannot be written: {error}.") from error
    return out


def _backbone_state(record: Record, to: str | None) -> dict[str, np.ndarray]:
    """Return the arrays of a classifier by PyTorch's names."""
    weights = read_best(record.folder)
    model = _recorded_model(record, {key: array.shape for key, array in weights.items()})
    _check_names(model, record, to)
    torch_weights.load_weights(model, weights)
    return torch_weights.to_torch_state_dict(model)


def _net_state(record: Record, options: ExportOptions) -> dict[str, np.ndarray]:
    """Return the arrays of a detector, a pose net, or the backbone of one, by PyTorch's names."""
    net = net_of(record)
    assert net is not None  # of another task than classification
    model: Any = record.load(net)[0]
    state = torch_weights.to_torch_state_dict(model)
    if options.backbone:
        _check_names(model.backbone, record, options.to)
        start = "backbone."
        return {n.removeprefix(start): a for n, a in state.items() if n.startswith(start)}
    if options.to is None:
        return state
    if options.to != "torchvision" or record.task != "detection":
        theirs = "MMDetection, or of torchvision," if record.task == "detection" else "MMPose"
        raise UserError(
            f"{record.folder} is a net for {record.task}, whose weights have the names of {theirs} "
            f"around the backbone; those of {options.to} are for --backbone."
        )
    _check_names(model.backbone, record, options.to)
    return {net.other_name(name): array for name, array in state.items()}


def _check_names(model: nnx.Module, record: Record, to: str | None) -> None:
    """Refuse the names of a library that a backbone does not have."""
    known = getattr(type(model), "torch_sources", ())
    if to and to not in known:
        name = record.config["model"]
        has = f"those of {' and '.join(known)}" if known else "its own"
        raise UserError(f"The weights of {name} cannot have the names of {to}, only {has}.")


def _say(text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _abstract(
    name: str, num_classes: int, image_size: int, model_args: dict[str, Any]
) -> nnx.Module:
    """Build a model with shapes for parameters."""
    return nnx.eval_shape(
        lambda: create_model(
            name, num_classes=num_classes, image_size=image_size, rngs=nnx.Rngs(0), **model_args
        )
    )


def recorded_entry(name: str, given: str | None) -> ModelEntry:
    """Return the backbone that a run names; an import path counts only if it is given too.

    Args:
      name: in the record of the run.
      given: what the user calls it, if anything.

    Raises:
      UserError: it is an import path that was not given, or was given otherwise.
    """
    if given is None:
        if ":" in name and name not in MODELS:
            raise UserError(
                f"The run's backbone is {name}, which is not registered, and nothing that a run "
                f"names is imported. If it is yours, add --model {name}."
            )
        return MODELS.get(name)
    if MODELS.canonical(given) != MODELS.canonical(name):
        raise UserError(f"--model is {given}, but the run is one of {name}.")
    return MODELS.resolve(given)


def _recorded_model(record: Record, shapes: Shapes) -> nnx.Module:
    """Build the backbone of a run, with shapes for parameters."""
    build = recorded_builder(
        record.entry,
        record.config.get("model_args") or {},
        num_classes=record.resolved.get("num_classes"),
        image_size=record.resolved.get("image_size"),
        shapes=shapes,
    )
    return nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))


def _num_classes(model: nnx.Module, weights: Mapping[str, np.ndarray]) -> int:
    """Return the width of the classifier in a file, or 1000 if it has none."""
    for path, variable in torch_weights.variables(model):
        if variable.get_metadata().get("kind") == "head":
            found = weights.get(torch_weights.torch_name(model, path, variable))
            return len(found) if found is not None and found.ndim and len(found) else 1000
    return 1000


def _new(path: Path) -> Path:
    if path.exists():
        raise UserError(f"{path} exists already; nothing was written. Choose another --out.")
    return path
