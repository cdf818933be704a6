"""The data sets with short names: digits, and the paper's cifar10, cifar100 and imagenet2012."""

import dataclasses
import hashlib
import importlib.util
import os
import shutil
import tarfile
import urllib.request
import uuid
from typing import Any

import numpy as np

from bocb_jax.data.arrays import from_arrays
from bocb_jax.data.dataset import Dataset, OpenOptions
from bocb_jax.data.holdout import held_out_fraction
from bocb_jax.data.registry import register_dataset
from bocb_jax.data.tfds import default_data_dir, is_prepared, open_tfds
from bocb_jax.errors import DatasetMissing, UserError


@dataclasses.dataclass(frozen=True)
class _Cifar:
    """The binary version of a CIFAR data set (A. Krizhevsky, 2009)."""

    name: str
    url: str
    sha256: str
    folder: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    label_bytes: int  # before each image: the label is the last of them, after any coarse label
    class_names: str
    description: dict[str, Any]


_CIFAR10 = _Cifar(
    name="cifar10",
    url="https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    sha256="c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    folder="cifar-10-batches-bin",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test=("test_batch.bin",),
    label_bytes=1,
    class_names="batches.meta.txt",
    description={"mean": (0.4914, 0.4822, 0.4465), "std": (0.2470, 0.2435, 0.2616)},
)
_CIFAR100 = _Cifar(
    name="cifar100",
    url="https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    sha256="58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    folder="cifar-100-binary",
    train=("train.bin",),
    test=("test.bin",),
    label_bytes=2,
    class_names="fine_label_names.txt",
    description={"mean": (0.5071, 0.4865, 0.4409), "std": (0.2673, 0.2564, 0.2762)},
)


@register_dataset("digits")
def open_digits(options: OpenOptions) -> Dataset:
    """Open the 1,797 handwritten digits, 8x8, of scikit-learn (E. Alpaydin, C. Kaynak, 1998)."""
    # Read from scikit-learn's file: importing it takes as long as compiling a small network.
    spec = importlib.util.find_spec("sklearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError("The digits come with scikit-learn; install it (pip install scikit-learn).")
    folder = spec.submodule_search_locations[0]
    table = np.loadtxt(os.path.join(folder, "datasets", "data", "digits.csv.gz"), delimiter=",")
    # Each row: 64 gray levels, 0 ... 16, and the digit.
    images = np.round(table[:, :-1].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return from_arrays(
        "digits",
        images,
        table[:, -1].astype(np.int32),
        split_seed=options.split_seed,
        class_names=tuple("0123456789"),
        mean=(0.305, 0.305, 0.305),
        std=(0.376, 0.376, 0.376),
    )


@register_dataset("cifar10")
def open_cifar10(options: OpenOptions) -> Dataset:
    """Open CIFAR-10: 60,000 photographs of 10 classes, 32x32 (A. Krizhevsky, 2009)."""
    return _open_cifar(_CIFAR10, options)


@register_dataset("cifar100")
def open_cifar100(options: OpenOptions) -> Dataset:
    """Open CIFAR-100: 60,000 photographs of 100 classes, 32x32 (A. Krizhevsky, 2009)."""
    return _open_cifar(_CIFAR100, options)


@register_dataset("imagenet2012")
def open_imagenet2012(options: OpenOptions) -> Dataset:
    """Open ImageNet: 1.28 million photographs of 1,000 classes (Russakovsky et al., 2015).

    arXiv 1409.0575. The official validation split is the test split, as is usual: the labels of
    the official test split are not public.
    """
    return dataclasses.replace(
        open_tfds("imagenet2012", options, test="validation"), name="imagenet2012"
    )


def _open_cifar(cifar: _Cifar, options: OpenOptions) -> Dataset:
    # TFDS cannot prepare these without TensorFlow; unless it has, the original files are read.
    data_dir = options.data_dir or default_data_dir()
    if is_prepared(cifar.name, data_dir):
        dataset = open_tfds(cifar.name, options, **cifar.description)
        return dataclasses.replace(dataset, name=cifar.name)
    folder = os.path.join(data_dir, cifar.folder)
    if not os.path.isdir(folder):
        _extract(_archive(cifar, data_dir, options.download), folder)
    try:
        train, test = (_read(cifar, folder, names) for names in (cifar.train, cifar.test))
        with open(os.path.join(folder, cifar.class_names)) as file:
            class_names = tuple(file.read().split())
    except (OSError, ValueError) as error:
        raise UserError(
            f"The folder '{folder}' does not hold all of {cifar.name} ({error}); remove it to have "
            "it unpacked again."
        ) from error
    return from_arrays(
        cifar.name,
        *train,
        test=test,
        held_out=held_out_fraction(len(train[1])),
        split_seed=options.split_seed,
        class_names=class_names,
        **cifar.description,
    )


def _read(cifar: _Cifar, folder: str, names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Read binary files to images, (N, 32, 32, 3) uint8, and labels, (N,) int32."""
    files = [np.fromfile(os.path.join(folder, name), np.uint8) for name in names]
    records = np.concatenate(files).reshape(-1, cifar.label_bytes + 3 * 32 * 32)
    images = records[:, cifar.label_bytes :].reshape(-1, 3, 32, 32)
    return images.transpose(0, 2, 3, 1), records[:, cifar.label_bytes - 1].astype(np.int32)


def _archive(cifar: _Cifar, data_dir: str, download: bool) -> str:
    """Return the path of the archive, downloading it if need be."""
    archive = os.path.join(data_dir, os.path.basename(cifar.url))
    if os.path.exists(archive):
        return archive
    not_there = f"The dataset '{cifar.name}' is not in {data_dir}"
    remedy = f"Put {cifar.url} there, or give the folder that holds it as --data.dir."
    if not download:
        raise DatasetMissing(f"{not_there}, and downloading is switched off. {remedy}")
    partial = _partial(archive)
    try:
        os.makedirs(data_dir, exist_ok=True)
        digest = hashlib.sha256()
        with urllib.request.urlopen(cifar.url, timeout=20) as source, open(partial, "wb") as sink:
            while block := source.read(2**20):
                digest.update(block)
                sink.write(block)
        if digest.hexdigest() != cifar.sha256:
            raise OSError("the downloaded file has a wrong checksum")
        os.replace(partial, archive)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{not_there} and cannot be downloaded: {reason}. {remedy}") from error
    finally:
        if os.path.exists(partial):
            os.remove(partial)
    return archive


def _extract(archive: str, folder: str):
    """Unpack the files of an archive into a folder, without the folders in it."""
    # Renamed at the end, so that a folder of this name is always complete.
    partial = _partial(folder)
    try:
        os.makedirs(partial)
        with tarfile.open(archive) as tar:
            for member in tar:
                source = tar.extractfile(member) if member.isfile() else None
                if source is not None:
                    with open(os.path.join(partial, os.path.basename(member.name)), "wb") as file:
                        file.write(source.read())
        try:
            os.replace(partial, folder)
        except OSError:
            if not os.path.isdir(folder):  # another process has unpacked it meanwhile
                raise
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(
            f"The archive '{archive}' cannot be unpacked ({error}); remove it; it is downloaded "
            "again."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: str) -> str:
    """Return a name beside a path that no other process uses, on this machine or another."""
    return f"{path}.{uuid.uuid4().hex}.part"
