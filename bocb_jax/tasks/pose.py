"""Pose estimation: heat maps around a backbone, the flip test, and COCO's keypoint AP."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.augment.preprocess import normalize
from bocb_jax.data.persons import PersonCrops
from bocb_jax.engine.passes import Preprocessing
from bocb_jax.engine.state import Batch, Metrics
from bocb_jax.engine.task import Size, Task
from bocb_jax.evaluation.coco import evaluate_joints
from bocb_jax.models.pose import PoseNet
from bocb_jax.pose.boxes import to_image
from bocb_jax.pose.codec import HeatmapCodec
from bocb_jax.pose.losses import heatmap_loss
from bocb_jax.pose.predict import flip_test, score_persons
from bocb_jax.pose.skeleton import Skeleton
from bocb_jax.tasks.net import Net

Joints = dict[str, jax.Array]  # the targets of a batch, see `JointTask.loss`
SCORES = ("AP", "AP50", "AP75")


@dataclasses.dataclass(frozen=True)
class HeatmapNet(Net):
    """SimpleBaseline as it is compiled.

    Attributes:
      skeleton: of the joints.
      input_size: (width, height) of the crops in pixels.
      sigma: of the Gaussians, in pixels of the heat maps.
      width: channels of the transposed convolutions.
      flip_test: whether the mirrored crop is evaluated as well.
    """

    skeleton: Skeleton
    input_size: tuple[int, int]
    sigma: int
    width: int
    flip_test: bool

    def around(self, backbone: nnx.Module, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> PoseNet:
        return PoseNet(
            backbone,
            num_joints=len(self.skeleton),
            input_size=self.input_size,
            width=self.width,
            dtype=dtype,
            rngs=rngs,
        )

    def preprocessing(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
        def evaluation(batch: Batch) -> jax.Array:
            return normalize(batch["image"], mean, std)

        def train(batch: Batch, key: jax.Array) -> tuple[jax.Array, Joints]:
            del key  # the host has drawn the crops
            return evaluation(batch), {"joints": batch["joints"], "visible": batch["visible"]}

        return Preprocessing(train, evaluation)

    def task(self, model: Any) -> Task:
        codec = HeatmapCodec(self.input_size, model.heatmap_size, self.sigma)
        return JointTask(codec, self.skeleton, self.flip_test)


@dataclasses.dataclass(frozen=True)
class JointTask:
    """The joints of a person, from a heat map of each.

    Args:
      codec: from joints to heat maps and back.
      skeleton: of the joints.
      flip_test: whether the mirrored crop is evaluated as well.
    """

    codec: HeatmapCodec
    skeleton: Skeleton
    flip_test: bool
    metrics = ()

    def loss(self, outputs: jax.Array, targets: Joints, size: Size) -> tuple[jax.Array, Metrics]:
        """Return the mean squared error of the heat maps.

        Args:
          outputs: heat maps (batch, height, width, joints).
          targets: "joints" (batch, joints, 2) in pixels of the crop and "visible" (batch, joints);
            where `sample` made them, also "drawn", heat maps.
          size: of the crops.
        """
        maps, weights = self.codec.encode(targets["joints"], targets["visible"])
        return heatmap_loss(outputs, targets.get("drawn", maps), weights), {}

    def sample(self, key: jax.Array, outputs: jax.Array, targets: Joints, size: Size) -> Joints:
        """Return targets with heat maps drawn around the outputs.

        A squared error is the negative logarithm of a normal density of variance 1/2.
        """
        return {**targets, "drawn": outputs + jax.random.normal(key, outputs.shape) * 0.5**0.5}

    def evaluate(
        self, forward: Callable[[jax.Array], jax.Array], images: jax.Array, batch: Batch
    ) -> Metrics:
        """Return the joints of each crop in its pixels, and their scores."""
        maps = flip_test(forward, images, self.skeleton) if self.flip_test else forward(images)
        joints, scores = self.codec.decode(maps)
        return {
            "joints": joints, "joint_scores": scores, "index": batch["index"],
            "weight": batch["weight"],
        }  # fmt: skip


class Persons(NamedTuple):
    """What was found in crops, in their order."""

    crop: np.ndarray  # (P,) the index of each crop in its split
    image: np.ndarray  # (P,) the index of each image
    joints: np.ndarray  # (P, K, 2) float64 in pixels of the images
    joint_scores: np.ndarray  # (P, K) the largest values of the heat maps
    scores: np.ndarray  # (P,) float32
    kept: np.ndarray  # (P,) booleans: which are no duplicates


def persons_in(
    crops: PersonCrops, parts: Sequence[dict[str, np.ndarray]], *, soft_nms: bool = False
) -> Persons:
    """Return the persons that a pose net found.

    Args:
      crops: of the split.
      parts: what `JointTask.evaluate` returned for its batches.
      soft_nms: see `score_persons`.
    """
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    found = {name: values[found["weight"] > 0] for name, values in found.items()}
    crop = found["index"]
    assert crops.image_shape is not None
    height, width, _ = crops.image_shape
    joints = to_image(
        found["joints"].astype(np.float64), crops.center[crop], crops.size[crop], (width, height)
    )
    image = crops.image[crop]
    scores, kept = score_persons(
        joints,
        found["joint_scores"],
        crops.scores[crop],
        crops.size[crop].prod(1),
        image,
        crops.skeleton.sigmas,
        soft=soft_nms,
    )
    return Persons(crop, image, joints, found["joint_scores"], scores, kept)


def joint_scores(
    crops: PersonCrops, parts: Sequence[dict[str, np.ndarray]], *, soft_nms: bool = False
) -> dict[str, float]:
    """Return "AP", "AP50" and "AP75" of all persons by object keypoint similarity, in 0 ... 1.

    Args:
      crops: of the split.
      parts: what `JointTask.evaluate` returned for its batches.
      soft_nms: see `score_persons`.
    """
    found = persons_in(crops, parts, soft_nms=soft_nms)
    values = evaluate_joints(
        crops.annotations.as_json(),
        crops.annotations.image_ids[found.image[found.kept]],
        found.joints[found.kept],
        found.scores[found.kept],
        crops.skeleton.sigmas,
    ).values
    return {name: values[name] for name in SCORES}
