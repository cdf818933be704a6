"""From a split to batches on the devices.

Every batch is a pure function of (seed, step): the order of an epoch comes from (seed, epoch), and
the batch of a step is cut out of it by arithmetic. So the state of an iterator is the number of the
next step, a run can resume on another number of processes, and each process reads just the rows of
the global batch that its own devices hold.

The way of a batch: Grain reads it by number (threads or worker processes for images that must be
decoded, one gather for arrays), `jax.make_array_from_process_local_data` puts it on the devices,
and a thread keeps a few batches ahead.
"""

import functools
import os
import sys
import weakref
from collections.abc import Iterator
from typing import Any

import grain
import numpy as np

from bocb_jax.data.records import CachedSplit
from bocb_jax.data.registry import Split, permutation
from bocb_jax.errors import UserError

Batch = dict[str, Any]


def steps_per_epoch(examples: int, batch_size: int) -> int:
    """Full batches in one pass; what is left over waits for another shuffle.

    Raises:
      UserError: there is not even one full batch.
    """
    if examples < batch_size:
        raise UserError(
            f"The training split has {examples} images, fewer than one batch of {batch_size}; "
            "use a smaller --batch-size."
        )
    return examples // batch_size


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
) -> "Batches":
    """Endless shuffled batches of {"image", "label", "index"}.

    "image" is (B, H, W, 3) uint8, "label" and "index" (the example's place in the split) are (B,)
    int32. Every epoch is shuffled anew and its incomplete last batch dropped.

    Args:
      split: the training split.
      batch_size: of the global batch, over all processes.
      seed: decides the order of every epoch.
      image_size: side to which images are brought on the host where their sizes vary.
      sharding: `NamedSharding` of the batch dimension; None gives NumPy arrays.
      process_index: without a sharding, which contiguous part of the batch to read.
      process_count: without a sharding, of how many parts.
      prefetch: batches kept ready beyond the one in use.
      workers: processes that decode images; 0 decodes in threads of this one.
      start_step: number of the first batch.
      repeats: how often an image comes in a row, see `TrainPlan`.

    Raises:
      UserError: a batch larger than the split or not divisible by the processes.
    """
    rows = _local_rows(batch_size, sharding, process_index, process_count)
    plan = TrainPlan(len(split), batch_size, seed, repeats)
    return Batches(
        split, plan, rows, image_size, sharding, prefetch=prefetch, workers=workers, step=start_step
    )


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
) -> "Batches":
    """One pass over a split, in order: batches of {"image", "label", "index", "weight"}.

    Every example comes once with weight 1. The last batch is filled up with examples of weight 0,
    so that shapes never change; `weight` is (B,) float32. An unreadable image that was skipped
    also has weight 0. Arguments are those of `train_batches`.
    """
    rows = _local_rows(batch_size, sharding, process_index, process_count)
    plan = EvaluationPlan(len(split), batch_size)
    return Batches(split, plan, rows, image_size, sharding, prefetch=prefetch, workers=workers)


