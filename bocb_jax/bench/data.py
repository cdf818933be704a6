"""Throughput of the data pipeline in images per second, measured in turn with PyTorch's DataLoader.

Augmentation is compared with timm's, without decoding: both sides hold the same 32-pixel images in
memory as uint8. Reading a folder of JPEGs is compared with torchvision's `ImageFolder`. PyTorch and
timm are not dependencies: they run in a process of their own if the given interpreter has them.
"""

import dataclasses
import functools
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.augment.mixing import Mixing, mix, smoothed_one_hot
from bocb_jax.augment.preprocess import Augmentation, preprocess
from bocb_jax.bench.process import Timed
from bocb_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from bocb_jax.data.decode import RandomCrop
from bocb_jax.data.loader import Loader
from bocb_jax.data.registry import open_dataset
from bocb_jax.data.synthetic import synthetic_jpeg
from bocb_jax.errors import UserError

SOURCE_SIZE = 32  # side of the images in memory, in pixels
CROP_SIZE = 224  # side to which photographs are cropped, in pixels
NUM_CLASSES = 100
DEIT = Augmentation(flip=True, rand_augment="rand-m9-mstd0.5-inc1", erase=0.25)
# As in DeiT's code, small images are padded and cropped instead of resized.
POLICIES = {
    32: dataclasses.replace(DEIT, pad=4),
    224: dataclasses.replace(DEIT, resized_crop=(0.08, 1.0)),
}

# Appended to each of the two scripts below: times one pass of `loader` for every request.
_TIME_PASSES = """
print(json.dumps({"ready": True}), flush=True)
for _ in sys.stdin.buffer:
    start, count = time.perf_counter(), 0
    for number, (images, labels) in enumerate(loader, 1):
        finish(images, labels)
        count += len(images)
        if number == unseen:  # the workers have started by now
            start, count = time.perf_counter(), 0
    print(json.dumps({"rate": count / (time.perf_counter() - start)}), flush=True)
"""

_TIMM = """
import json, sys, time
import numpy as np, torch
from PIL import Image
from timm.data import Mixup, create_transform
from torchvision import transforms

size, batch, batches, workers, source, classes, mean, std = json.loads(sys.argv[1])
unseen = 0
transform = create_transform(size, is_training=True, color_jitter=None, interpolation="bicubic",
    auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25, re_mode="pixel", mean=mean, std=std)
if size <= 32:
    transform.transforms[0] = transforms.RandomCrop(size, padding=4)

class Images(torch.utils.data.Dataset):
    images = np.frombuffer(sys.stdin.buffer.read(batch * batches * source * source * 3), np.uint8)
    images = images.reshape(-1, source, source, 3)
    def __len__(self):
        return len(self.images)
    def __getitem__(self, index):
        return transform(Image.fromarray(self.images[index])), index % classes

torch.set_num_threads(1)  # the workers need the cores
loader = torch.utils.data.DataLoader(Images(), batch, shuffle=True, num_workers=workers,
    persistent_workers=True)
finish = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=classes)
"""

_IMAGE_FOLDER = """
import json, sys, time
import torch
from torchvision import datasets, transforms

path, size, batch, workers, mean, std, unseen = json.loads(sys.argv[1])
transform = transforms.Compose([
    transforms.RandomResizedCrop(size, interpolation=transforms.InterpolationMode.BICUBIC),
    transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize(mean, std)])
torch.set_num_threads(1)  # the workers need the cores
loader = torch.utils.data.DataLoader(datasets.ImageFolder(path, transform), batch, shuffle=True,
    num_workers=workers, persistent_workers=True, drop_last=True)
finish = lambda images, labels: None
"""


@dataclasses.dataclass(frozen=True)
class Speed:
    """Throughput of both sides, round by round.

    Attributes:
      of: what was measured, "augmentation" or "folder".
      size: side of the resulting images in pixels.
      ours: images per second in each round.
      theirs: the same for PyTorch's side; empty without PyTorch and timm.
    """

    of: str
    size: int
    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float | None:
        """Return the median of ours over the median of theirs; None without theirs."""
        if not self.theirs:
            return None
        return statistics.median(self.ours) / statistics.median(self.theirs)


