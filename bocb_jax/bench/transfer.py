"""The cost of a detector's or a pose net's training step, beside the same net in PyTorch.

The references are torchvision's RetinaNet, and its ResNet with the three transposed convolutions of
SimpleBaseline; channels first or last, whichever is faster here. Images are random. An image has
as many boxes as one of COCO's on average, and as much room for them as the fullest of COCO's needs.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bocb_jax.bench.models import ModelCost, Timing, cost, timed_reference
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data.annotated import AnnotatedDataset
from bocb_jax.data.coco import Annotations
from bocb_jax.data.coco_json import annotations_from_json
from bocb_jax.models import model_card
from bocb_jax.pose.skeleton import COCO_PERSON
from bocb_jax.train import Run

# Of COCO: the mean number of boxes in an image, the largest, and the number of categories.
_BOXES, _MOST_BOXES, _CATEGORIES = 7, 93, 80


@dataclasses.dataclass(frozen=True)
class Setting:
    """How the training step of a task is timed.

    Attributes:
      image_size: pixels, as `--image-size` of `bocb transfer` counts them.
      batch_size: images a step.
      config: settings of the run.
      sides: from those pixels to (height, width) of an image.
    """

    image_size: int
    batch_size: int
    config: dict[str, Any]
    sides: Callable[[int], tuple[int, int]]


SETTINGS = {
    # As after pre-training: the stem and the first stage are frozen, and BatchNorm's statistics.
    "detection": Setting(
        800,
        2,
        {
            "opt": "sgd",
            "recipe": "1x",
            "transfer": {"frozen_stages": 1, "batch_norm": "statistics"},
        },
        lambda short: (short, round(short * 1333 / 800)),
    ),
    "pose": Setting(
        256, 8, {"opt": "adam", "recipe": "210e"}, lambda height: (height, height * 3 // 4)
    ),
}

# Defines the `step` of a reference.
_REFERENCE = """
import json, os, sys, time
import torch, torchvision
from torch import nn

task, name, height, width, batch, boxes, classes = json.loads(sys.argv[1])
torch.set_num_threads(len(os.sched_getaffinity(0)))
if task == "detection":
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7
    backbone = getattr(torchvision.models, name)(norm_layer=torchvision.ops.FrozenBatchNorm2d)
    extra = LastLevelP6P7(256, 256)
    backbone = _resnet_fpn_extractor(backbone, 3, returned_layers=[2, 3, 4], extra_blocks=extra)
    model = RetinaNet(backbone, classes, min_size=height, max_size=width)
    images = [torch.rand(3, height, width) for _ in range(batch)]
    targets = [{"boxes": torch.tensor(boxes), "labels": torch.arange(len(boxes)) % classes}] * batch
    loss = lambda: sum(model(images, targets).values())
else:
    def doubled(features):
        conv = nn.ConvTranspose2d(features, 256, 4, 2, 1, bias=False)
        return [conv, nn.BatchNorm2d(256), nn.ReLU(inplace=True)]
    trunk = list(getattr(torchvision.models, name)().children())[:-2]
    features = getattr(torchvision.models, name)().fc.in_features
    layers = [*doubled(features), *doubled(256), *doubled(256), nn.Conv2d(256, classes, 1)]
    model = nn.Sequential(*trunk, *layers)
    images = torch.rand(batch, 3, height, width)
    with torch.no_grad():
        maps = torch.rand_like(model(images))
    loss = lambda: nn.functional.mse_loss(model(images), maps)
model.train()
parameters = [p for p in model.parameters() if p.requires_grad]
if task == "detection":
    optimizer = torch.optim.SGD(parameters, 0.01, 0.9, weight_decay=1e-4)
else:
    optimizer = torch.optim.Adam(parameters, 5e-4)

def step():
    optimizer.zero_grad(set_to_none=True)
    loss().backward()
    optimizer.step()

def use(form):
    global images
    model.to(memory_format=form)
    if task == "pose":
        images = images.contiguous(memory_format=form)

def seconds(form):
    use(form)
    step()
    start = time.perf_counter()
    step()
    return time.perf_counter() - start

