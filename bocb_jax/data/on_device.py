"""Small data sets on the devices: batches are gathered there, and the host does nothing.

The same batches as `bocb_jax.data.pipeline` makes, bit for bit: the order of an epoch is that of
its plan, sent to the devices once an epoch.
"""

import functools
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bocb_jax.data.pipeline import Batch, EvaluationPlan, TrainPlan
from bocb_jax.data.records import CachedSplit
from bocb_jax.data.registry import ArraySplit, Split
from bocb_jax.errors import UserError

# Up to here every device gets a copy; above, each holds a part and gathering takes messages.
REPLICATED_BYTES = 2**30
# Up to here "auto" puts a split on the devices.
AUTOMATIC_BYTES = 2**29


def fits(split: Split) -> bool:
    """Whether a split is held in memory and small enough to live on the devices."""
    held = isinstance(split, ArraySplit | CachedSplit)
    return held and len(split) * np.prod(split.image_shape) <= AUTOMATIC_BYTES


class DeviceSplit:
    """All the examples of a split as arrays on the devices.

    Args:
      split: images of one size.
      sharding: that of the batches; its mesh says which devices.

    Raises:
      UserError: the split cannot be read whole.
    """

    def __init__(self, split: Split, sharding: NamedSharding):
        images, labels, index = _read_all(split)
        mesh = sharding.mesh
        everywhere = NamedSharding(mesh, PartitionSpec())
        self.sharding, self.everywhere = sharding, everywhere
        self.size = len(labels)
        if images.nbytes > REPLICATED_BYTES:
            # Rows that fill the last part are never asked for.
            images = np.pad(images, ((0, -len(images) % mesh.size), (0, 0), (0, 0), (0, 0)))
            self.images = _put(images, sharding)
        else:
            self.images = _put(images, everywhere)
        self.labels, self.index = _put(labels, everywhere), _put(index, everywhere)

    def batches(self, plan: TrainPlan | EvaluationPlan) -> "DeviceBatches":
        """An iterator over the batches of a plan."""
        return DeviceBatches(self, plan)


class DeviceBatches(Iterator[Batch]):
    """Iterator over batches; the counterpart of `bocb_jax.data.pipeline.Batches`."""

    def __init__(self, split: DeviceSplit, plan: TrainPlan | EvaluationPlan, step: int = 0):
        self._split, self._plan, self._step = split, plan, step
        self._epoch, self._order = None, None

    def __next__(self) -> Batch:
        if self._step >= len(self._plan):
            raise StopIteration
        split, plan = self._split, self._plan
        epoch, position = divmod(self._step, plan.steps)
        if epoch != self._epoch:
            order = [_put(array, split.everywhere) for array in plan.epoch(epoch)]
            self._epoch, self._order = epoch, order
        self._step += 1
        take = _take(plan.state["batch_size"], split.sharding)
        return take(split.images, split.labels, split.index, *self._order, np.int32(position))

    def get_state(self) -> dict[str, int]:
        """The next step, and what must be the same for that step to mean the same batch."""
        return {"step": self._step, **self._plan.state}

    def set_state(self, state: dict[str, int]):
        """Continues at a state that `get_state` gave.

        Raises:
          UserError: the state belongs to another order of batches.
        """
        self._plan.check(state)
        self._step = int(state["step"])

    def close(self):
        """Nothing to end; there are no threads."""

    def __enter__(self) -> "DeviceBatches":
        return self

    def __exit__(self, *exception):
        self.close()


@functools.cache
def _take(batch_size: int, sharding: NamedSharding):
    @functools.partial(jax.jit, out_shardings=sharding)
    def take(images, labels, index, order, weight, position):
        def cut(array):
            return jax.lax.dynamic_slice(array, (position * batch_size,), (batch_size,))

        chosen = cut(order)
        batch = {"image": images[chosen], "label": labels[chosen], "index": index[chosen]}
        if weight is not None:
            # A source that skips an unreadable image gives the index of the one it took instead.
            batch["weight"] = cut(weight) * (batch["index"] == chosen)
        return batch

    return take


def _put(array: np.ndarray | None, sharding: NamedSharding) -> jax.Array | None:
    if array is None:
        return None
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])


def _read_all(split: Split) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if hasattr(split, "draw"):
        raise UserError(
            "Images that are cropped anew every time, or are too many to keep decoded, cannot live "
            "on the devices; leave out --data.on-device yes."
        )
    everything = np.arange(len(split), dtype=np.int32)
    if hasattr(split, "gather"):
        parts = [split.gather(part) for part in _in_parallel(split, everything)]
    else:
        parts = [_one(split, int(i)) for i in everything]
    images, labels, index = (
        np.concatenate([part[key] for part in parts]) for key in ("image", "label", "index")
    )
    return images, labels.astype(np.int32), index.astype(np.int32)


def _in_parallel(split: Split, everything: np.ndarray) -> list[np.ndarray]:
    """Decodes what is not decoded yet on all cores; returns what to gather."""
    if isinstance(split, CachedSplit):
        parts = np.array_split(everything, max(1, len(everything) // 256))
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for _ in pool.map(split.gather, parts):
                pass
    return [everything]


def _one(split: Split, index: int) -> dict[str, Any]:
    example = split[index]
    return {
        "image": example["image"][None],
        "label": np.array([example["label"]]),
        "index": np.array([example.get("index", index)]),
    }
