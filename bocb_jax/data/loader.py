"""Batches of a data set's splits: from the devices' memory where it fits, else through the host."""

from typing import Any

from bocb_jax.data import pipeline
from bocb_jax.data.on_device import DeviceSplit, fits
from bocb_jax.data.records import RandomCrop
from bocb_jax.data.registry import Dataset, Split


class Loader:
    """Makes the iterators of one run; which way a batch takes changes none of its bits.

    Args:
      dataset: what to read.
      batch_size: of the global batch, over all processes.
      image_size: side in pixels to which the host brings images of varying sizes.
      test_size: the same for evaluation; None for `image_size`.
      sharding: `NamedSharding` of the batch dimension.
      workers: processes that decode images; 0 decodes in threads of this one.
      crop: the random crop that the host makes of training images of varying sizes; None for the
        central square.
      crop_ratio: share of the shorter side that the host keeps of a test image of varying size.
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
        test_size: int | None = None,
        workers: int = 0,
        crop: RandomCrop | None = None,
        crop_ratio: float = 1.0,
        on_device: str = "auto",
    ):
        self._reading = {"batch_size": batch_size, "sharding": sharding}
        self._workers, self._on_device = workers, on_device
        self._resident: dict[str, DeviceSplit] = {}
        self._splits: dict[str, Split] = {}
        for name, split in dataset.splits.items():
            if dataset.image_shape is None and name == "train" and crop is not None:
                split = split.cropped(image_size, crop)
            elif dataset.image_shape is None and name == "train":
                split = split.sized(image_size)
            elif dataset.image_shape is None:
                split = split.sized(test_size or image_size, crop_ratio)
            elif hasattr(split, "sized"):
                split = split.sized(None)
            self._splits[name] = split

    def on_device(self, split: str) -> bool:
        """Whether a split lives on the devices."""
        if self._on_device == "auto":
            return fits(self._splits[split])
        return self._on_device == "yes"

    def train(self, *, seed: int, repeats: int = 1):
        """Endless shuffled batches, see `pipeline.train_batches`."""
        split = self._splits["train"]
        if self.on_device("train"):
            batch_size = self._reading["batch_size"]
            plan = pipeline.TrainPlan(len(split), batch_size, seed, repeats)
            return self._device_split("train").batches(plan)
        return pipeline.train_batches(
            split, seed=seed, repeats=repeats, workers=self._workers, **self._reading
        )

    def evaluation(self, split: str):
        """One pass over a split, see `pipeline.evaluation_batches`."""
        if self.on_device(split):
            plan = pipeline.EvaluationPlan(len(self._splits[split]), self._reading["batch_size"])
            return self._device_split(split).batches(plan)
        return pipeline.evaluation_batches(
            self._splits[split], workers=self._workers, **self._reading
        )

    def _device_split(self, split: str) -> DeviceSplit:
        if split not in self._resident:
            self._resident[split] = DeviceSplit(self._splits[split], self._reading["sharding"])
        return self._resident[split]
