"""How quick the data are: images per second, in turn with PyTorch's DataLoader.

The augmentation is held against timm's, where neither side decodes: both have the same 32-pixel
images in memory as uint8. Reading a folder of JPEGs is held against torchvision's `ImageFolder`.
PyTorch and timm are no dependencies: they are used where the given interpreter has them, in a
process of their own.
"""

import dataclasses
import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from bocb_jax.augment.mixing import Mixing, mix, smoothed_one_hot
from bocb_jax.augment.preprocess import Augmentation, preprocess
from bocb_jax.data.loader import Loader
from bocb_jax.data.records import RandomCrop
from bocb_jax.data.registry import IMAGENET_MEAN, IMAGENET_STD, open_dataset
from bocb_jax.data.synthetic import photograph
from bocb_jax.errors import UserError

SOURCE = 32  # pixels of a side, before cropping
CROP = 224  # pixels of a side that are made of a photograph
CLASSES = 100
DEIT = {"flip": True, "rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
# As in the code of DeiT: small images are padded and cropped.
POLICIES = {
    32: Augmentation(pad=4, **DEIT),
    224: Augmentation(resized_crop=(0.08, 1.0), **DEIT),
}

_TIMED = """
print("ready", flush=True)
for _ in sys.stdin.buffer:
    start, count = time.perf_counter(), 0
    for number, (images, labels) in enumerate(loader, 1):
        finish(images, labels)
        count += len(images)
        if number == unseen:  # the workers have begun
            start, count = time.perf_counter(), 0
    print(count / (time.perf_counter() - start), flush=True)
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
    """Images per second in every round; `theirs` is empty without PyTorch and timm.

    Attributes:
      of: "augmentation" or "folder".
      size: side of the resulting images in pixels.
      ours: images per second of each round.
      theirs: likewise.
    """

    of: str
    size: int
    ours: list[float]
    theirs: list[float]

    @property
    def ratio(self) -> float | None:
        """Median of ours over median of theirs."""
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
    """The DeiT recipe's augmentation, with Mixup and CutMix, round after round on both sides.

    Args:
      size: side of the result, 32 or 224.
      rounds: how often each side is timed; they take turns.
      batch: images of a batch; None for 128 small or 32 large ones. (An array that the allocator
        takes from the system and gives back each time would cost as much as the augmentation.)
      batches: batches in a round.
      workers: processes of the DataLoader.
      python: command of an interpreter that has PyTorch, torchvision and timm.

    Raises:
      UserError: no recipe for this size.
    """
    if size not in POLICIES:
        raise UserError(f"The recipe is measured at {' or '.join(map(str, POLICIES))} pixels.")
    batch = batch or (128 if size <= 32 else 32)
    images = np.random.default_rng(0).integers(0, 256, (batches * batch, SOURCE, SOURCE, 3))
    # As smooth as photographs are: look-ups and branches take their usual time.
    images = ((images + np.roll(images, 1, 1) + np.roll(images, 1, 2)) // 3).astype(np.uint8)
    ours = _ours(size, images.reshape(batches, batch, *images.shape[1:]))
    settings = [size, batch, batches, workers, SOURCE, CLASSES, IMAGENET_MEAN, IMAGENET_STD]
    with _Rival(python, _TIMM, settings, images.tobytes()) as theirs:
        return _in_turn("augmentation", size, ours, theirs, rounds)


def measure_folder(
    *,
    rounds: int = 5,
    images: int = 1024,
    batch: int = 64,
    unseen: int = 4,
    workers: int = 2,
    python: Sequence[str] = (sys.executable,),
) -> Speed:
    """From JPEGs in a folder, as large as those of ImageNet, to cropped and normalized batches.

    Ours goes the way of a run with its default settings, onto the device. A run's reading has no
    end, so both are timed while they are at it.

    Args:
      rounds: how often each side passes over the folder; they take turns.
      images: photographs in the folder.
      batch: images of a batch.
      unseen: batches of a pass before the clock starts, while threads and workers begin.
      workers: processes of the DataLoader.
      python: command of an interpreter that has PyTorch and torchvision.
    """
    with tempfile.TemporaryDirectory() as path:
        for number in range(images):
            folder = os.path.join(path, "train", f"class{number % 2}")
            os.makedirs(folder, exist_ok=True)
            with open(os.path.join(folder, f"{number:06}.jpg"), "wb") as file:
                file.write(photograph())
        # Without these two, some of the images would be held out of ours.
        for split in ("val", "test"):
            os.symlink(os.path.join(path, "train"), os.path.join(path, split))
        ours = _our_folder(path, batch, unseen)
        settings = [os.path.join(path, "train"), CROP, batch, workers]
        settings += [IMAGENET_MEAN, IMAGENET_STD, unseen]
        with _Rival(python, _IMAGE_FOLDER, settings) as theirs:
            return _in_turn("folder", CROP, ours, theirs, rounds)


def _in_turn(of: str, size: int, ours, theirs, rounds: int) -> Speed:
    ours(), theirs()  # compilation, and the start of the workers
    pairs = [(ours(), theirs()) for _ in range(rounds)]
    return Speed(of, size, [x for x, _ in pairs], [x for _, x in pairs if x is not None])


def _our_folder(path: str, batch: int, unseen: int):
    dataset = open_dataset(f"folder:{path}")
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), "data")
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    loader = Loader(
        dataset,
        batch_size=batch,
        image_size=CROP,
        sharding=sharding,
        crop=RandomCrop(),
        on_device="no",  # so few would be kept in memory
    )
    steps = len(dataset.splits["train"]) // batch
    prepare = functools.partial(
        preprocess, image_size=CROP, mean=IMAGENET_MEAN, std=IMAGENET_STD,
        policy=Augmentation(flip=True),
    )  # fmt: skip
    finish = jax.jit(lambda images, key: prepare(images, key=key))

    def once():
        with loader.train(seed=0) as batches:
            for step in range(steps):
                if step == unseen:
                    start = time.perf_counter()
                jax.block_until_ready(finish(next(batches)["image"], jax.random.key(step)))
            return (steps - unseen) * batch / (time.perf_counter() - start)

    return once


def _ours(size: int, images: np.ndarray):
    prepare = functools.partial(
        preprocess, image_size=size, mean=IMAGENET_MEAN, std=IMAGENET_STD, policy=POLICIES[size]
    )

    @jax.jit
    def step(images, key):
        labels = smoothed_one_hot(jnp.arange(len(images)) % CLASSES, CLASSES, 0.1)
        augment, mixing = jax.random.split(key)
        return mix(prepare(images, key=augment), labels, key=mixing, policy=Mixing(0.8, 1.0))

    batches = [jax.device_put(x) for x in images]

    def once():
        start = time.perf_counter()
        for i, batch in enumerate(batches):
            jax.block_until_ready(step(batch, jax.random.key(i)))
        return images.shape[0] * images.shape[1] / (time.perf_counter() - start)

    return once


class _Rival:
    """A process of another interpreter that times one pass of its `loader` whenever it is called.

    Args:
      python: its command.
      script: makes `loader` and `finish(images, labels)` of the JSON in `sys.argv[1]`.
      settings: for that JSON.
      sent: what the script finds on its standard input.

    Raises:
      UserError: it ended in the midst, as timm does on a Pillow that is too new for it.
    """

    def __init__(self, python: Sequence[str], script: str, settings: list, sent: bytes = b""):
        self._sent = sent
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115
        self._process = subprocess.Popen(
            [*python, "-c", script + _TIMED, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
        )

    def __enter__(self):
        try:
            self._process.stdin.write(self._sent)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # there is no PyTorch or no timm
        self._ready = self._process.stdout.readline() == b"ready\n"
        return self

    def __call__(self) -> float | None:
        if not self._ready:
            return None
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            self._errors.seek(0)
            last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
            raise UserError(f"PyTorch's side of the comparison failed: {' '.join(last)}")
        return float(answer)

    def __exit__(self, *exception):
        self._process.communicate()
        self._errors.close()
