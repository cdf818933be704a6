"""Batches of a data set's splits, from device memory where they fit and through the host otherwise.

The way that a batch takes changes none of its bits.
"""

from typing import Any

from bocb_jax.data import pipeline
from bocb_jax.data.checked import checked
from bocb_jax.data.dataset import Dataset, Split
from bocb_jax.data.decode import RandomCrop
from bocb_jax.data.on_device import DeviceSplit, fits_on_device
from bocb_jax.data.pipeline import Batches


class Loader:
    """Makes the batch iterators of one run.

    Args:
      dataset: the data set to read.
      batch_size: size of the global batch, over all processes.
      image_size: side in pixels to which the host brings images of varying sizes.
      sharding: `NamedSharding` of the batch dimension.
      test_size: the same as `image_size` for evaluation; None for `image_size`.
      workers: processes that decode images; 0 decodes in threads of this one.
      crop: the random crop that the host makes of training images of varying sizes; None for the
        central square.
      crop_ratio: share of the shorter side that the host keeps of a test image of varying size.
      on_device: "yes" and "no" decide where the splits live; "auto" places those on the devices
        that are held in memory and small.
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
        self._batch_size, self._sharding = batch_size, sharding
        self._workers, self._on_device = workers, on_device
        self._resident: dict[str, DeviceSplit] = {}
        self._splits: dict[str, Split] = {}
        for name, split in dataset.splits.items():
            if dataset.image_shape is not None:
                self._splits[name] = split.sized(None)
            elif name != "train":
                self._splits[name] = split.sized(test_size or image_size, crop_ratio)
            elif crop is not None:
                self._splits[name] = split.cropped(image_size, crop)
            else:
                self._splits[name] = split.sized(image_size)
            self._splits[name] = checked(self._splits[name], dataset.num_classes)

    def on_device(self, split: str) -> bool:
        """Return whether a split lives on the devices."""
        if self._on_device == "auto":
            return fits_on_device(self._splits[split])
        return self._on_device == "yes"

    def train(self, *, seed: int, repeats: int = 1) -> Batches:
        """Return endless shuffled batches, see `pipeline.train_batches`."""
        if self.on_device("train"):
            examples = len(self._splits["train"])
            plan = pipeline.TrainPlan(examples, self._batch_size, seed, repeats)
            return self._device_split("train").batches(plan)
        return pipeline.train_batches(
            self._splits["train"],
            batch_size=self._batch_size,
            seed=seed,
            sharding=self._sharding,
            workers=self._workers,
            repeats=repeats,
        )

    def evaluation(self, split: str) -> Batches:
        """Return one pass over a split, see `pipeline.evaluation_batches`."""
        if self.on_device(split):
            plan = pipeline.EvaluationPlan(len(self._splits[split]), self._batch_size)
            return self._device_split(split).batches(plan)
        return pipeline.evaluation_batches(
            self._splits[split],
            batch_size=self._batch_size,
            sharding=self._sharding,
            workers=self._workers,
        )

    def _device_split(self, split: str) -> DeviceSplit:
        if split not in self._resident:
            self._resident[split] = DeviceSplit(self._splits[split], self._sharding)
        return self._resident[split]
