"""Save and restore a run with Orbax: the latest states to resume from, and the best weights.

The only file that imports Orbax. Its v1 interface is still in Orbax's `experimental` package.

    checkpoints/last/STEP    the whole state; the latest few
    checkpoints/best/STEP    the weights with the best validation accuracy
"""

import contextlib
import dataclasses
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

_STATE = "state"
# Weights that say they are larger than this, or than so many times their files, are not read.
_SMALL_BYTES, _MOST_COMPRESSED = 256 * 2**20, 32


@dataclasses.dataclass(frozen=True)
class Restored:
    """The content of a checkpoint."""

    step: int
    state: Any
    progress: dict[str, Any]


class Checkpoints:
    """The checkpoints of one run.

    Args:
      folder: the run's `checkpoints/`.
      keep: how many of the latest states stay on disk.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._last = self._open("last", keep)
        self._best = self._open("best", 1)
        self._saving: dict[str, Any] = {}  # "last" or "best" -> the save in progress

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Start to save the state; return once it is copied off the device.

        Args:
          step: steps taken. A step that is on disk already is not saved again.
          state: pytree of arrays.
          progress: plain JSON values, saved with the state.

        Raises:
          UserError: this save, or the one before, did not reach the disk.
        """
        if step not in self.steps():
            self._start(self._last, "last", step, state, progress)

    def save_best(self, step: int, weights: Any, progress: dict[str, Any]) -> None:
        """Start to save the best weights on validation, in place of the previous ones."""
        if step not in {checkpoint.step for checkpoint in self._best.checkpoints}:
            self._start(self._best, "best", step, weights, progress)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        for name in list(self._saving):
            self._finish(name)

    def close(self) -> None:
        """Finish the saves in progress and stop the threads. A failed save raises nothing."""
        self._last.close()
        self._best.close()

    def steps(self) -> list[int]:
        """Return the steps whose whole state is on disk, ascending."""
        return [checkpoint.step for checkpoint in self._last.checkpoints]

    def restore(self, abstract_state: Any) -> Restored | None:
        """Return the newest state that can be read, sharded as `abstract_state` is, or None.

        A state that cannot be read is renamed, with a warning, and the one before is tried.
        """
        damaged = []
        while steps := self.steps():
            step = steps[-1]
            try:
                restored = self._load(self._last, step, abstract_state)
            except Exception as error:  # Orbax raises many kinds for a damaged file
                self._last = self._set_aside(step, error)
                damaged.append(step)
                continue
            if damaged:
                logger.warning("Resuming from the checkpoint of step %d instead.", step)
            return restored
        if damaged:
            logger.warning("No other checkpoint is left; the run starts from the beginning.")
        return None

    def restore_best(self, abstract_weights: Any) -> Restored | None:
        """Return the best weights on validation, or None."""
        latest = self._best.latest
        return latest and self._load(self._best, latest.step, abstract_weights)

    def discard_after(self, step: int) -> None:
        """Delete best weights of later steps: a run resumed from `step` will find them again."""
        for checkpoint in self._best.checkpoints:
            if checkpoint.step > step:
                self._best.delete(checkpoint.step)

    def _open(self, name: str, keep: int) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._folder / name,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def _start(
        self,
        checkpointer: ocp.training.Checkpointer,
        name: str,
        step: int,
        tree: Any,
        progress: dict[str, Any],
    ) -> None:
        self._finish(name)
        with _reporting_failures(self._folder / name):
            # Orbax's own policy would skip a save while another is in progress.
            self._saving[name] = checkpointer.save_checkpointables_async(
                step, {_STATE: tree}, custom_metadata={"step": step, **progress}, force=True
            )

    def _finish(self, name: str) -> None:
        saving = self._saving.pop(name, None)
        if saving is not None:
            with _reporting_failures(self._folder / name):
                saving.result()

    def _load(self, checkpointer: ocp.training.Checkpointer, step: int, abstract: Any) -> Restored:
        tree = checkpointer.load_checkpointables(step, {_STATE: abstract})[_STATE]
        progress = dict(checkpointer.checkpointables_metadata(step).custom_metadata or {})
        if progress.pop("step", None) != step:
            raise ValueError("its metadata is incomplete")
        return Restored(step, tree, progress)

    def _set_aside(self, step: int, error: Exception) -> ocp.training.Checkpointer:
        self._last.close()
        source = self._folder / "last" / str(step)
        target = source.with_name(f"{step}.damaged")
        number = 1
        while target.exists():
            number += 1
            target = source.with_name(f"{step}.damaged-{number}")
        if jax.process_index() == 0:
            os.rename(source, target)
        logger.warning(
            "The checkpoint of step %d cannot be read (%s); it was renamed to %s.",
            step,
            type(error).__name__,
            target,
        )
        return self._open("last", self._keep)


def read_best(folder: Path) -> dict[str, np.ndarray]:
    """Read the best weights of a run, whatever its model.

    Args:
      folder: of the run, or its `checkpoints/best`.

    Returns:
      Parameters and model state by dotted path, such as "layer1.0.conv1.kernel".

    Raises:
      UserError: there are none, or they cannot be read.
    """
    path, found = _newest_best(folder)
    try:
        # Into NumPy arrays: the devices of the run may not be available here.
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found)
        tree = ocp.load_checkpointables(path, {_STATE: wanted})[_STATE]
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise UserError(f"The weights in {path} cannot be read: {error}.") from error
    return by_path(tree)


def best_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `read_best` returns, without reading the weights."""
    return {name: tuple(leaf.shape) for name, leaf in by_path(_newest_best(folder)[1]).items()}


def _newest_best(folder: Path) -> tuple[Path, Any]:
    """Return the path of a run's best weights, and their shapes and types as a tree.

    Raises:
      UserError: there are none, they cannot be read, or say that they are far larger than they are.
    """
    best = folder / "checkpoints" / "best"
    best = best if best.is_dir() else folder
    names = [entry.name for entry in best.iterdir()] if best.is_dir() else []
    steps = [int(name) for name in names if name.isascii() and name.isdecimal()]
    if not steps:
        raise UserError(
            f"{folder} holds no weights: it is neither a run's folder nor its checkpoints/best."
        )
    path = (best / str(max(steps))).absolute()
    try:
        found = ocp.checkpointables_metadata(path).metadata[_STATE]
        sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(found)]
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise UserError(f"The weights in {path} cannot be read: {error}.") from error
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if sum(sizes) > max(_SMALL_BYTES, _MOST_COMPRESSED * stored):
        raise UserError(
            f"The weights in {path} cannot be read: {stored} bytes say that they are {sum(sizes)}."
        )
    return path, found


def by_path(weights: dict[str, Any]) -> dict[str, Any]:
    """Return the leaves of "params" and "model_state" by dotted path."""
    return {
        ".".join(str(key.key) for key in keys): leaf
        for part in weights.values()
        for keys, leaf in jax.tree.leaves_with_path(part)
    }


@contextlib.contextmanager
def _reporting_failures(path: Path) -> Iterator[None]:
    """Turn a failed write into a UserError."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = "no space is left on the disk" if "No space left" in str(error) else str(error)
        raise UserError(
            f"A checkpoint could not be saved to {path}: {reason[:300]}. "
            "Earlier checkpoints are intact; run the same command again to resume from them."
        ) from error
