"""Batches of a data set's splits: from the devices' memory where it fits, else through the host."""

from typing import Any

from bocb_jax.data import pipeline
from bocb_jax.data.on_device import DeviceSplit, fits
from bocb_jax.data.sources import Dataset


class Loader:
    """Makes the iterators of one run; which way a batch takes changes none of its bits.

    Args:
      dataset: what to read.
      batch_size: of the global batch, over all processes.
      image_size: side to which images are brought on the host where their sizes vary.
      sharding: `NamedSharding` of the batch dimension.
      workers: processes that decode images; 0 decodes in threads of this one.
      on_device: "yes" and "no" decide where the splits live; "auto" puts those there that are
        held in memory and small.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        batch_size: int,
        image_size: int,
        sharding: Any,
        workers: int = 0,
        on_device: str = "auto",
    ):
        self._splits = dataset.splits
        self._batch_size, self._image_size = batch_size, image_size
        self._sharding, self._workers, self._on_device = sharding, workers, on_device
        self._resident: dict[str, DeviceSplit] = {}

    def on_device(self, split: str) -> bool:
        """Whether a split lives on the devices."""
        if self._on_device == "auto":
            return fits(self._splits[split], self._image_size)
        return self._on_device == "yes"

    def train(self, *, seed: int, repeats: int = 1):
        """Endless shuffled batches, see `pipeline.train_batches`."""
        split = self._splits["train"]
        if self.on_device("train"):
            plan = pipeline.TrainPlan(len(split), self._batch_size, seed, repeats)
            return self._device_split("train").batches(plan)
        return pipeline.train_batches(split, seed=seed, repeats=repeats, **self._reading())

    def evaluation(self, split: str):
        """One pass over a split, see `pipeline.evaluation_batches`."""
        if self.on_device(split):
            plan = pipeline.EvaluationPlan(len(self._splits[split]), self._batch_size)
            return self._device_split(split).batches(plan)
        return pipeline.evaluation_batches(self._splits[split], **self._reading())

    def _reading(self) -> dict[str, Any]:
        return {
            "batch_size": self._batch_size,
            "image_size": self._image_size,
            "sharding": self._sharding,
            "workers": self._workers,
        }

    def _device_split(self, split: str) -> DeviceSplit:
        if split not in self._resident:
            self._resident[split] = DeviceSplit(
                self._splits[split], self._sharding, image_size=self._image_size
            )
        return self._resident[split]
