"""Data sets on the host, and how their images reach the devices.

| module | holds |
|---|---|
| `dataset`, `registry`, `named` | what a data set is, and those with short names |
| `arrays`, `image_folder`, `imagenet`, `listing`, `tfds`, `synthetic` | where images come from |
| `records`, `decode`, `to_rgb`, `exif` | one image file, decoded and cropped |
| `splits` | images decoded when read; the rule that skips an unreadable one |
| `holdout`, `checked` | held-out examples; splits that people wrote |
| `pipeline`, `loader`, `on_device` | batches: their order, from the host or in device memory |
| `coco`, `coco_json`, `coco_folder`, `detections` | boxes and joints in COCO's format |
| `boxed`, `grouped`, `persons`, `warp` | images with boxes, and crops of persons, as batches |
| `shapes`, `figures` | the data set that is drawn |
"""

from bocb_jax.data import named  # noqa: F401  (registers its data sets)
from bocb_jax.data.arrays import from_arrays
from bocb_jax.data.dataset import Dataset, Split
from bocb_jax.data.registry import DATASETS, open_dataset, register_dataset

__all__ = ["DATASETS", "Dataset", "Split", "from_arrays", "open_dataset", "register_dataset"]
