"""What `dataset.json` of a run says of its data: what predictions need beside the weights."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bocb_jax.data.dataset import Dataset
from bocb_jax.data.listing import shown
from bocb_jax.tasks.kinds import AnyDataset

_LONGEST = 4096  # characters of a name


def describe(dataset: AnyDataset) -> dict[str, Any]:
    """Return the normalization, the names of the classes, the size of the images and the joints."""
    found: dict[str, Any] = {
        "name": dataset.name,
        "mean": [float(x) for x in dataset.mean],
        "std": [float(x) for x in dataset.std],
        "class_names": None,
        "image_shape": None,
        "skeleton": None,
    }
    if isinstance(dataset, Dataset):
        found["class_names"] = _names(dataset.class_names)
        if dataset.image_shape is not None:
            found["image_shape"] = [int(side) for side in dataset.image_shape]
    else:
        found["class_names"] = _names(dataset.annotations.category_names)
        if dataset.annotations.skeleton is not None:
            found["skeleton"] = dataclasses.asdict(dataset.annotations.skeleton)
    return found


def _names(names: Sequence[Any] | None) -> list[str] | None:
    """Return names without control characters, which a terminal would obey."""
    return None if names is None else [shown(str(name))[:_LONGEST] for name in names]
