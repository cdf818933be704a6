"""Batches of a split: which examples they hold, and how the host reads them.

Every batch is a pure function of (seed, step): the order of an epoch follows from (seed, epoch),
and the batch of a step is a slice of it. The state of an iterator is therefore the number of the
next step, a run can resume on another number of processes, and each process reads only those rows
of the global batch that its own devices hold.

Grain reads batches by number: arrays by one gather, images that must be decoded by threads or
worker processes. `jax.make_array_from_process_local_data` places a batch on the devices. A thread
keeps a few batches ready.
"""

import abc
import functools
import os
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, Self

import grain
import numpy as np

from bocb_jax.data.dataset import Batch, Split
from bocb_jax.data.holdout import permutation
from bocb_jax.errors import UserError

_NO_WARNING = "ignore::UserWarning:multiprocessing.resource_tracker"


def steps_per_epoch(examples: int, batch_size: int, what: str = "images") -> int:
    """Return the number of full batches in one epoch; the remaining examples are left out.

    Args:
      examples: of the training split.
      batch_size: of the global batch.
      what: what messages call the examples.

    Raises:
      UserError: there are fewer examples than one batch.
    """
    if examples < batch_size:
        raise UserError(
            f"The training split has {examples} {what}, fewer than one batch of {batch_size}; "
            "use a smaller --batch-size."
        )
    return examples // batch_size


class Plan(abc.ABC):
    """Which examples make up which batch: a pure function of the settings in `identity`.

    Attributes:
      steps: batches in one epoch.
      identity: the settings that fix the order of batches; saved positions are checked against
        them.
      defaults: settings that `identity` holds only where they differ from these.
    """

    steps: int
    identity: dict[str, int]
    defaults: Mapping[str, int] = MappingProxyType({})

    @abc.abstractmethod
    def __len__(self) -> int:
        """Return the number of batches in all."""

    @abc.abstractmethod
    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the indices of an epoch's examples in order, (N,) int32, and their weights.

        N is at least steps * batch_size. Weights are (N,) float32, or None where all count.
        """

    def check(self, state: dict[str, int]):
        """Refuse a saved position in another plan.

        Args:
          state: what `Batches.get_state` returned.

        Raises:
          UserError: the position belongs to another order of batches.
        """
        ours, theirs = ({**self.defaults, **each} for each in (self.identity, state))
        theirs.pop("step", None)
        for key in ours | theirs:
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"The saved data position was made with {key} = {theirs.get(key)}, this run "
                    f"has {key} = {ours.get(key)}; its batches would be different. Resume with the "
                    "settings that the run was started with."
                )

    def batch(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return the example indices at some rows of a global batch, and their weights."""
        epoch, step = divmod(step, self.steps)
        positions = step * self.identity["batch_size"] + rows
        order, weight = self.epoch(epoch)
        return order[positions], None if weight is None else weight[positions]


class TrainPlan(Plan):
    """Endless epochs, each shuffled differently and without its incomplete last batch.

    With repeated augmentation (Hoffer et al., 2020, arXiv 1901.09335) each image comes `repeats`
    times in a row, to be augmented differently. An epoch keeps its number of steps and so shows
    only 1/`repeats` of the images.
    """

    defaults = MappingProxyType({"repeats": 1})  # earlier versions knew no other, and saved none

    def __init__(self, examples: int, batch_size: int, seed: int, repeats: int = 1):
        self.identity = {"examples": examples, "batch_size": batch_size, "seed": seed}
        if repeats > 1:
            self.identity["repeats"] = repeats
        self.steps = steps_per_epoch(examples, batch_size)

    def __len__(self) -> int:
        return sys.maxsize

    def epoch(self, number: int) -> tuple[np.ndarray, None]:
        plan = {**self.defaults, **self.identity}
        return _epoch_order(plan["examples"], plan["seed"], number, plan["repeats"]), None


