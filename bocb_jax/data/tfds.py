"""Data sets of TensorFlow Datasets (TFDS), read from ArrayRecord files without TensorFlow."""

import contextlib
import difflib
import io
import os
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any

import numpy as np

from bocb_jax.data.dataset import Dataset, OpenOptions
from bocb_jax.data.holdout import held_out_fraction, stratified_split
from bocb_jax.data.records import Records, SubsetRecords
from bocb_jax.data.splits import EncodedSplit
from bocb_jax.errors import DatasetMissing, UnknownName, UserError


def default_data_dir() -> str:
    """Return the directory of TFDS: $TFDS_DATA_DIR, or else ~/tensorflow_datasets."""
    return os.path.expanduser(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def is_prepared(name: str, data_dir: str | None) -> bool:
    """Return whether some version of a data set is prepared in `data_dir`."""
    top = os.path.join(data_dir or default_data_dir(), name)
    return any("dataset_info.json" in files for _, _, files in os.walk(top))


def open_tfds(
    name: str, options: OpenOptions, *, test: str | None = None, **description: Any
) -> Dataset:
    """Open a data set of TFDS, preparing it first where that is possible.

    Without an official test split, the official validation split is the test split. A missing
    split is held out of "train" at random.

    Args:
      name: its name in TFDS: "cifar10", "oxford_flowers102:2.1.1", "name/config".
      options: all of them apply.
      test: the official split to test on; None for "test", or else "validation".
      **description: further fields of `Dataset` (mean, std).

    Raises:
      UnknownName: no data set has this name, on this machine or in the catalog.
      DatasetMissing: it is not on this machine and must not be downloaded.
      UserError: it cannot be prepared, or does not hold labeled images.
    """
    data_dir = options.data_dir or default_data_dir()
    with _quiet():
        builder = _prepared_builder(name, data_dir, options.download)
        image_key, label_key = _keys(name, builder.info)
        official = [key for key, info in builder.info.splits.items() if info.num_examples]
    image, label = builder.info.features[image_key], builder.info.features[label_key]

    records = {
        key: TfdsRecords(name, data_dir, key, builder.info.splits[key].num_examples, image_key,
                         label_key)
        for key in official
    }  # fmt: skip
    if "train" not in records:
        raise UserError(
            f"The dataset 'tfds:{name}' has no split 'train'; it has {', '.join(official)}."
        )
    splits = _find_splits(records, test, options.split_seed)
    height, width, *_ = image.shape
    shape = (height, width, 3) if height and width else None
    return Dataset(
        name=f"tfds:{name}",
        num_classes=label.num_classes,
        splits={
            key: EncodedSplit(splits[key], shape, options.on_corrupt)
            for key in ("train", "validation", "test")
        },
        image_shape=shape,
        class_names=tuple(label.names),
        **description,
    )


def _find_splits(
    official: dict[str, "TfdsRecords"], test: str | None, seed: int
) -> dict[str, Records]:
    """Return the records of "train", "validation" and "test"; hold out what is missing."""
    test = test or next((key for key in ("test", "validation") if key in official), None)
    splits: dict[str, Records] = {"train": official["train"]}
    if test is not None:
        splits["test"] = official[test]
    if "validation" in official and test != "validation":
        splits["validation"] = official["validation"]
    missing = [key for key in ("validation", "test") if key not in splits]
    # Not stratified: the labels are inside the records, and reading all of them would take long.
    count = len(official["train"])
    fractions = [held_out_fraction(count)] * len(missing)
    parts = stratified_split(np.zeros(count, int), fractions, seed)
    for key, part in zip(["train", *missing], parts, strict=True):
        splits[key] = SubsetRecords(official["train"], part)
    return splits


class TfdsRecords:
    """Records of one official split. Worker processes open the files again."""

    def __init__(
        self, dataset: str, data_dir: str, split: str, size: int, image_key: str, label_key: str
    ):
        self._location = dataset, data_dir, split
        self._size = size
        self._keys = image_key, label_key
        self._source: Any = None

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        if self._source is None:
            self._source = self._open()
        example = self._source[index]
        image_key, label_key = self._keys
        if example[label_key] < 0:  # TFDS's mark of labels that are not public
            raise UserError(f"The image {self.name(index)} has no label; test on another split.")
        return example[image_key], example[label_key]

    def name(self, index: int) -> str:
        dataset, data_dir, split = self._location
        return f"number {index} of split '{split}' of '{dataset}' in {data_dir}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_source": None}

    def _open(self) -> Any:
        import tensorflow_datasets as tfds

        dataset, data_dir, split = self._location
        with _quiet():
            builder = tfds.builder(dataset, data_dir=data_dir)
            # This package decodes the images itself, alike for every source.
            return builder.as_data_source(
                split=split, decoders={self._keys[0]: tfds.decode.SkipDecoding()}
            )