def measure(
    size: int,
    *,
    rounds: int = 5,
    batch: int | None = None,
    batches: int = 8,
    workers: int = 2,
    python: Sequence[str] = (sys.executable,),
) -> Speed:
    """Measure the augmentation of the DeiT recipe, with Mixup and CutMix, against timm's.

    Args:
      size: side of the result in pixels, 32 or 224.
      rounds: how often each side is timed; they take turns.
      batch: images in a batch; None for 128 small or 32 large ones. (With larger batches the
        allocator would return each array to the system, which costs as much as the augmentation.)
      batches: batches in a round.
      workers: processes of the DataLoader.
      python: command of an interpreter that has PyTorch, torchvision and timm.

    Raises:
      UserError: there is no policy for this size.
    """
    if size not in POLICIES:
        raise UserError(
            f"The augmentation is measured at {' or '.join(map(str, POLICIES))} pixels, not {size}."
        )
    batch = batch or (128 if size <= 32 else 32)
    images = np.random.default_rng(0).integers(
        0, 256, (batches * batch, SOURCE_SIZE, SOURCE_SIZE, 3)
    )
    # Smoothed like photographs, so that table look-ups and branches take their usual time.
    images = ((images + np.roll(images, 1, 1) + np.roll(images, 1, 2)) // 3).astype(np.uint8)
    ours = _ours(size, images.reshape(batches, batch, *images.shape[1:]))
    arguments: list[Any] = [size, batch, batches, workers, SOURCE_SIZE, NUM_CLASSES]
    arguments += [IMAGENET_MEAN, IMAGENET_STD]
    command = [*python, "-c", _TIMM + _TIME_PASSES]
    with Timed(command, arguments, sent=images.tobytes()) as theirs:
        return _alternate("augmentation", size, ours, theirs, rounds)


def measure_folder(
    *,
    rounds: int = 5,
    images: int = 1024,
    batch: int = 64,
    unseen: int = 4,
    workers: int = 2,
    python: Sequence[str] = (sys.executable,),
) -> Speed:
    """Measure from JPEGs in a folder, as large as ImageNet's, to cropped and normalized batches.

    Ours are read as in a run with default settings, onto the device. A run reads without end, so
    both sides are timed in the middle of a pass.

    Args:
      rounds: how often each side passes over the folder; they take turns.
      images: photographs in the folder.
      batch: images in a batch.
      unseen: batches of a pass before the clock starts, while threads and workers start.
      workers: processes of the DataLoader.
      python: command of an interpreter that has PyTorch and torchvision.
    """
    with tempfile.TemporaryDirectory() as path:
        # Without images for validation and testing, our side would hold some out.
        for split, count in {"train": images, "val": 2, "test": 2}.items():
            for number in range(count):
                folder = os.path.join(path, split, f"class{number % 2}")
                os.makedirs(folder, exist_ok=True)
                with open(os.path.join(folder, f"{number:06}.jpg"), "wb") as file:
                    file.write(synthetic_jpeg())
        ours = _our_folder(path, batch, unseen)
        arguments: list[Any] = [os.path.join(path, "train"), CROP_SIZE, batch, workers]
        arguments += [IMAGENET_MEAN, IMAGENET_STD, unseen]
        with Timed([*python, "-c", _IMAGE_FOLDER + _TIME_PASSES], arguments) as theirs:
            return _alternate("folder", CROP_SIZE, ours, theirs, rounds)


def _alternate(of: str, size: int, ours: Callable[[], float], theirs: Timed, rounds: int) -> Speed:
    """Time both sides in turn; theirs only if its interpreter has what it needs.

    Raises:
      UserError: PyTorch's side failed, as timm does with a Pillow that is too new for it.
    """

    def their_rate() -> float | None:
        if theirs.problem:
            return None
        answer = theirs.ask()
        if "error" in answer:
            raise UserError(f"PyTorch's side of the comparison failed: {answer['error']}.")
        return float(answer["rate"])

    ours(), their_rate()  # compiles, and starts the workers
    pairs = [(ours(), their_rate()) for _ in range(rounds)]
    return Speed(of, size, [x for x, _ in pairs], [x for _, x in pairs if x is not None])


def _our_folder(path: str, batch: int, unseen: int) -> Callable[[], float]:
    dataset = open_dataset(f"folder:{path}")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "data")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    loader = Loader(
        dataset,
        batch_size=batch,
        image_size=CROP_SIZE,
        sharding=sharding,
        crop=RandomCrop(),
        on_device="no",  # "auto" would keep so few images on the device
    )
    steps = len(dataset.splits["train"]) // batch
    prepare = functools.partial(
        preprocess, image_size=CROP_SIZE, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        policy=Augmentation(flip=True),
    )  # fmt: skip
    finish = jax.jit(lambda images, key: prepare(images, key=key))

    def once() -> float:
        with loader.train(seed=0) as batches:
            for step in range(steps):
                if step == unseen:
                    start = time.perf_counter()
                jax.block_until_ready(finish(next(batches)["image"], jax.random.key(step)))
            return (steps - unseen) * batch / (time.perf_counter() - start)

    return once


def _ours(size: int, images: np.ndarray) -> Callable[[], float]:
    prepare = functools.partial(
        preprocess, image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, policy=POLICIES[size]
    )

    @jax.jit
    def step(images: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        labels = smoothed_one_hot(jnp.arange(len(images)) % NUM_CLASSES, NUM_CLASSES, 0.1)
        augment, mixing = jax.random.split(key)
        return mix(prepare(images, key=augment), labels, key=mixing, policy=Mixing(0.8, 1.0))

    batches = [jax.device_put(x) for x in images]

    def once() -> float:
        start = time.perf_counter()
        for i, batch in enumerate(batches):
            jax.block_until_ready(step(batch, jax.random.key(i)))
        return images.shape[0] * images.shape[1] / (time.perf_counter() - start)

    return once
