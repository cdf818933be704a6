"""Save and restore a run with Orbax: the latest states to resume from, and the best weights.

The only file that imports Orbax. Its v1 interface is still in Orbax's `experimental` package.

    checkpoints/last/STEP    the whole state; the latest few
    checkpoints/best/STEP    the weights with the best validation accuracy

Each holds the checksums of its files (`engine.checksums`), written once these are on disk. Those of
a state come after those of the best weights saved before it: where a state has checksums, the best
weights of the run so far are complete.
"""

import contextlib
import dataclasses
import logging
import math
import os
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from bocb_jax.engine import checksums
from bocb_jax.engine.processes import in_all, on_first
from bocb_jax.errors import UserError

logger = logging.getLogger(__name__)

_STATE = "state"
# Weights are refused whose metadata give a size above both this many bytes and this many times the
# size of their files: a small file can ask for an array of any size.
_SMALL_BYTES, _MOST_COMPRESSED = 256 * 2**20, 32


class Damaged(Exception):
    """A checkpoint whose files are not those that were saved."""


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

    Attributes:
      longest_save: seconds from the start of a save until its checksums were on disk.
    """

    def __init__(self, folder: Path, *, keep: int = 2):
        self._folder = Path(folder).absolute()
        self._keep = keep
        self._open = {name: self._opened(name) for name in ("last", "best")}
        self._saving: dict[str, Future[None]] = {}  # "last" or "best" -> the save in progress
        self._finisher = ThreadPoolExecutor(1, "checksums")
        self.longest_save = 0.0

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
            self._start("last", step, state, progress)

    def save_best(self, step: int, weights: Any, progress: dict[str, Any]) -> None:
        """Start to save the best weights on validation, in place of the previous ones."""
        if step not in self.steps("best"):
            self._start("best", step, weights, progress)

    def wait(self) -> None:
        """Wait until everything is on disk."""
        for name in list(self._saving):
            self._finish(name)

    def close(self) -> None:
        """Finish the saves in progress and stop the threads. A failed save raises nothing."""
        self._finisher.shutdown()
        for checkpointer in self._open.values():
            with contextlib.suppress(Exception):  # the failure of a save, once more
                checkpointer.close()

    def steps(self, name: str = "last") -> list[int]:
        """Return the steps whose whole state, or best weights, are on disk, ascending."""
        return [checkpoint.step for checkpoint in self._open[name].checkpoints]

    def restore(self, abstract_state: Any) -> Restored | None:
        """Return the newest state that can be read, sharded as `abstract_state` is, or None.

        A state that is damaged is renamed, with a warning, and the one before is tried. So are best
        weights that are damaged, which later ones may replace.
        """
        damaged = []
        while steps := on_first(self._by_preference):
            step = steps[0]
            restored, error = None, None
            try:
                self._check("last", step)
                restored = self._load("last", step, abstract_state)
            except Exception as raised:  # Orbax raises many kinds for a damaged file
                error = raised
            if not in_all(error is None):
                _align_operations()
                self._set_aside("last", step, f"The checkpoint of step {step}", error)
                damaged.append(step)
                continue
            if damaged:
                _warn("Resuming from the checkpoint of step %d instead.", step)
            for later in steps:
                if later > step:
                    _warn(
                        "The checkpoint of step %d was cut off before its checksums were written; "
                        "resuming from that of step %d.",
                        later,
                        step,
                    )
                    self._open["last"].delete(later)
            self._check_best()
            return restored
        if damaged:
            _warn("No other checkpoint is left; the run starts from the beginning.")
        return None

    def discard_after(self, step: int) -> None:
        """Delete best weights of later steps: a run resumed from `step` will find them again."""
        for later in self.steps("best"):
            if later > step:
                self._open["best"].delete(later)

    def _by_preference(self) -> list[int]:
        """Return the steps of the states on disk in the order in which to try them.

        A save that was cut off between the state and its checksums is the last.
        """
        return sorted(
            self.steps(),
            key=lambda step: (checksums.exist(self._path("last", step)), step),
            reverse=True,
        )

    def _path(self, name: str, step: int) -> Path:
        return self._folder / name / str(step)

    def _opened(self, name: str) -> ocp.training.Checkpointer:
        return ocp.training.Checkpointer(
            self._folder / name,
            preservation_policy=ocp.training.preservation_policies.LatestN(
                self._keep if name == "last" else 1
            ),
            cleanup_tmp_directories=True,
        )

    def _start(self, name: str, step: int, tree: Any, progress: dict[str, Any]) -> None:
        # Orbax's barriers between processes serve one save at a time; a second one would wait for
        # ever.
        for other in [name] if jax.process_count() == 1 else [*self._saving]:
            self._finish(other)
        began = time.monotonic()
        with _reporting_failures(self._folder / name):
            # Orbax's own policy would skip a save while another is in progress.
            saving = self._open[name].save_checkpointables_async(
                step, {_STATE: tree}, custom_metadata={"step": step, **progress}, force=True
            )
        best = self._saving.get("best") if name == "last" else None
        self._saving[name] = self._finisher.submit(self._complete, name, step, saving, best, began)

    def _complete(
        self, name: str, step: int, saving: Any, first: Future[None] | None, began: float
    ) -> None:
        """Wait for a save and, if there is one, for the save before it; write the checksums."""
        saving.result()
        if first is not None:
            first.result()
        if jax.process_index() == 0:
            checksums.write(self._path(name, step))
        self.longest_save = max(self.longest_save, time.monotonic() - began)

    def _finish(self, name: str) -> None:
        saving = self._saving.pop(name, None)
        if saving is not None:
            with _reporting_failures(self._folder / name):
                saving.result()

    def _check(self, name: str, step: int) -> None:
        """Raise Damaged, in every process, unless the files are those that were saved."""
        damage = on_first(lambda: checksums.damage(self._path(name, step)))
        if damage is not None:
            raise Damaged(damage)

    def _load(self, name: str, step: int, abstract: Any) -> Restored:
        path = self._path(name, step)
        # Each process reads by itself: at Orbax's barrier after a load, the others would wait for
        # one that has failed.
        alone, index = ocp.Context(), jax.process_index()
        alone.multiprocessing.primary_host = index
        alone.multiprocessing.active_processes = {index}
        with alone:
            tree = ocp.load_checkpointables(path, {_STATE: abstract})[_STATE]
            progress = dict(ocp.checkpointables_metadata(path).custom_metadata or {})
        if progress.pop("step", None) != step:
            raise Damaged("its metadata is incomplete")
        return Restored(step, tree, progress)

    def _check_best(self) -> None:
        for step in on_first(lambda: self.steps("best")):
            try:
                self._check("best", step)
            except Damaged as error:
                self._set_aside("best", step, f"The best weights, of step {step},", error)

    def _set_aside(self, name: str, step: int, what: str, error: Exception | None) -> None:
        """Rename a checkpoint that cannot be read, and say so.

        Args:
          name: "last" or "best".
          step: of the checkpoint.
          what: the checkpoint, for the message.
          error: of this process; None where another one cannot read it.
        """
        self._open[name].close()
        # No process looks at the folder before it is renamed.
        target = on_first(lambda: _renamed(self._path(name, step)))
        reason = error if isinstance(error, Damaged) else type(error).__name__
        if error is None:
            reason = "by another process"
        _warn("%s cannot be read (%s); renamed to %s.", what, reason, target)
        self._open[name] = self._opened(name)


def _align_operations() -> None:
    """Let Orbax count on from one number in all processes.

    Its barriers are named after a count of operations, loads among them. Where a load has failed in
    one process, the counts may differ, and a later save or deletion would wait for ever.
    """
    if jax.process_count() == 1:
        return
    from orbax.checkpoint._src.futures.synchronization import OperationIdGenerator

    def count() -> int:
        return int(OperationIdGenerator.get_current_operation_id())

    common = on_first(count) + 100  # more than a few loads can differ by
    while count() < common:
        OperationIdGenerator.next_operation_id()


def _renamed(source: Path) -> str:
    """Rename a damaged checkpoint; return its new path."""
    target = source.with_name(f"{source.name}.damaged")
    number = 1
    while target.exists():
        number += 1
        target = source.with_name(f"{source.name}.damaged-{number}")
    os.rename(source, target)
    return str(target)


def _warn(text: str, *arguments: Any) -> None:
    """Log a warning, once for all processes."""
    if jax.process_index() == 0:
        logger.warning(text, *arguments)


def read_best(folder: Path) -> dict[str, np.ndarray]:
    """Read the best weights of a run, whatever its model.

    Args:
      folder: of the run, or its `checkpoints/best`.

    Returns:
      Parameters and model state by dotted path, such as "layer1.0.conv1.kernel".

    Raises:
      UserError: there are none, or they cannot be read.
    """
    path = _newest_best(folder)
    if damage := checksums.damage(path):
        raise UserError(
            f"The weights in {path} are damaged: {damage}. Copy them again from where they came "
            "from, or train the run again."
        )
    found = _read_shapes(path)
    try:
        # Into NumPy arrays: the devices of the run may not be available here.
        wanted = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found)
        return by_path(ocp.load_checkpointables(path, {_STATE: wanted})[_STATE])
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise _unreadable(path, error) from error


def best_shapes(folder: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of what `read_best` returns, without reading or checking the weights.

    Raises:
      UserError: there are none, or their shapes cannot be read.
    """
    found = by_path(_read_shapes(_newest_best(folder)))
    return {name: tuple(leaf.shape) for name, leaf in found.items()}


