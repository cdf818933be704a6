"""Batches of small data sets that live on the devices, so that the host reads nothing per step.

They equal those of `bocb_jax.data.pipeline` bit for bit: the order of an epoch comes from the same
plan and is sent to the devices once per epoch.
"""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from bocb_jax.data.dataset import Batch, Split
from bocb_jax.data.pipeline import Batches, Plan

# Up to this size every device gets a copy; above, each holds a part, and gathering communicates.
MAX_REPLICATED_BYTES = 2**30
# Up to this size "auto" places a split on the devices.
MAX_AUTO_BYTES = 2**29


def fits_on_device(split: Split) -> bool:
    """Return whether a split is held in memory and small enough to live on the devices."""
    if not split.in_memory or split.image_shape is None:
        return False
    return len(split) * math.prod(split.image_shape) <= MAX_AUTO_BYTES


class DeviceSplit:
    """All examples of a split as arrays on the devices.

    Args:
      split: images of one shape.
      sharding: sharding of the batches; its mesh names the devices.

    Raises:
      UserError: the split cannot be held in memory.
    """

    def __init__(self, split: Split, sharding: NamedSharding):
        everything = split.load()
        images = everything["image"]
        labels, index = (everything[key].astype(np.int32) for key in ("label", "index"))
        mesh = sharding.mesh
        replicated = NamedSharding(mesh, PartitionSpec())
        self.sharding, self.replicated = sharding, replicated
        if images.nbytes > MAX_REPLICATED_BYTES:
            # Padded to a multiple of the devices; the padding is never gathered.
            images = np.pad(images, ((0, -len(images) % mesh.size), (0, 0), (0, 0), (0, 0)))
            self.images = _put(images, sharding)
        else:
            self.images = _put(images, replicated)
        self.labels, self.index = _put(labels, replicated), _put(index, replicated)

    def batches(self, plan: Plan) -> "DeviceBatches":
        """Return an iterator over the batches of a plan."""
        return DeviceBatches(self, plan)


class DeviceBatches(Batches):
    """Batches gathered on the devices."""

    def __init__(self, split: DeviceSplit, plan: Plan):
        super().__init__(plan)
        self._split = split
        self._epoch: int | None = None
        self._order: list[jax.Array | None] = []

    def __next__(self) -> Batch:
        if self._step >= len(self._plan):
            raise StopIteration
        split, plan = self._split, self._plan
        epoch, position = divmod(self._step, plan.steps)
        if epoch != self._epoch:
            order, weight = plan.epoch(epoch)
            self._order = [
                _put(order, split.replicated),
                None if weight is None else _put(weight, split.replicated),
            ]
            self._epoch = epoch
        self._step += 1
        take = _compiled_take(plan.identity["batch_size"], split.sharding)
        return take(split.images, split.labels, split.index, *self._order, np.int32(position))


@functools.cache
def _compiled_take(batch_size: int, sharding: NamedSharding) -> Callable[..., Batch]:
    @functools.partial(jax.jit, out_shardings=sharding)
    def take(
        images: jax.Array,  # (N, H, W, 3) uint8
        labels: jax.Array,  # (N,) int32
        index: jax.Array,  # (N,) int32
        order: jax.Array,  # of the epoch, (at least steps * batch_size,) int32
        weight: jax.Array | None,  # of the same shape, float32
        position: jax.Array,  # which batch of the epoch, () int32
    ) -> Batch:
        def cut(array: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice(array, (position * batch_size,), (batch_size,))

        chosen = cut(order)
        batch = {"image": images[chosen], "label": labels[chosen], "index": index[chosen]}
        if weight is not None:
            # A skipped unreadable image comes back under another index.
            batch["weight"] = cut(weight) * (batch["index"] == chosen)
        return batch

    return take


def _put(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    return jax.make_array_from_callback(array.shape, sharding, lambda part: array[part])
