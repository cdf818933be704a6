"""The directory of a run: who owns it, and that only one process writes to it.

config.json      everything needed to repeat the run, with package versions and device
starts.jsonl     one object per start: from which step, on how many devices and processes
dataset.json     what predictions need of the data: normalization, names of the classes, joints
metrics.jsonl    one object per logged step
checkpoints/     see `engine.checkpoint`
pictures/        of detection and pose: predictions beside the truth
result.json      written once, at the end
"""

import contextlib
import dataclasses
import datetime
import importlib.metadata
import logging
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from bocb_jax.config import TrainConfig, difference, run_id
from bocb_jax.engine.processes import are_several
from bocb_jax.errors import UserError
from bocb_jax.run_files import read_config, read_result
from bocb_jax.storage.files import json_line, read_jsonl, write_atomically, write_json
from bocb_jax.storage.lock import is_held, only_writer
from bocb_jax.storage.mirror import mirrored
from bocb_jax.storage.remote import is_url

logger = logging.getLogger(__name__)

LOCK = ".lock"

_PACKAGES = ("bocb-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


# Present field of `ResolvedConfig` -> its name in the config.json of earlier versions, whose runs
# can be resumed. Settings of "config" that were renamed are in `config.EARLIER_NAMES`.
EARLIER_NAMES = {"hparams_source": "rates_from"}
# Field of `ResolvedConfig` that earlier versions did not have -> the value that says what they did.
DEFAULTS_OF_EARLIER_VERSIONS: dict[str, Any] = {
    "ema_warmup": False,
    "train": "all",
    "layer_decay": None,
    "transfer": None,
}


def earlier_defaults(folder: Path) -> dict[str, Any]:
    """Return the resolved values that a run begun by an earlier version has, but did not record.

    Raises:
      UserError: its config.json cannot be read, or a field is missing or of the wrong type.
    """
    earlier = read_config(folder)
    if earlier is None or not (resolved := earlier.get("resolved")):  # not begun
        return {}
    missing = DEFAULTS_OF_EARLIER_VERSIONS.keys() - resolved
    return {name: DEFAULTS_OF_EARLIER_VERSIONS[name] for name in missing}


@contextlib.contextmanager
def claim(
    folder: Path, manifest: dict[str, Any], *, resume: bool, data: dict[str, Any] | None = None
) -> Iterator[None]:
    """Make the folder this run's, or check that it is, and keep other processes out of it.

    Args:
      folder: `runs/<id>`.
      manifest: what `config.json` says of the run: "config", the settings that identify it,
        "resolved", their values, and more.
      resume: whether an existing run may be resumed.
      data: what `dataset.json` says; None for no such file.

    Raises:
      UserError: the folder belongs to another run, is in use, or cannot be written, or its
        config.json cannot be read.
    """
    earlier = read_config(folder)
    _check_settings_known(folder, earlier)
    if earlier is not None:
        _check_same(folder, earlier, manifest, resume)
    taken = f"Another process is writing to {folder}; wait until it has ended."
    with only_writer(folder, LOCK, taken):
        if earlier is None or not earlier.get("resolved"):
            write_json(folder / "config.json", {**manifest, **surroundings()})
        if data is not None and not (folder / "dataset.json").exists():
            write_json(folder / "dataset.json", data)
        yield


def with_other_epochs(config: TrainConfig) -> tuple[TrainConfig, str | None]:
    """Give a run a folder of its own if it is an ended run but for the number of epochs.

    Its learning-rate schedule is another from the first step on, so it cannot go on from there.

    Returns:
      The config, with another `run_id` if its own is that of the ended run, and a sentence for the
      user when the new run has not begun yet.
    """
    folder = config.folder()
    if config.epochs is None or is_url(config.workdir) or are_several(config.parallel):
        return config, None
    if (folder / "config.json").exists():
        ended = folder if _ended_epochs(folder, config) else None
    else:
        alike = sorted(folder.parent.glob(f"{run_id(config).rpartition('-')[0]}-*"))
        ended = max(alike, key=lambda other: _ended_epochs(other, config), default=None)
    if ended is None or not (epochs := _ended_epochs(ended, config)):
        return config, None
    if ended == folder:
        folder = folder.with_name(f"{folder.name}-epochs{config.epochs}")
        config = dataclasses.replace(config, workdir=str(folder.parent), run_id=folder.name)
        if (folder / "config.json").exists():
            return config, None
    return config, (
        f"{ended} ended after {epochs} epochs. With {config.epochs} the learning-rate schedule is "
        f"another, so this is a new run, from the start: {folder}. To go on from the weights of "
        f"the other, stop this one and add --init {ended}."
    )


def _ended_epochs(folder: Path, config: TrainConfig) -> int:
    """Return the epochs of a finished run that is `config` but for these, else 0."""
    try:
        earlier, result = read_config(folder), read_result(folder)
    except UserError:  # damaged
        return 0
    if earlier is None or result is None or result["status"] != "finished":
        return 0
    epochs = (earlier.get("resolved") or {}).get("epochs") or 0
    same = {**earlier["config"], "epochs": None} == {**config.identity(), "epochs": None}
    return epochs if same and 0 < epochs != config.epochs else 0


def with_other_devices(config: TrainConfig) -> TrainConfig:
    """Return the config with the folder of the same run, begun on other devices and not ended.

    The run id is a hash over all settings, `parallel.fsdp` and `parallel.devices` among them. They
    change no more than rounding, so a run may go on with others.
    """
    folder = config.folder()
    if config.run_id or is_url(config.workdir) or (folder / "config.json").exists():
        return config
    alike = folder.parent.glob(f"{run_id(config).rpartition('-')[0]}-*")
    begun = [other for other in alike if _is_left(other, config)]
    return dataclasses.replace(config, run_id=begun[0].name) if len(begun) == 1 else config


def _is_left(folder: Path, config: TrainConfig) -> bool:
    """Whether a folder holds a run that is `config` on other devices, and nobody trains it."""
    try:
        earlier, result = read_config(folder), read_result(folder)
    except UserError:  # damaged
        return False
    if earlier is None or not earlier.get("resolved"):
        return False
    ended = result is not None and result["status"] in ("finished", "diverged")
    same = _on_any_devices(earlier["config"]) == _on_any_devices(config.identity())
    return same and not ended and not is_held(folder, LOCK)


def _on_any_devices(identity: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a run without those that say on which devices it is trained."""
    return {name: value for name, value in identity.items() if name != "parallel"}


def note_start(folder: Path, step: int, devices: int, fsdp: int) -> str | None:
    """Add a line to `starts.jsonl`.

    Args:
      folder: of the run.
      step: that it goes on from.
      devices: that it uses.
      fsdp: how many of them share one copy of the state.

    Returns:
      A sentence for the user if the last start was on others, else None.
    """
    now = {"devices": devices, "processes": jax.process_count(), "fsdp": fsdp}
    about = {"platform": jax.devices()[0].platform, "kind": jax.devices()[0].device_kind}
    at = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    path = folder / "starts.jsonl"
    starts = read_jsonl(path)
    lines = [*starts, {"at": at, "step": step, **now, **about}]
    write_atomically(path, "".join(map(json_line, lines)))
    before = {name: starts[-1].get(name) for name in now} if starts else now
    if before == now or not step:
        return None
    return f"The run goes on with {_listed(now)}; its last start had {_listed(before)}."


def _listed(start: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in start.items())


@contextlib.contextmanager
def working_here(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield the config with which a run at a URL trains on this machine's disk.

    The run's files are sent to the URL inside the block and at its end.

    Raises:
      FolderInUse: another process, on this machine or another, is training the run.
      UserError: the URL cannot be read or written, or the run spans several processes.
    """
    if are_several(config.parallel):
        raise UserError(
            f"The workdir is {config.workdir}, but the processes of one run need a folder that all "
            "of them see; give a path on a shared file system."
        )
    name = config.run_id or run_id(config)
    with mirrored(config.workdir, name, config.scratch) as folder:
        yield dataclasses.replace(config, workdir=str(folder.parent), run_id=folder.name)


def surroundings() -> dict[str, Any]:
    """Return the versions of Python and packages, and the devices."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = {
        "platform": jax.devices()[0].platform,
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
    return {"versions": versions, "device": device}


def _check_settings_known(folder: Path, earlier: dict[str, Any] | None) -> None:
    """Raise UserError if a run was trained in a folder, and its config.json does not say how."""
    if earlier and earlier.get("resolved"):
        return
    trained = [*folder.glob("checkpoints/*/[0-9]*"), *folder.glob("metrics.jsonl")]
    if earlier is None:
        trained += folder.glob("result.json")
    if trained:
        lost = "is gone" if earlier is None else "has lost its settings"
        raise UserError(
            f"{folder} holds a run ({trained[0].relative_to(folder)}), but its config.json {lost}; "
            "nothing was written. Restore that file, or choose another --workdir or --run-id to "
            "train the run anew."
        )


def _check_same(
    folder: Path, earlier: dict[str, Any], manifest: dict[str, Any], resume: bool
) -> None:
    """Raise UserError unless `earlier`, the content of config.json, is of the same run."""
    # A start that failed early has written no resolved values.
    resolved = _with_present_names(earlier.get("resolved") or manifest["resolved"])
    differing = difference(_on_any_devices(earlier["config"]), _on_any_devices(manifest["config"]))
    differing += difference(resolved, _with_present_names(manifest["resolved"]))
    if differing:
        listed = "\n  ".join(differing)
        raise UserError(
            f"{folder} holds a run with other settings; nothing was written. They differ in\n"
            f"  {listed}\nChoose another --workdir or --run-id."
        )
    if not resume:
        raise UserError(
            f"{folder} already holds this run, and --no-resume asks for a new one; nothing was "
            "written. Choose another --workdir or --run-id."
        )
    changed = difference(earlier.get("versions", {}), surroundings()["versions"])
    if changed:
        logger.warning(
            "The package versions differ from those at the start of the run: %s.",
            "; ".join(changed),
        )


def _with_present_names(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return resolved values with present names, and the earlier defaults of missing ones."""
    present = {old: new for new, old in EARLIER_NAMES.items()}
    found = {present.get(name, name): value for name, value in resolved.items()}
    return DEFAULTS_OF_EARLIER_VERSIONS | found
