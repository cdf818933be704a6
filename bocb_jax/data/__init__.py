"""Where images come from and how they reach the device."""

from bocb_jax.data import named  # noqa: F401  (registers its data sets)
from bocb_jax.data.registry import DATASETS, Dataset, from_arrays, open_dataset, register_dataset

__all__ = ["DATASETS", "Dataset", "from_arrays", "open_dataset", "register_dataset"]
