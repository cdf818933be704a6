"""The torchvision styles equal torchvision 0.28.0; golden/transfer/make_torchvision.py made it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_weights import normal

from bocb_jax.detection.anchors import anchors, base_anchors, inside
from bocb_jax.detection.assignment import assign, targets
from bocb_jax.detection.losses import detection_losses
from bocb_jax.detection.predict import detect
from bocb_jax.detection.rules import STYLES

GOLDEN = np.load(
    pathlib.Path(__file__).parents[1] / "golden" / "transfer" / "retinanet_torchvision.npz"
)
RULES = STYLES["torchvision"]
STRIDES = (8, 16, 32, 64, 128)
SEED, CLASSES = int(GOLDEN["seed"]), 5
MAPS, BATCH = ((12, 16), (6, 8), (3, 4), (2, 2), (1, 1)), (96, 128)
ANCHORS = anchors(MAPS, STRIDES, BATCH, RULES)
BOXES = np.zeros((2, 5, 4), np.float32)
BOXES[0] = [[10, 12, 52, 50], [12, 14, 50, 52], [60, 5, 118, 88], [3, 60, 12, 70], [30, 30, 33, 90]]
BOXES[1, :3] = [[0, 0, 116, 59], [70, 20, 100, 50], [71, 22, 99, 47]]
LABELS = np.array([[0, 1, 2, 3, 4], [1, 2, 0, 0, 0]])
REAL = np.array([[True] * 5, [True] * 3 + [False] * 2])
WITHIN = jnp.stack(
    [inside(MAPS, STRIDES, BATCH, jnp.array(size), RULES) for size in ((96, 128), (64, 128))]
)


def head_maps():
    def maps(name, channels, scale, shift):
        return [
            jnp.asarray(normal(f"{name}{i}", (2, *size, 9 * channels), SEED) * scale + shift)
            for i, size in enumerate(MAPS)
        ]

    return maps("cls", CLASSES, 1.5, -3), maps("reg", 4, 0.3, 0)


def test_anchors_are_exact():
    ours = np.stack([base_anchors(stride, RULES) for stride in STRIDES])
    np.testing.assert_array_equal(ours, GOLDEN["base_anchors"])
    np.testing.assert_array_equal(ANCHORS, GOLDEN["anchors"])


def test_matches_are_exact_also_on_the_padding_of_the_batch():
    assert WITHIN.all()
    run = jax.jit(jax.vmap(lambda *x: assign(ANCHORS, *x, RULES).number))
    # torchvision: -1 between the thresholds is -2, negatives are -1.
    ours = np.asarray(run(BOXES, REAL, WITHIN))
    matched = np.where(ours == 0, -1, np.where(ours == -1, -2, ours - 1))
    np.testing.assert_array_equal(matched, GOLDEN["matched"])


@pytest.mark.parametrize("version", [1, 2])
def test_losses_and_gradients(version):
    rules = STYLES["torchvision" if version == 1 else "torchvision_v2"]

    @jax.jit
    def total(maps):
        found = jax.vmap(lambda *x: targets(ANCHORS, *x, rules))(BOXES, LABELS, REAL, WITHIN)
        losses = detection_losses(*maps, ANCHORS, found, rules)
        return losses.total, losses

    (classes, boxes), losses = jax.grad(total, has_aux=True)(head_maps())
    wanted = GOLDEN[f"v{version}_losses"]
    np.testing.assert_allclose([losses.classes.sum(), losses.boxes.sum()], wanted, rtol=1e-5)
    cases = {f"v{version}_grad_reg": (boxes, 4)}
    if version == 1:
        cases["grad_cls"] = (classes, CLASSES)
    for name, (levels, channels) in cases.items():
        ours = jnp.concatenate([g.reshape(2, -1, channels) for g in levels], 1)
        largest = np.abs(GOLDEN[name]).max()
        np.testing.assert_allclose(ours, GOLDEN[name], rtol=1e-5, atol=2e-6 * largest)


def test_detections_are_the_same_boxes_in_the_same_order():
    sizes, factors = jnp.array([[90, 120], [60, 117]]), jnp.ones((2, 2))
    found = jax.jit(lambda *x: detect(*x, RULES))(*head_maps(), ANCHORS, sizes, factors)
    for i in (0, 1):
        count = len(GOLDEN[f"labels{i}"])
        np.testing.assert_array_equal(found.labels[i, :count], GOLDEN[f"labels{i}"])
        assert (np.asarray(found.labels[i, count:]) == -1).all()
        np.testing.assert_allclose(found.scores[i, :count], GOLDEN[f"scores{i}"], rtol=1e-6)
        np.testing.assert_allclose(
            found.boxes[i, :count], GOLDEN[f"boxes{i}"], rtol=1e-5, atol=1e-4
        )
