"""A run's folder: whose it is, that nobody else writes to it, and how the run ended.

config.json      everything needed to repeat the run, with package versions and device
metrics.jsonl    one object a log step
checkpoints/     see `engine.checkpoint`
result.json      written once, at the end
"""

import contextlib
import dataclasses
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


@contextlib.contextmanager
def claim(folder: Path, settings: dict[str, Any], *, resume: bool) -> Iterator[None]:
    """Makes the folder this run's, or checks that it is, and keeps others out of it.

    Args:
      folder: `runs/<id>`.
      settings: "config" as asked for and "resolved" as it came out.
      resume: whether a folder that is there already may be gone on with.

    Raises:
      UserError: the folder is another run's, is in use, or cannot be written.
    """
    record = folder / "config.json"
    earlier = read_json(record)
    if earlier is not None:
        _check_same(folder, earlier, settings, resume)
    taken = f"Another process is writing to {folder}; wait for it."
    with only_writer(folder, ".lock", taken):
        if earlier is None or earlier.get("resolved") is None:
            write_json(record, {**settings, **surroundings()})
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


def surroundings() -> dict[str, Any]:
    """Package versions and devices."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    device = {
        "platform": jax.default_backend(),
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
    return {"versions": versions, "device": device}


def _check_same(folder: Path, earlier: dict[str, Any], settings: dict[str, Any], resume: bool):
    differing = difference(earlier.get("config", {}), settings["config"])
    # None: the earlier start failed before it had these.
    differing += difference(earlier.get("resolved") or settings["resolved"], settings["resolved"])
    if differing:
        listed = "\n  ".join(differing)
        raise UserError(
            f"{folder} holds a run with other settings; nothing was written. They differ in\n"
            f"  {listed}\nChoose another --workdir or --run-id."
        )
    if not resume:
        raise UserError(
            f"{folder} holds this run already, and --no-resume asks for a new one; nothing was "
            "written. Choose another --workdir or --run-id."
        )
    changed = difference(earlier.get("versions", {}), surroundings()["versions"])
    if changed:
        logger.warning(
            "Other package versions than at the start of the run: %s.", "; ".join(changed)
        )