class EvaluationPlan(Plan):
    """Every example once, in order; the last batch is filled up with examples of weight 0."""

    def __init__(self, examples: int, batch_size: int):
        self.identity = {"examples": examples, "batch_size": batch_size}
        self.steps = -(-examples // batch_size)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        del number  # every pass is the same
        positions = np.arange(self.steps * self.identity["batch_size"])
        real = positions < self.identity["examples"]
        return np.where(real, positions, 0).astype(np.int32), real.astype(np.float32)


@functools.lru_cache(maxsize=4)
def _epoch_order(examples: int, seed: int, epoch: int, repeats: int) -> np.ndarray:
    return np.repeat(permutation(examples, seed, epoch + 1), repeats)[:examples]


class Batches(Iterator[Batch]):
    """Iterator over the batches of a plan; also a context manager that closes itself.

    `get_state` returns a small dictionary for JSON; `set_state` of an iterator over the same plan
    continues there, whether batches come from the host or from device memory. The state counts the
    batches handed out, not those read ahead.

    Attributes:
      total: number of batches in all; in training, practically infinite.
    """

    def __init__(self, plan: Plan, step: int = 0):
        self._plan, self._step = plan, step
        self.total = len(plan)

    def get_state(self) -> dict[str, int]:
        """Return the next step and the plan's identity."""
        return {"step": self._step, **self._plan.identity}

    def set_state(self, state: dict[str, int]):
        """Continue at a state that `get_state` returned.

        Raises:
          UserError: the state belongs to another order of batches.
        """
        self._plan.check(state)
        self.close()
        self._step = int(state["step"])

    def close(self):
        """End threads and worker processes, if any; a later `next` starts them again."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object):
        self.close()


def train_batches(
    split: Split,
    *,
    batch_size: int,
    seed: int,
    image_size: int | None = None,
    sharding: Any = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    workers: int = 0,
    start_step: int = 0,
    repeats: int = 1,
) -> "HostBatches":
    """Return endless shuffled batches of {"image", "label", "index"}.

    "image" is (B, H, W, 3) uint8, "label" and "index" (of the example in the split) are (B,) int32.
    Every epoch is shuffled differently and its incomplete last batch dropped.

    Args:
      split: the training split.
      batch_size: size of the global batch, over all processes.
      seed: decides the order of every epoch.
      image_size: side in pixels to which the host brings images of varying sizes.
      sharding: `NamedSharding` of the batch dimension; None gives NumPy arrays.
      process_index: without a sharding, which contiguous part of the batch to read.
      process_count: without a sharding, the number of such parts.
      prefetch: batches kept ready beyond the one in use.
      workers: processes that decode images; 0 decodes in threads of this one.
      start_step: number of the first batch.
      repeats: how often each image comes in a row, see `TrainPlan`.

    Raises:
      UserError: the batch is larger than the split, or not divisible by the processes.
    """
    rows = _local_rows(batch_size, sharding, process_index, process_count)
    plan = TrainPlan(len(split), batch_size, seed, repeats)
    split = split.sized(image_size)
    return HostBatches(split, plan, rows, sharding, prefetch, workers, start_step)


def evaluation_batches(
    split: Split,
    *,
    batch_size: int,
    image_size: int | None = None,
    sharding: Any = None,
    process_index: int = 0,
    process_count: int = 1,
    prefetch: int = 2,
    workers: int = 0,
) -> "HostBatches":
    """Return one pass over a split, in order: batches of {"image", "label", "index", "weight"}.

    Every readable example comes once with weight 1. Skipped unreadable images have weight 0, and so
    do the examples that fill up the last batch, so that shapes never change; "weight" is (B,)
    float32. Arguments are those of `train_batches`.
    """
    rows = _local_rows(batch_size, sharding, process_index, process_count)
    plan = EvaluationPlan(len(split), batch_size)
    return HostBatches(split.sized(image_size), plan, rows, sharding, prefetch, workers)


def planned_batches(
    split: Split, plan: Plan, *, sharding: Any = None, workers: int = 0
) -> "HostBatches":
    """Return the batches of a plan of one's own; arguments are those of `train_batches`."""
    rows = _local_rows(plan.identity["batch_size"], sharding)
    return HostBatches(split, plan, rows, sharding, 2, workers)


class HostBatches(Batches):
    """Batches read on the host, ahead of their use.

    Args:
      split: all images of one size.
      plan: which examples make up which batch.
      rows: of the global batch, read by this process.
      sharding: of the batches over devices; None leaves them on the host.
      prefetch: batches kept ready.
      workers: processes that decode; 0 for threads.
      step: the first batch.
    """

    def __init__(
        self,
        split: Split,
        plan: Plan,
        rows: np.ndarray,
        sharding: Any,
        prefetch: int,
        workers: int,
        step: int = 0,
    ):
        super().__init__(plan, step)
        if workers:
            split = split.for_workers()
        self._reader = _Reader(split, plan, rows)
        self._sharding = sharding
        self._prefetch = prefetch
        self._workers = workers
        self._open: list[grain.DatasetIterator] = []  # none or one
        # Runs when this object is dropped, and before the interpreter unloads its modules.
        weakref.finalize(self, _close_all, self._open)

    def __next__(self) -> Batch:
        if not self._open:
            self._open.append(self._start())
        try:
            batch = next(self._open[0])
        except BaseException:
            self.close()
            raise
        self._step += 1
        return batch

    def close(self):
        _close_all(self._open)

    def _start(self) -> grain.DatasetIterator:
        reader = self._reader.starting_at(self._step)
        # The prefetching thread suffices to read arrays; decoding is spread over more threads.
        threads = 0 if self._workers or not reader.decodes else min(16, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = grain.MapDataset.source(reader).to_iter_dataset(options)
        if self._workers and reader.decodes:
            ending = functools.partial(_end_with, os.getpid())
            batches = batches.mp_prefetch(_worker_options(self._workers), ending).map(_copy)
        if self._sharding is not None:
            batches = batches.map(functools.partial(_to_devices, self._sharding))
        batches = grain.experimental.ThreadPrefetchIterDataset(
            batches, prefetch_buffer_size=self._prefetch
        )
        return iter(batches)


def _close_all(iterators: list[grain.DatasetIterator]):
    while iterators:
        iterators.pop().close()


class _Reader:
    """Batches by number: the random-access source that Grain reads."""

    def __init__(self, split: Split, plan: Plan, rows: np.ndarray, first: int = 0):
        self._split, self._plan, self._rows, self._first = split, plan, rows, first
        self.decodes = split.decodes

    def starting_at(self, step: int) -> "_Reader":
        return _Reader(self._split, self._plan, self._rows, step)

    def __len__(self) -> int:
        return len(self._plan) - self._first

    def __getitem__(self, number: int) -> Batch:
        step = self._first + number
        indices, weight = self._plan.batch(step, self._rows)
        seed = self._plan.identity.get("seed", 0)
        batch = self._split.gather(indices, [(seed, step, row) for row in self._rows.tolist()])
        if weight is not None:
            # A skipped unreadable image comes back under another index.
            batch["weight"] = weight * (batch["index"] == indices)
        return batch


def _local_rows(
    batch_size: int, sharding: Any, process_index: int = 0, process_count: int = 1
) -> np.ndarray:
    """Return the rows of the global batch that this process reads, in increasing order."""
    if sharding is None:
        if batch_size % process_count:
            raise UserError(
                f"A batch of {batch_size} cannot be divided among {process_count} processes."
            )
        local = batch_size // process_count
        return np.arange(process_index * local, (process_index + 1) * local)
    # The sharding is asked, since the devices of a process need not be neighbors in the mesh.
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in slices]))


def _copy(batch: Batch) -> Batch:
    # The batch lies in memory shared with the worker, which is freed with the iterator.
    return {key: np.array(value) for key, value in batch.items()}


def _to_devices(sharding: Any, batch: Batch) -> Batch:
    import jax

    put = functools.partial(jax.make_array_from_process_local_data, sharding)
    return {key: put(value) for key, value in batch.items()}


def _end_with(parent: int, worker: int, workers: int) -> None:
    """End this worker process soon after the process that it works for, however that ends."""
    del worker, workers

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _worker_options(workers: int) -> grain.MultiprocessingOptions:
    from absl import flags

    # Grain's workers read an absl flag, which absl refuses until it has parsed a command line;
    # this package parses its own.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    # The process that removes the shared memory of a killed worker would warn of it.
    if _NO_WARNING not in sys.warnoptions:
        sys.warnoptions.append(_NO_WARNING)
    return grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
