"""The directory of a run: who owns it, and that only one process writes to it.

config.json      everything needed to repeat the run, with package versions and device
metrics.jsonl    one object per logged step
checkpoints/     see `engine.checkpoint`
result.json      written once, at the end
"""

import contextlib
import dataclasses
import glob
import importlib.metadata
import logging
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from bocb_jax.config import TrainConfig, difference, run_id
from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json, write_json
from bocb_jax.storage.lock import only_writer
from bocb_jax.storage.mirror import mirrored

logger = logging.getLogger(__name__)

_PACKAGES = ("bocb-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


# Present field of `ResolvedConfig` -> its name in the config.json of earlier versions, whose runs
# can be resumed. Settings of "config" that were renamed are in `config.EARLIER_NAMES`.
EARLIER_NAMES = {"hparams_source": "rates_from"}


@contextlib.contextmanager
def claim(folder: Path, manifest: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """Make the folder this run's, or check that it is, and keep other processes out of it.

    Args:
      folder: `runs/<id>`.
      manifest: what `config.json` says of the run: "config", the settings that identify it,
        "resolved", their values, and more.
      resume: whether an existing run may be resumed.

    Raises:
      UserError: the folder belongs to another run, is in use, or cannot be written.
    """
    path = folder / "config.json"
    earlier = read_json(path)
    _check_settings_known(folder, earlier)
    if earlier is not None:
        _check_same(folder, earlier, manifest, resume)
    taken = f"Another process is writing to {folder}; wait until it has ended."
    with only_writer(folder, ".lock", taken):
        if earlier is None or earlier.get("resolved") is None:
            write_json(path, {**manifest, **surroundings()})
        yield


@contextlib.contextmanager
def working_here(config: TrainConfig) -> Iterator[TrainConfig]:
    """Yield the config with which a run at a URL trains on this machine's disk.

    The run's files are sent to the URL inside the block and at its end.

    Raises:
      FolderInUse: another process, on this machine or another, is training the run.
      UserError: the URL cannot be read or written, or the run spans several processes.
    """
    parallel = config.parallel
    if parallel.distributed or parallel.coordinator:
        raise UserError(
            f"The workdir is {config.workdir}, but the processes of one run need a folder that all "
            "of them see; give a path on a shared file system."
        )
    name = config.run_id or run_id(config)
    with mirrored(config.workdir, name, config.scratch) as folder:
        yield dataclasses.replace(config, workdir=str(folder.parent), run_id=folder.name)


def ended_with_other_epochs(config: TrainConfig) -> Path | None:
    """Return the directory of an ended run that differs from a new one in its epochs alone."""
    folder, wanted = config.folder(), config.identity()
    if (folder / "config.json").exists():
        return None
    alike = f"{glob.escape(run_id(config).rpartition('-')[0])}-*/result.json"
    for path in sorted(folder.parent.glob(alike)):
        with contextlib.suppress(UserError):  # of a damaged one, which is not this run's business
            recorded, result = read_json(path.with_name("config.json")), read_json(path)
            settings = (recorded or {}).get("config")
            if not isinstance(settings, dict) or (result or {}).get("status") != "finished":
                continue
            if {**settings, "epochs": None} == {**wanted, "epochs": None}:
                return path.parent
    return None


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
    if earlier and isinstance(earlier.get("config"), dict) and earlier.get("resolved"):
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
    differing = difference(earlier.get("config", {}), manifest["config"])
    differing += difference(resolved, manifest["resolved"])
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
    """Return resolved values with the names of `EARLIER_NAMES` replaced."""
    present = {old: new for new, old in EARLIER_NAMES.items()}
    return {present.get(name, name): value for name, value in resolved.items()}