class _Plan:
    """Which examples make up which batch: a pure function of what `state` holds.

    Attributes:
      steps: batches in one pass.
      state: what must be the same for a step to mean the same batch.
    """

    steps: int
    state: dict[str, int]

    def check(self, state: dict[str, int]):
        """Refuses the state of an iterator over another plan.

        Raises:
          UserError: the state belongs to another order of batches.
        """
        for key, ours in self.state.items():
            if state.get(key) != ours:
                raise UserError(
                    f"The saved data position was made with {key} = {state.get(key)}, this run has "
                    f"{key} = {ours}; its batches would be others."
                )

    def batch(self, step: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Indices of the examples at some rows of the global batch, and their weights."""
        epoch, step = divmod(step, self.steps)
        places = step * self.state["batch_size"] + rows
        order, weight = self.epoch(epoch)
        return order[places], None if weight is None else weight[places]


class TrainPlan(_Plan):
    """Every epoch in another order, its incomplete last batch dropped; no weights.

    With repeated augmentation (Hoffer et al., 2020, arXiv 1901.09335) each image comes `repeats`
    times in a row, to be augmented differently; an epoch has as many steps as ever, and so one
    image in `repeats`.
    """

    def __init__(self, examples: int, batch_size: int, seed: int, repeats: int = 1):
        self.state = {"examples": examples, "batch_size": batch_size, "seed": seed}
        if repeats > 1:
            self.state["repeats"] = repeats
        self.steps = steps_per_epoch(examples, batch_size)

    def __len__(self) -> int:
        return sys.maxsize

    def epoch(self, number: int) -> tuple[np.ndarray, None]:
        """The examples of an epoch in their order, (steps * batch_size,) int32, or more."""
        state = self.state
        return _epoch_order(state["examples"], state["seed"], number, state.get("repeats", 1)), None


class EvaluationPlan(_Plan):
    """Every example once, in order; the last batch is filled up with examples of weight 0."""

    def __init__(self, examples: int, batch_size: int):
        self.state = {"examples": examples, "batch_size": batch_size}
        self.steps = -(-examples // batch_size)

    def __len__(self) -> int:
        return self.steps

    def epoch(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The examples in their order, (steps * batch_size,) int32, and their weights."""
        del number  # always the same
        places = np.arange(self.steps * self.state["batch_size"])
        real = places < self.state["examples"]
        return np.where(real, places, 0).astype(np.int32), real.astype(np.float32)


@functools.lru_cache(maxsize=4)
def _epoch_order(examples: int, seed: int, epoch: int, repeats: int) -> np.ndarray:
    return np.repeat(permutation(examples, seed, epoch + 1), repeats)[:examples]


class Batches(Iterator[Batch]):
    """Iterator over batches; also a context manager that ends its threads.

    `get_state` gives a small dictionary for JSON; `set_state` of an equal iterator continues
    there. The state counts the batches handed out, not those read ahead.

    Attributes:
      total: how many batches there are; in training, practically no end.
    """

    def __init__(self, split, plan, rows, image_size, sharding, *, prefetch, workers, step=0):
        if hasattr(split, "sized"):
            split = split.sized(image_size)
        if workers and isinstance(split, CachedSplit):
            split = split.split  # every worker would fill a cache of its own
        self._reader = _Reader(split, plan, rows)
        self.total = len(plan)
        self._plan = plan
        self._sharding = sharding
        self._prefetch = prefetch
        self._workers = workers
        self._step = step
        self._open: list[grain.DatasetIterator] = []  # none or one
        # When this object is dropped, and before the interpreter takes its modules apart.
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

    def get_state(self) -> dict[str, int]:
        """The next step, and what must be the same for that step to mean the same batch."""
        return {"step": self._step, **self._plan.state}

    def set_state(self, state: dict[str, int]):
        """Continues at a state that `get_state` gave.

        Raises:
          UserError: the state belongs to another order of batches.
        """
        self._plan.check(state)
        self.close()
        self._step = int(state["step"])

    def close(self):
        """Ends threads and worker processes; a later `next` starts them again."""
        _close_all(self._open)

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *exception):
        self.close()

    def _start(self) -> grain.DatasetIterator:
        reader = self._reader.starting_at(self._step)
        # Arrays are read by the thread that keeps batches ahead; decoding is worth more threads.
        threads = 0 if self._workers or not reader.decodes else min(16, os.cpu_count() or 1)
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        batches = grain.MapDataset.source(reader).to_iter_dataset(options)
        if self._workers and reader.decodes:
            batches = batches.mp_prefetch(_worker_options(self._workers)).map(_copy)
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

    def __init__(self, split: Split, plan: TrainPlan | EvaluationPlan, rows: np.ndarray):
        self._split, self._plan, self._rows = split, plan, rows
        self._first = 0
        self.decodes = isinstance(split, CachedSplit) or not hasattr(split, "gather")

    def starting_at(self, step: int) -> "_Reader":
        reader = _Reader(self._split, self._plan, self._rows)
        reader._first = step
        return reader

    def __len__(self) -> int:
        return len(self._plan) - self._first

    def __getitem__(self, number: int) -> Batch:
        step = self._first + number
        indices, weight = self._plan.batch(step, self._rows)
        if hasattr(self._split, "gather"):
            batch = self._split.gather(indices)
        else:
            batch = _stack(self._split, indices, self._plan.state.get("seed", 0), step, self._rows)
        if weight is not None:
            # A source that skips an unreadable image gives the index of the one it took instead.
            batch["weight"] = weight * (batch["index"] == indices)
        return batch


def _stack(split: Split, indices: np.ndarray, seed: int, step: int, rows: np.ndarray) -> Batch:
    if hasattr(split, "draw"):
        places = zip(indices, rows, strict=True)
        examples = [split.draw(int(index), (seed, step, int(row))) for index, row in places]
    else:
        examples = [split[int(index)] for index in indices]
    return {
        "image": np.stack([example["image"] for example in examples]),
        "label": np.array([example["label"] for example in examples], np.int32),
        "index": np.array(
            [x.get("index", i) for x, i in zip(examples, indices, strict=True)], np.int32
        ),
    }


def _local_rows(batch_size, sharding, process_index, process_count) -> np.ndarray:
    """Rows of the global batch that this process reads, in increasing order."""
    if sharding is None:
        if batch_size % process_count:
            raise UserError(
                f"A batch of {batch_size} cannot be divided among {process_count} processes."
            )
        local = batch_size // process_count
        return np.arange(process_index * local, (process_index + 1) * local)
    # Asked of the sharding, since the devices of a process need not be neighbours in the mesh.
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return np.unique(np.concatenate([np.arange(batch_size)[part] for part in slices]))


def _copy(batch: Batch) -> Batch:
    # Out of the memory shared with the worker, which must not outlive the iterator.
    return {key: np.array(value) for key, value in batch.items()}


def _to_devices(sharding, batch: Batch) -> Batch:
    import jax

    put = functools.partial(jax.make_array_from_process_local_data, sharding)
    return {key: put(value) for key, value in batch.items()}


def _worker_options(workers: int) -> grain.MultiprocessingOptions:
    from absl import flags

    # Grain reads an absl flag for its workers, and absl refuses before it has parsed a command
    # line; ours is not absl's.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    return grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=2)