def _newest_best(folder: Path) -> Path:
    """Return the path of a run's best weights; raise UserError if there are none."""
    best = folder / "checkpoints" / "best"
    best = best if best.is_dir() else folder
    names = [entry.name for entry in best.iterdir()] if best.is_dir() else []
    steps = [int(name) for name in names if name.isascii() and name.isdecimal()]
    if not steps:
        raise UserError(
            f"{folder} holds no weights: it is neither a run's folder nor its checkpoints/best."
        )
    return (best / str(max(steps))).absolute()


def _read_shapes(path: Path) -> Any:
    """Return shapes and types of the weights in a checkpoint, as a tree.

    Raises:
      UserError: they cannot be read, or say that they are far larger than the files.
    """
    try:
        found = ocp.checkpointables_metadata(path).metadata[_STATE]
        leaves = by_path(found).values()
        sizes = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves]
    except Exception as error:  # Orbax raises many kinds for a damaged file
        raise _unreadable(path, error) from error
    stored = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
    if sum(sizes) > max(_SMALL_BYTES, _MOST_COMPRESSED * stored):
        raise UserError(
            f"The weights in {path} cannot be read: {stored} bytes say that they are {sum(sizes)}."
        )
    return found


def _unreadable(path: Path, error: Exception) -> UserError:
    reason = " ".join(str(error).split())[:300]
    return UserError(f"The weights in {path} cannot be read ({type(error).__name__}: {reason}).")


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
    except Exception as error:  # TensorStore has kinds of its own
        reason = str(error)
        if "No space left" in reason:
            reason = "no space is left on the disk"
        elif not isinstance(error, OSError | ValueError | UserError):
            raise
        raise UserError(
            f"A checkpoint could not be saved to {path}: {reason[:300]}. "
            "Earlier checkpoints are intact; run the same command again to resume from them."
        ) from error
