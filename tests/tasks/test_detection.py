"""What a detector is trained for, and how its boxes are scored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from bocb_jax.data.boxed import BoxedImages, Resize
from bocb_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from bocb_jax.data.shapes import CATEGORIES, open_shapes
from bocb_jax.detection.rules import STYLES
from bocb_jax.errors import UserError
from bocb_jax.models import create_model
from bocb_jax.models.retinanet import RetinaNet, style_of
from bocb_jax.tasks.detection import BoxTask, Detector, box_scores

SIDE, CLASSES, COUNT = 64, len(CATEGORIES), 4
STRIDES = (8, 16, 32, 64, 128)
BACKBONE = "helpers.tiny_features:Net"


def detector(style="mmdet", classes=CLASSES):
    config = style_of(style, channels=8, finest_stride=None, frozen_stages=0, batch_norm="nothing")
    return Detector(config, STYLES[style], classes, (SIDE, SIDE))


@pytest.fixture(scope="module")
def images():
    found = open_shapes("detection", images={"train": COUNT, "validation": 2, "test": 1})["train"]
    return BoxedImages(found, Resize(SIDE, (SIDE, SIDE)), [(SIDE, 2 * SIDE)])


@pytest.fixture(scope="module")
def batch(images):
    return images.gather(np.arange(COUNT))


def maps(seed=0):
    draw = np.random.default_rng(seed)
    sizes = [(-(-SIDE // s), -(-2 * SIDE // s)) for s in STRIDES]
    return tuple(
        [jnp.asarray(draw.standard_normal((COUNT, *size, 9 * last)) - shift, jnp.float32)
         for size in sizes]
        for last, shift in ((CLASSES, 3), (4, 0))
    )  # fmt: skip


def targets_of(batch):
    return {"boxes": batch["boxes"], "labels": batch["label"], "sizes": batch["size"]}


def test_padding_is_zero_after_normalizing(batch):
    images, targets = (
        detector()
        .preprocessing(IMAGENET_MEAN, IMAGENET_STD)
        .train({name: jnp.asarray(value) for name, value in batch.items()}, jax.random.key(0))
    )
    assert images.shape == (COUNT, SIDE, 2 * SIDE, 3)
    assert not images[:, :, SIDE:].any()
    first = batch["image"][0, :1, :1].astype(float) / 255
    np.testing.assert_allclose(images[0, :1, :1], (first - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-5)
    assert targets.keys() == {"boxes", "labels", "sizes"}


@pytest.mark.parametrize("style", STYLES)
def test_drawn_targets_have_the_losses_of_their_density(style, batch):
    task = BoxTask(STYLES[style], STRIDES)
    targets, size = targets_of(batch), (SIDE, 2 * SIDE)
    loss = jax.jit(task.loss, static_argnums=2)
    outputs = maps()
    drawn = task.sample(jax.random.key(0), outputs, targets, size)
    shares = drawn["drawn_classes"].mean((0, 1))
    chance = jax.nn.sigmoid(jnp.concatenate([x.reshape(COUNT, -1, CLASSES) for x in outputs[0]], 1))
    np.testing.assert_allclose(shares, chance.mean((0, 1)), atol=0.02)
    total, parts = loss(outputs, drawn, size)
    np.testing.assert_allclose(total, parts["class_loss"] + parts["box_loss"], rtol=1e-6)
    assert np.isfinite(total)
    if STYLES[style].box_loss == "l1":  # the mean of Laplace noise is 1 in each of 4 numbers
        np.testing.assert_allclose(parts["box_loss"], 4, atol=1.5)
    other, _ = loss(outputs, task.sample(jax.random.key(1), outputs, targets, size), size)
    assert other != total


def test_true_boxes_score_one(images, batch):
    found = {
        "boxes": batch["boxes"] / np.tile(batch["scale"][:, None, ::-1], 2),
        "scores": np.where(batch["label"] >= 0, 0.9, 0.0).astype(np.float32),
        "labels": batch["label"],
        "index": batch["index"],
        "weight": np.ones(COUNT, np.float32),
    }
    perfect = box_scores(images.annotations, [found])
    assert perfect == {"AP": 1.0, "AP50": 1.0, "AP75": 1.0}
    # What fills up the last batch does not count.
    again = {name: values[:1] for name, values in found.items()} | {"weight": np.zeros(1)}
    assert box_scores(images.annotations, [found, again]) == perfect
    nothing = found | {"labels": np.full_like(batch["label"], -1)}
    assert box_scores(images.annotations, [nothing])["AP"] == 0.0


def test_evaluation_takes_what_the_net_says(batch):
    task = BoxTask(STYLES["mmdet"], STRIDES)
    given = {"index": batch["index"], "weight": np.ones(COUNT, np.float32)}
    given |= {"size": batch["size"], "scale": batch["scale"]}
    outputs = maps()
    images = jnp.zeros((COUNT, SIDE, 2 * SIDE, 3))
    found = jax.jit(lambda batch: task.evaluate(lambda x: outputs, images, batch))(given)
    assert found["boxes"].shape == (COUNT, 100, 4)
    boxes = np.asarray(found["boxes"])[np.asarray(found["labels"]) >= 0]
    assert boxes.min() >= 0
    assert boxes.max() <= 128  # of the file, twice as large
    assert boxes.max() > 64


def test_a_backbone_that_takes_no_padded_images_is_a_sentence():
    def build(shape):
        backbone = create_model("mixer_mini", image_size=64, num_classes=2, rngs=nnx.Rngs(0))
        net = dataclasses.replace(detector(), shape=shape)
        return net.around(backbone, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(1))

    assert nnx.eval_shape(lambda: build((64, 64))).plan.simple
    with pytest.raises(UserError, match=r"got 64x96: .* padded to 96x64 .* --transfer.shapes 1"):
        nnx.eval_shape(lambda: build((64, 96)))


def test_the_net_is_built_around_a_backbone():
    def build():
        backbone = create_model(BACKBONE, num_classes=2, rngs=nnx.Rngs(0))
        return detector().around(backbone, dtype=jnp.dtype("float32"), rngs=nnx.Rngs(1))

    model = nnx.eval_shape(build)
    assert isinstance(model, RetinaNet)
    assert detector().task(model).strides == (4, 8, 16, 32, 64)
    assert not hasattr(model.backbone, "fc")
    assert detector() == detector()
    assert detector().other_name("backbone.conv1.weight") == "backbone.body.conv1.weight"
