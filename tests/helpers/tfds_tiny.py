"""Tiny data sets written by TFDS's own tools; images are bytes, which needs no TensorFlow."""

import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image


def png(height, width, value):
    """Return a PNG file whose pixels are all `value`."""
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), value, np.uint8)).save(file, "PNG")
    file.seek(0)
    return file


def build(path):
    """Write tiny_shapes, tiny_varying and tiny_broken under `path`."""

    class TinyShapes(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        """Images of one shape, in train and test; pixels hold the number of the example."""

        VERSION = tfds.core.Version("1.0.0")
        SIZES = {"train": 30, "test": 10}  # noqa: RUF012
        SHAPE = (6, 5, 3)

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=self.SHAPE),
                "label": tfds.features.ClassLabel(names=["circle", "square", "star"]),
            }
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {key: self._generate_examples(size) for key, size in self.SIZES.items()}

        def _generate_examples(self, size):
            for i in range(size):
                yield i, {"image": self.image(i), "label": i % 3}

        def image(self, i):
            return png(6, 5, i)

    class TinyVarying(TinyShapes, skip_registration=True):
        """Images of varying sizes, in train and validation."""

        SIZES = {"train": 20, "validation": 6}  # noqa: RUF012
        SHAPE = (None, None, 3)

        def image(self, i):
            return png(8 + i, 10, i)

    class TinyBroken(TinyShapes, skip_registration=True):
        """Images that cannot be decoded."""

        SIZES = {"train": 10, "test": 4}  # noqa: RUF012

        def image(self, i):
            return io.BytesIO(b"\x89PNG\r\n\x1a\n" + bytes(20))

    for builder in (TinyShapes, TinyVarying, TinyBroken):
        builder(data_dir=str(path), file_format="array_record").download_and_prepare()


class NeedsTensorFlow(tfds.core.GeneratorBasedBuilder):
    """Arrays as images, for which TFDS needs TensorFlow."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(4, 4, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for i in range(4):
            yield i, {"image": np.zeros((4, 4, 3), np.uint8), "label": i % 2}
