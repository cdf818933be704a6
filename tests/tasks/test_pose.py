"""What a pose net is trained for, and how its joints are scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from bocb_jax.data.persons import PersonCrops
from bocb_jax.data.shapes import open_shapes
from bocb_jax.pose.codec import HeatmapCodec
from bocb_jax.pose.skeleton import COCO_PERSON
from bocb_jax.tasks.pose import HeatmapNet, JointTask, joint_scores

SIZE = (96, 128)
CODEC = HeatmapCodec(SIZE, (24, 32), 2)


@pytest.fixture(scope="module")
def crops():
    images = open_shapes("pose", images={"train": 6, "validation": 1, "test": 1})["train"]
    return PersonCrops(images, SIZE)


@pytest.fixture(scope="module")
def batch(crops):
    return crops.gather(np.arange(len(crops)))


def test_targets_are_the_joints_of_the_crop(batch):
    net = HeatmapNet(COCO_PERSON, SIZE, 2, 8, flip_test=True)
    given = {name: jnp.asarray(value) for name, value in batch.items()}
    images, targets = net.preprocessing(IMAGENET_MEAN, IMAGENET_STD).train(given, None)
    assert images.shape == (len(batch["index"]), 128, 96, 3)
    task = JointTask(CODEC, COCO_PERSON, flip_test=False)
    maps, weights = CODEC.encode(targets["joints"], targets["visible"])
    loss, metrics = task.loss(maps, targets, (128, 96))
    assert (float(loss), metrics) == (0.0, {})
    # A squared error of variance 1/2, where a map counts.
    drawn = task.sample(jax.random.key(0), maps, targets, (128, 96))
    np.testing.assert_allclose(
        task.loss(maps, drawn, (128, 96))[0], 0.5 * weights.mean(), rtol=0.02
    )


@pytest.mark.parametrize("flip_test", [False, True])
def test_true_joints_score_one(crops, batch, flip_test):
    task = JointTask(CODEC, COCO_PERSON, flip_test)
    maps, _ = CODEC.encode(batch["joints"], batch["visible"])
    mirrored = jnp.concatenate([maps[:, :, 1:], maps[:, :, -1:]], 2)[:, :, ::-1]
    mirrored = mirrored[..., COCO_PERSON.mirrored]
    passes = iter([mirrored, maps] if flip_test else [maps])
    images = jnp.zeros((len(maps), 128, 96, 3))
    weight = np.ones(len(maps), np.float32)
    found = task.evaluate(
        lambda x: next(passes), images, {"index": batch["index"], "weight": weight}
    )
    found = {name: np.asarray(value) for name, value in found.items()}
    scores = joint_scores(crops, [found])
    assert scores["AP50"] == 1.0
    assert scores["AP"] > 0.9  # a joint is decoded to a quarter of a cell of the map
    twice = {name: np.concatenate([value, value]) for name, value in found.items()}
    assert joint_scores(crops, [twice]) == scores  # duplicates are removed
    assert joint_scores(crops, [found], soft_nms=True) == scores
