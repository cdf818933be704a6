"""Data sets on the host, and how their images reach the devices."""

from bocb_jax.data import named  # noqa: F401  (registers its data sets)
from bocb_jax.data.arrays import from_arrays
from bocb_jax.data.dataset import Dataset, Split
from bocb_jax.data.registry import DATASETS, open_dataset, register_dataset

__all__ = ["DATASETS", "Dataset", "Split", "from_arrays", "open_dataset", "register_dataset"]