def _prepared_builder(name: str, data_dir: str, download: bool) -> Any:
    """Return TFDS's builder of a data set whose files are ready to be read."""
    import tensorflow_datasets as tfds

    not_there = f"The dataset 'tfds:{name}' is not in {data_dir}"
    remedy = (
        f"Prepare it on a machine with a network and TensorFlow (`tfds build {name} "
        "--file_format=array_record`) and give its folder as --data.dir; plain image folders open "
        "as folder:PATH."
    )
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = (
            f"Did you mean {' or '.join('tfds:' + x for x in near)}?"
            if near
            else "Names are listed at https://www.tensorflow.org/datasets/catalog."
        )
        raise UnknownName(f"{not_there}, and TFDS has no data set of that name. {hint}") from None
    except Exception as error:
        raise UserError(f"The dataset 'tfds:{name}' cannot be opened: {_line(error)}.") from error
    if not builder.is_prepared():
        _keys(name, builder.info)  # before a download that would be in vain
        if not download:
            raise DatasetMissing(f"{not_there}, and downloading is switched off. {remedy}")
        builder = _prepare(tfds, name, data_dir, f"{not_there} and cannot be prepared", remedy)
    try:
        builder.as_data_source(split="train")
    except NotImplementedError:
        raise UserError(
            f"The dataset 'tfds:{name}' in {data_dir} is stored in a format without random "
            f"access. {remedy}"
        ) from None
    except Exception as error:
        raise UserError(f"The dataset 'tfds:{name}' cannot be opened: {_line(error)}.") from error
    return builder


def _prepare(tfds: ModuleType, name: str, data_dir: str, failed: str, remedy: str) -> Any:
    """Download and prepare a data set; return its builder."""
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
    if not builder.MANUAL_DOWNLOAD_INSTRUCTIONS:
        _check_network(builder.url_infos or {}, failed, remedy)
    try:
        # Without TensorFlow, TFDS prints a banner; the error says the same.
        with contextlib.redirect_stdout(io.StringIO()):
            builder.download_and_prepare()
    except ModuleNotFoundError as error:
        raise UserError(f"{failed} without {error.name or 'TensorFlow'}. {remedy}") from error
    except Exception as error:
        raise UserError(f"{failed}: {_line(error)}. {remedy}") from error
    return builder


def _check_network(urls: Iterable[str], failed: str, remedy: str):
    # TFDS's downloader would retry for minutes. Behind a proxy a direct connection proves nothing.
    if urllib.request.getproxies():
        return
    for host in sorted({urllib.parse.urlsplit(url).hostname or "" for url in urls}):
        try:
            socket.create_connection((host, 443), timeout=10).close()
        except OSError as error:
            raise UserError(f"{failed}: {host} cannot be reached. {remedy}") from error


def _keys(name: str, info: Any) -> tuple[str, str]:
    """Return the names of the image and the label in the examples of a data set."""
    import tensorflow_datasets as tfds

    def first(kind: type) -> str | None:
        keys = [key for key, feature in info.features.items() if type(feature) is kind]
        preferred = [key for key in info.supervised_keys or () if key in keys]
        return next(iter(preferred + keys), None)

    image, label = first(tfds.features.Image), first(tfds.features.ClassLabel)
    if image is None or label is None or info.features[image].np_dtype not in (np.uint8, np.uint16):
        raise UserError(
            f"The dataset 'tfds:{name}' does not consist of images with one class each; it has the "
            f"features {', '.join(info.features)}."
        )
    return image, label


def _line(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else text[:300] + " ..."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence TFDS, whose log messages do not concern the user."""
    from absl import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
