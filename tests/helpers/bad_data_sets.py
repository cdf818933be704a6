"""Data sets as people write them, each with one mistake: `helpers.bad_data_sets:NAME`."""

import numpy as np

from bocb_jax.data import Dataset, from_arrays

IMAGES, LABELS = np.zeros((40, 8, 8, 3), np.uint8), np.arange(40) % 4
MASKED = np.ma.masked_array(IMAGES, mask=IMAGES == 0)
NAN = np.full(IMAGES.shape, np.nan)


def arrays(images=IMAGES, labels=LABELS, **description):
    return lambda options: from_arrays("mine", images, labels, **description)


def fields(**changes):
    splits = dict(from_arrays("mine", IMAGES, LABELS).splits)
    given = {"num_classes": 4, "splits": splits, "image_shape": (8, 8, 3)} | changes
    return lambda options: Dataset("mine", **given)


def objects():
    held = np.empty(40, object)
    held[:] = list(IMAGES)
    return held


float_images = arrays(IMAGES / 255)
bool_images = arrays(IMAGES > 0)
images_with_nan = arrays(NAN)
channels_first = arrays(IMAGES.transpose(0, 3, 1, 2))
four_channels = arrays(np.zeros((40, 8, 8, 4), np.uint8))
images_of_two_sizes = arrays([np.zeros((8 + i % 2, 8, 3), np.uint8) for i in range(40)])
object_images = arrays(objects())
masked_images = arrays(MASKED)
images_without_pixels = arrays(IMAGES[:, :0])
no_images = arrays(IMAGES[:0], LABELS[:0])
float_labels = arrays(labels=LABELS.astype(float))
labels_with_nan = arrays(labels=np.where(LABELS == 0, np.nan, LABELS))
text_labels = arrays(labels=LABELS.astype(str))
one_hot_labels = arrays(labels=np.eye(4, dtype=int)[LABELS])
column_of_labels = arrays(labels=LABELS[:, None])
fewer_labels = arrays(labels=LABELS[:-1])
negative_labels = arrays(labels=LABELS - 1)
huge_labels = arrays(labels=LABELS + 5_000_000_000 - 3)
sparse_labels = arrays(labels=LABELS * 3000)
one_class = arrays(labels=LABELS * 0)
too_few_names = arrays(class_names=("a", "b"))
mean_of_bytes = arrays(mean=(125.3, 123.0, 113.9))
mean_of_one = arrays(mean=(0.5,))
mean_of_text = arrays(mean="half")
std_of_zero = arrays(std=(0, 1, 1))
std_of_nan = arrays(std=(float("nan"), 1, 1))
held_out_all = arrays(held_out=1.0)
held_out_most = arrays(held_out=0.5)
split_seed = arrays(split_seed=-1)
shapes_of_splits = arrays(test=(IMAGES[:, :4], LABELS))
no_test_split = fields(splits={"train": [], "validation": []})
no_classes = fields(num_classes=None)
flat_shape = fields(image_shape=(8, 8))
