"""Detection equals MMDetection 2.26.0: anchors, assignment, targets, losses, gradients, boxes."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_weights import normal

from bocb_jax.detection import boxes as box_math
from bocb_jax.detection.anchors import anchors, base_anchors, inside
from bocb_jax.detection.assignment import assign, targets
from bocb_jax.detection.losses import detection_losses
from bocb_jax.detection.predict import detect
from bocb_jax.detection.rules import STYLES

GOLDEN = np.load(
    pathlib.Path(__file__).parents[1] / "golden" / "transfer" / "retinanet_mmdet_rules.npz"
)
RULES = STYLES["mmdet"]
STRIDES = (8, 16, 32, 64, 128)
SEED, CLASSES = int(GOLDEN["seed"]), int(GOLDEN["num_classes"])
MAPS, BATCH = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)), (96, 128)
ANCHORS = anchors(MAPS, STRIDES, BATCH, RULES)
PADDED = 8  # boxes of an image


@jax.jit
def inside_image(padded_size):
    return inside(MAPS, STRIDES, BATCH, padded_size, RULES)


def image(i):
    """The padded boxes, labels and marks of an image, and the anchors in it."""
    found, labels = GOLDEN[f"gt{i}"], GOLDEN[f"labels{i}"]
    rest = PADDED - len(found)
    return (
        jnp.pad(found, ((0, rest), (0, 0))),
        jnp.pad(labels, (0, rest)),
        jnp.arange(PADDED) < len(found),
        inside_image(GOLDEN[f"pad_shape{i}"]),
    )


BOTH = jax.tree.map(lambda *x: jnp.stack(x), image(0), image(1))


@jax.jit
def targets_of(anchors, boxes, labels, real, within):
    return jax.vmap(lambda *x: targets(anchors, *x, RULES))(boxes, labels, real, within)


def head_maps():
    def maps(name, channels, scale, shift):
        found = []
        for level, size in enumerate(MAPS):
            z = normal(f"{name}{level}", (2, 9 * channels, *size), SEED).astype(np.float64)
            found.append(jnp.asarray((z * scale + shift).transpose(0, 2, 3, 1), jnp.float32))
        return found

    return maps("cls", CLASSES, 1.5, -3), maps("reg", 4, 0.3, 0)


def test_base_anchors_are_exact():
    ours = np.stack([base_anchors(stride, RULES) for stride in STRIDES])
    np.testing.assert_array_equal(ours, GOLDEN["base_anchors"])


def test_anchors_are_exact_and_as_many():
    np.testing.assert_array_equal(ANCHORS, GOLDEN["anchors"])
    counts = [9 * h * w for h, w in MAPS]
    assert counts == GOLDEN["level_counts"].tolist()
    large = ((100, 168), (50, 84), (25, 42), (13, 21), (7, 11))
    shape = jax.eval_shape(lambda: anchors(large, STRIDES, (800, 1344), RULES)).shape
    assert shape == (int(GOLDEN["full_count"]), 4)


@pytest.mark.parametrize("i", [0, 1])
def test_assignment_is_exact(i):
    boxes, _, real, within = image(i)
    np.testing.assert_array_equal(within, GOLDEN[f"valid{i}"])
    found = jax.jit(lambda *x: assign(ANCHORS, *x, RULES))(boxes, real, within)
    np.testing.assert_array_equal(found.number, GOLDEN[f"assigned{i}"])
    within = np.asarray(within)
    np.testing.assert_array_equal(np.asarray(found.iou)[within], GOLDEN[f"max_iou{i}"][within])


def test_targets():
    found = targets_of(ANCHORS, *BOTH)
    labels = np.where(found.labels < 0, CLASSES, found.labels)
    np.testing.assert_array_equal(labels, GOLDEN["t_labels"])
    np.testing.assert_array_equal(found.trained, GOLDEN["t_label_weights"] > 0)
    np.testing.assert_array_equal(found.positive, GOLDEN["t_bbox_weights"][..., 0] > 0)
    # In a larger program XLA divides by the anchors as it multiplies by their reciprocals, which
    # moves ratios of about 1 by a unit in the last place.
    np.testing.assert_allclose(found.deltas, GOLDEN["t_bbox"], rtol=3e-7, atol=1.2e-7)
    assert int(found.positive.sum()) == int(GOLDEN["num_total_pos"])


@pytest.mark.parametrize("i", [0, 1])
def test_encoding_is_exact(i):
    number = GOLDEN[f"assigned{i}"]
    positive = number > 0
    boxes = GOLDEN[f"gt{i}"][number[positive] - 1]
    found = jax.jit(box_math.encode)(GOLDEN["anchors"][positive], boxes)
    wanted = GOLDEN["t_bbox"][i][positive]
    np.testing.assert_array_equal(found[:, :2], wanted[:, :2])
    # The logarithms of two libraries differ in the last bit.
    np.testing.assert_allclose(found[:, 2:], wanted[:, 2:], rtol=3e-7, atol=3e-8)


def test_losses_and_gradients():
    found = targets_of(ANCHORS, *BOTH)

    @jax.jit
    def total(maps):
        losses = detection_losses(*maps, ANCHORS, found, RULES)
        return losses.total, losses

    gradients, losses = jax.grad(total, has_aux=True)(head_maps())
    np.testing.assert_allclose(losses.classes, GOLDEN["loss_cls"], rtol=1e-5)
    np.testing.assert_allclose(losses.boxes, GOLDEN["loss_bbox"], rtol=1e-5)
    for name, levels in zip(("cls", "reg"), gradients, strict=True):
        largest = max(np.abs(GOLDEN[f"grad_{name}{i}"]).max() for i in range(5))
        for i, level in enumerate(levels):
            wanted = GOLDEN[f"grad_{name}{i}"].transpose(0, 2, 3, 1)
            np.testing.assert_allclose(level, wanted, rtol=1e-5, atol=1e-6 * largest)


@pytest.mark.parametrize(("candidates", "suffix"), [(1000, ""), (40, "_pre40")])
def test_detections_are_the_same_boxes_in_the_same_order(candidates, suffix):
    rules = dataclasses.replace(RULES, candidates=candidates)
    sizes = jnp.stack([GOLDEN[f"img_shape{i}"] for i in (0, 1)])
    factors = jnp.stack([GOLDEN[f"scale_factor{i}"][1::-1] for i in (0, 1)])
    found = jax.jit(lambda *x: detect(*x, rules))(*head_maps(), ANCHORS, sizes, factors)
    for i in (0, 1):
        wanted, labels = GOLDEN[f"det{i}{suffix}"], GOLDEN[f"det_labels{i}{suffix}"]
        count = len(labels)
        np.testing.assert_array_equal(found.labels[i, :count], labels)
        assert (np.asarray(found.labels[i, count:]) == -1).all()
        np.testing.assert_allclose(found.scores[i, :count], wanted[:, 4], rtol=1e-6)
        np.testing.assert_allclose(found.boxes[i, :count], wanted[:, :4], rtol=1e-5, atol=1e-4)


def test_decoding_is_clamped_and_clipped():
    decoded = box_math.decode(GOLDEN["decode_in_anchors"], GOLDEN["decode_in_deltas"])
    clipped = box_math.clip(decoded, jnp.array([160, 120]))
    np.testing.assert_allclose(clipped, GOLDEN["decode_out"], rtol=1e-6, atol=1e-5)