use(min((torch.contiguous_format, torch.channels_last), key=seconds))
"""


def measure(
    task: str,
    name: str,
    *,
    image_size: int | None = None,
    batch_size: int | None = None,
    rounds: int = 3,
    steps: int = 2,
    python: Sequence[str] = (sys.executable,),
) -> ModelCost:
    """Compile and time the training step of a net around a backbone on one device.

    Args:
      task: "detection" or "pose".
      name: of the backbone.
      image_size: pixels of an image's shorter side, or of the height of a person's crop; None for
        the recipe's.
      batch_size: images per step; None for that of `SETTINGS`.
      rounds: timed blocks of ours, each followed by one of the reference; 0 only compiles.
      steps: training steps per block, after an untimed one.
      python: command of an interpreter with PyTorch and torchvision.
    """
    setting = SETTINGS[task]
    size, count = image_size or setting.image_size, batch_size or setting.batch_size
    height, width = setting.sides(size)
    images = _noise(task, count, height, width)
    config = {
        "task": task,
        "model": name,
        "dataset": "noise",
        "image_size": size,
        "batch_size": count,
        "parallel": {"devices": 1},
        **setting.config,
    }
    run = Run(from_dict(TrainConfig, config), images)
    # The first image is the fullest, which decides how much room there is for boxes.
    data: Any = run.data
    batch = data.splits["train"].gather(np.arange(1, count + 1))
    nothing: Timing = contextlib.nullcontext()
    timing = _reference(task, name, height, width, count, images, python) if rounds else nothing
    return cost(name, run.program, batch, timing, image_size=size, rounds=rounds, steps=steps)


@dataclasses.dataclass(frozen=True, eq=False)
class _Noise:
    """Images of random pixels, all of one size."""

    annotations: Annotations

    def __len__(self) -> int:
        return len(self.annotations)

    def read(self, index: int) -> np.ndarray:
        width, height = self.annotations.sizes[index]
        return np.random.default_rng(index).integers(0, 256, (height, width, 3), np.uint8)


def _noise(task: str, count: int, height: int, width: int) -> AnnotatedDataset:
    """Return a data set of one full image, and `count` others."""
    draw = np.random.default_rng(0)
    boxes = [_MOST_BOXES, *[_BOXES if task == "detection" else 1] * count]
    image = np.repeat(np.arange(len(boxes)), boxes)
    sides = np.array([width, height])
    corners = draw.uniform(0, 0.5, (len(image), 2)) * sides
    sizes = draw.uniform(0.05, 0.5, (len(image), 2)) * sides
    joints = draw.uniform(0, 1, (len(image), len(COCO_PERSON), 2)) * sides
    joints = np.concatenate([joints, np.full((*joints.shape[:2], 1), 2.0)], 2)
    kinds = 1 if task == "pose" else _CATEGORIES
    data = {
        "images": [
            {"id": i, "file_name": f"{i}", "width": width, "height": height}
            for i in range(len(boxes))
        ],
        "annotations": [
            {
                "id": i,
                "image_id": int(number),
                "category_id": i % kinds,
                "bbox": [*corners[i].tolist(), *sizes[i].tolist()],
                "keypoints": joints[i].ravel().tolist(),
            }
            for i, number in enumerate(image)
        ],
        "categories": [
            {"id": i, "name": f"{i}", "keypoints": list(COCO_PERSON.names)} for i in range(kinds)
        ],
    }
    images: Any = _Noise(annotations_from_json(data, "noise", joints=task == "pose"))
    return AnnotatedDataset("noise", dict.fromkeys(("train", "validation", "test"), images))


@contextlib.contextmanager
def _reference(
    task: str,
    name: str,
    height: int,
    width: int,
    count: int,
    images: AnnotatedDataset,
    python: Sequence[str],
) -> Iterator[Callable[[int], float] | None]:
    """Yield what times a block of the reference's steps; None for other backbones than ResNets."""
    library, _, known_as = model_card(name).reference.partition(" ")
    if library not in ("timm", "torchvision") or not known_as.startswith("resnet"):
        yield None
        return
    found = images.annotations
    boxes = found.corners[found.image == 1].tolist()
    classes = images.num_classes if task == "detection" else len(COCO_PERSON)
    arguments = [task, known_as, height, width, count, boxes, classes]
    with timed_reference(_REFERENCE, arguments, python) as block:
        yield block
