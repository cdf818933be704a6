"""Detection: RetinaNet around a backbone, its training targets, and COCO's box AP."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.augment.preprocess import normalize
from bocb_jax.data.boxed import padded
from bocb_jax.data.coco import Annotations
from bocb_jax.detection import assignment
from bocb_jax.detection.anchors import anchors, inside
from bocb_jax.detection.boxes import decode
from bocb_jax.detection.losses import by_anchor, detection_losses
from bocb_jax.detection.predict import detect
from bocb_jax.detection.rules import Rules
from bocb_jax.engine.passes import Preprocessing
from bocb_jax.engine.state import Batch, Metrics
from bocb_jax.engine.task import Size, Task
from bocb_jax.errors import UserError
from bocb_jax.evaluation.coco import evaluate_boxes
from bocb_jax.models.retinanet import RetinaNet, RetinaNetConfig, torchvision_name
from bocb_jax.tasks.net import Net

Maps = tuple[list[jax.Array], list[jax.Array]]  # of classes and of boxes, by level
Boxes = dict[str, jax.Array]  # the targets of a batch, see `BoxTask.loss`
SCORES = ("AP", "AP50", "AP75")


@dataclasses.dataclass(frozen=True)
class Detector(Net):
    """RetinaNet as it is compiled.

    Attributes:
      config: of what surrounds the backbone.
      rules: of anchors, targets, losses and predictions.
      num_classes: of the boxes.
      shape: (height, width) of padded images, one of those that are compiled.
    """

    config: RetinaNetConfig
    rules: Rules
    num_classes: int
    shape: Size

    def around(self, backbone: nnx.Module, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> RetinaNet:
        try:
            return RetinaNet(
                backbone,
                self.config,
                num_classes=self.num_classes,
                image_size=self.shape,
                dtype=dtype,
                rngs=rngs,
            )
        except UserError as error:
            height, width = self.shape
            if height == width:
                raise
            raise UserError(
                f"{error} Images are padded to {width}x{height} pixels here; they are squares with "
                "--transfer.shapes 1 and equal --transfer.short and --transfer.long."
            ) from error

    def preprocessing(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
        def evaluation(batch: Batch) -> jax.Array:
            """Normalize the images; what pads them is zero afterwards, as in MMDetection."""
            images = normalize(batch["image"], mean, std)
            rows, columns = (
                jnp.arange(side)[None] < batch["size"][:, axis, None]
                for axis, side in enumerate(images.shape[1:3])
            )
            return jnp.where((rows[:, :, None] & columns[:, None])[..., None], images, 0.0)

        def train(batch: Batch, key: jax.Array) -> tuple[jax.Array, Boxes]:
            del key  # the host has drawn sizes and mirroring
            targets = {"boxes": batch["boxes"], "labels": batch["label"], "sizes": batch["size"]}
            return evaluation(batch), targets

        return Preprocessing(train, evaluation)

    def other_name(self, name: str) -> str:
        return torchvision_name(name)

    def task(self, model: Any) -> Task:
        return BoxTask(self.rules, tuple(model.strides))


@dataclasses.dataclass(frozen=True)
class BoxTask:
    """Boxes of several classes from the maps of a RetinaNet.

    Args:
      rules: of the detector.
      strides: of the levels, in pixels.
    """

    rules: Rules
    strides: tuple[int, ...]
    metrics = ("class_loss", "box_loss")

    def loss(self, outputs: Maps, targets: Boxes, size: Size) -> tuple[jax.Array, Metrics]:
        """Return the sum of both losses, and each.

        Args:
          outputs: maps of logits and of encoded boxes.
          targets: "boxes" (batch, boxes, 4), "labels" (batch, boxes), -1 where there is no box, and
            "sizes" (batch, 2) of the images without padding; where `sample` made them, also what
            the head should say at each anchor.
          size: of the padded images.
        """
        places, wanted = self._targets(outputs, targets, size)
        if "drawn_classes" in targets:
            positive = wanted.positive[..., None]
            deltas = jnp.where(positive, targets["drawn_deltas"], 0.0)
            boxes = decode(places[None], deltas, clamp_below=self.rules.clamp_below)
            wanted = wanted._replace(
                labels=targets["drawn_classes"],
                deltas=deltas,
                boxes=jnp.where(positive, boxes, wanted.boxes),
            )
        found = detection_losses(*outputs, places, wanted, self.rules)
        parts = {"class_loss": found.classes.sum(), "box_loss": found.boxes.sum()}
        return found.total, parts

    def _targets(
        self, outputs: Maps, targets: Boxes, size: Size
    ) -> tuple[jax.Array, assignment.Targets]:
        """Return the anchors, and what the head should say at each for every image."""
        places = self._anchors(outputs, size)
        sizes = _map_sizes(outputs)

        def of_image(boxes: jax.Array, labels: jax.Array, own: jax.Array) -> assignment.Targets:
            within = inside(sizes, self.strides, size, padded(own), self.rules)
            return assignment.targets(places, boxes, labels, labels >= 0, within, self.rules)

        return places, jax.vmap(of_image)(targets["boxes"], targets["labels"], targets["sizes"])

    def _anchors(self, outputs: Maps, size: Size) -> jax.Array:
        return anchors(_map_sizes(outputs), self.strides, size, self.rules)

    def sample(self, key: jax.Array, outputs: Maps, targets: Boxes, size: Size) -> Boxes:
        """Return targets whose classes and encoded boxes are drawn from the outputs.

        Every sigmoid gives a class by itself. An L1 loss is the negative logarithm of a Laplace
        density, whose noise the boxes get. Anchors stay positive, negative or ignored by the true
        boxes, and with them the number that the losses are divided by.
        """
        class_key, box_key = jax.random.split(key)
        class_maps, box_maps = outputs
        cells = self.rules.anchors_per_cell
        logits = [by_anchor(x, x.shape[-1] // cells) for x in class_maps]
        deltas = jnp.concatenate([by_anchor(x, 4) for x in box_maps], 1)
        chances = jax.nn.sigmoid(jnp.concatenate(logits, 1))
        return {
            **targets,
            "drawn_classes": jax.random.bernoulli(class_key, chances),
            "drawn_deltas": deltas + jax.random.laplace(box_key, deltas.shape),
        }

    def evaluate(
        self, forward: Callable[[jax.Array], Maps], images: jax.Array, batch: Batch
    ) -> Metrics:
        """Return the boxes of each image, in pixels of its file; see `predict.Detections`."""
        outputs = forward(images)
        size = images.shape[1], images.shape[2]
        found = detect(
            *outputs, self._anchors(outputs, size), batch["size"], batch["scale"], self.rules
        )
        return {**found._asdict(), "index": batch["index"], "weight": batch["weight"]}


def _map_sizes(outputs: Maps) -> list[Size]:
    return [(x.shape[1], x.shape[2]) for x in outputs[0]]


def box_scores(
    annotations: Annotations, parts: Sequence[dict[str, np.ndarray]]
) -> dict[str, float]:
    """Return "AP", "AP50" and "AP75" of all images, each in 0 ... 1.

    Args:
      annotations: of the split.
      parts: what `BoxTask.evaluate` returned for its batches.
    """
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    real = (found["weight"] > 0)[:, None] & (found["labels"] >= 0)
    if not real.any():
        return dict.fromkeys(SCORES, 0.0)
    image = np.broadcast_to(found["index"][:, None], real.shape)[real]
    corners = found["boxes"][real]
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
    scores = evaluate_boxes(
        annotations.as_json(),
        annotations.image_ids[image],
        annotations.category_ids[found["labels"][real]],
        boxes,
        found["scores"][real],
    )
    return {name: scores.values[name] for name in SCORES}
