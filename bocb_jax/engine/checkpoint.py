"""Saving and restoring a run with Orbax: the latest states to go on from, the best weights to keep.

The only file that knows Orbax. Its v1 interface still lies under `experimental` there.

    checkpoints/last/STEP    the whole state, for resuming; the latest few
    checkpoints/best/STEP    the weights with the best validation accuracy
"""

import contextlib
import dataclasses
import logging
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


@dataclasses.dataclass(frozen=True)
class Restored:
    """What a checkpoint held."""

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
        self._saving = {}  # name -> what Orbax has under way there

    def save(self, step: int, state: Any, progress: dict[str, Any]) -> None:
        """Starts to save the state; returns once it is copied off the device.

        Args:
          step: steps taken; a step that is saved already is left as it is.
          state: pytree of arrays.
          progress: JSON types that belong to the same moment.

        Raises:
          UserError: this save, or the one before, did not reach the disk.
        """
        if step not in self.steps():
            self._start(self._last, "last", step, state, progress)

    def save_best(self, step: int, weights: Any, progress: dict[str, Any]) -> None:
        """Starts to save the weights that did best on validation, in place of those before."""
        if step not in {checkpoint.step for checkpoint in self._best.checkpoints}:
            self._start(self._best, "best", step, weights, progress)

    def wait(self) -> None:
        """Returns when everything is on the disk."""
        for name in list(self._saving):
            self._finish(name)

    def close(self) -> None:
        """Lets go of the threads; what is under way is finished, but a failure is not told."""
        self._last.close()
        self._best.close()

    def steps(self) -> list[int]:
        """The steps whose whole state is on the disk, ascending."""
        return [checkpoint.step for checkpoint in self._last.checkpoints]

    def restore(self, abstract_state: Any) -> Restored | None:
        """The newest state that can be read, placed as `abstract_state` says, or None.

        A state that cannot be read is set aside under another name, with a warning, and the one
        before is taken.
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
                logger.warning("Going on from the checkpoint of step %d instead.", step)
            return restored
        if damaged:
            logger.warning("No other checkpoint is left; starting from the beginning.")
        return None

    def restore_best(self, abstract_weights: Any) -> Restored | None:
        """The weights that did best on validation, or None."""
        latest = self._best.latest
        return latest and self._load(self._best, latest.step, abstract_weights)

    def discard_after(self, step: int) -> None:
        """Deletes best weights of later steps: a run that goes on from `step` finds them again."""
        for checkpoint in self._best.checkpoints:
            if checkpoint.step > step:
                self._best.delete(checkpoint.step)

    def _open(self, name: str, keep: int) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._folder / name,
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),
            cleanup_tmp_directories=True,
        )

    def _start(self, checkpointer, name, step, tree, progress):
        self._finish(name)
        with _telling(self._folder / name):
            # Forced, since Orbax's own policy skips a save while another is under way.
            self._saving[name] = checkpointer.save_checkpointables_async(
                step, {_STATE: tree}, custom_metadata={"step": step, **progress}, force=True
            )

    def _finish(self, name):
        saving = self._saving.pop(name, None)
        if saving is not None:
            with _telling(self._folder / name):
                saving.result()

    def _load(self, checkpointer, step: int, abstract: Any) -> Restored:
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
            "The checkpoint of step %d cannot be read (%s); it is kept as %s.",
            step,
            type(error).__name__,
            target,
        )
        return self._open("last", self._keep)


def read_best(folder: Path) -> dict[str, np.ndarray]:
    """The weights that a run answers with, of whatever shapes they are.

    Args:
      folder: a run's, or its `checkpoints/best`.

    Returns:
      Arrays by path with dots, such as "layer1.0.conv1.kernel": parameters and model state.

    Raises:
      UserError: there are none, or they cannot be read.
    """
    best = folder / "checkpoints" / "best"
    best = best if best.is_dir() else folder
    steps = [int(path.name) for path in best.iterdir() if path.name.isdigit()]
    if not steps:
        raise UserError(
            f"{folder} holds no weights: neither a run's folder nor a checkpoints/best."
        )
    try:
        path = (best / str(max(steps))).absolute()
        found = ocp.checkpointables_metadata(path).metadata[_STATE]
        # To NumPy: the devices that they were written from need not be here.
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found)
        tree = ocp.load_checkpointables(path, {_STATE: wanted})[_STATE]
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise UserError(f"The weights in {path} cannot be read: {error}.") from error
    return by_path(tree)


def by_path(weights: dict[str, Any]) -> dict[str, Any]:
    """The leaves of a run's weights by path with dots, without "params" and "model_state"."""
    return {
        ".".join(str(key.key) for key in keys): leaf
        for part in weights.values()
        for keys, leaf in jax.tree.leaves_with_path(part)
    }


@contextlib.contextmanager
def _telling(path: Path) -> Iterator[None]:
    """Turns a failure to write into a sentence."""
    try:
        yield
    except (OSError, ValueError) as error:
        reason = "no space is left on the disk" if "No space left" in str(error) else str(error)
        raise UserError(
            f"A checkpoint could not be saved to {path}: {reason[:300]}. "
            "Earlier checkpoints are intact; the same command goes on from them."
        ) from error
