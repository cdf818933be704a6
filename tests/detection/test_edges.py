"""Detection where goldens do not reach: no boxes, ties, padding, groups, extreme logits."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.detection.assignment import IGNORED, NEGATIVE, OUTSIDE, assign, targets
from bocb_jax.detection.boxes import decode, encode, giou, iou
from bocb_jax.detection.losses import focal_loss, image_weights
from bocb_jax.detection.predict import detect
from bocb_jax.detection.rules import STYLES, Rules
from bocb_jax.detection.suppression import suppress
from bocb_jax.errors import UserError

RULES = Rules()
SQUARES = jnp.array([[0, 0, 10, 10], [0, 0, 10, 8], [20, 20, 30, 30], [50, 50, 60, 60]], float)
ALL = jnp.ones(4, bool)


def numbers(boxes, *, anchors=SQUARES, real=None, inside=None, rules=RULES):
    boxes = jnp.asarray(boxes, jnp.float32).reshape(-1, 4)
    real = jnp.ones(len(boxes), bool) if real is None else jnp.array(real)
    inside = jnp.ones(len(anchors), bool) if inside is None else jnp.array(inside)
    return assign(anchors, boxes, real, inside, rules).number.tolist()


def test_without_boxes_all_anchors_are_negative():
    assert numbers([]) == [NEGATIVE] * 4
    assert numbers([[0, 0, 10, 10]], real=[False]) == [NEGATIVE] * 4
    found = targets(SQUARES, jnp.zeros((0, 4)), jnp.zeros(0, int), jnp.zeros(0, bool), ALL, RULES)
    assert found.trained.all()
    assert not found.positive.any()
    assert (found.labels == -1).all()
    assert (found.deltas == 0).all()


def test_an_anchor_between_the_thresholds_is_ignored():
    # Its overlap is 0.45; the box itself has a better anchor.
    assert numbers([[20, 20, 30, 30], [0, 0, 10, 4.5]])[:2] == [IGNORED, 2]
    assert numbers([[0, 0, 10, 10]], inside=[False, True, True, True]) == [OUTSIDE, 1, 0, 0]


def test_the_last_of_the_boxes_that_want_an_anchor_gets_it():
    boxes = [[20, 20, 24, 24], [26, 26, 30, 30], [20, 20, 23, 23]]
    assert numbers(boxes)[2] == 3
    # In torchvision it keeps the box with which it overlaps most, the first at ties.
    assert numbers(boxes, rules=STYLES["torchvision"])[2] == 1
    # Padding never wins.
    assert numbers(boxes, real=[True, True, False])[2] == 2


def test_a_box_without_any_overlap_gets_no_anchor():
    assert numbers([[70, 70, 80, 80]]) == [NEGATIVE] * 4
    assert numbers([[5, 5, 5, 5]]) == [NEGATIVE] * 4


def test_encoding_and_decoding_are_inverse():
    random = np.random.default_rng(0)
    corners = random.uniform(0, 100, (2, 50, 2))
    anchors, boxes = np.concatenate([corners, corners + random.uniform(1, 50, (2, 50, 2))], -1)
    found = decode(jnp.float32(anchors), encode(jnp.float32(anchors), jnp.float32(boxes)))
    np.testing.assert_allclose(found, boxes, atol=1e-4)


def test_overlaps():
    a, b = jnp.array([[0.0, 0, 10, 10]]), jnp.array([[5.0, 0, 15, 10]])
    np.testing.assert_allclose(iou(a, b), 1 / 3, rtol=1e-6)
    np.testing.assert_allclose(giou(a, b), 1 / 3, rtol=1e-6)
    far = jnp.array([[20.0, 0, 30, 10]])
    np.testing.assert_allclose(giou(a, far), -1 / 3, rtol=1e-6)
    point = jnp.array([[5.0, 5, 5, 5]])
    assert iou(point, point) == 0


def test_the_focal_loss_and_its_gradient_are_finite_at_extreme_logits():
    logits = jnp.array([-200.0, -20, 0, 20, 200] * 2)
    wanted = jnp.arange(10) < 5
    loss, gradient = focal_loss(logits, wanted), jax.grad(lambda x: focal_loss(x, wanted).sum())
    assert jnp.isfinite(loss).all()
    assert jnp.isfinite(gradient(logits)).all()
    np.testing.assert_allclose(loss[2], 0.25 * 0.25 * np.log(2), rtol=1e-6)
    # At the start every probability is .01: a negative pair costs 7.54e-7, a positive one 1.1284.
    start = focal_loss(jnp.full(2, -np.log(99)), jnp.array([0, 1]))
    np.testing.assert_allclose(start, [7.54e-7, 1.1284], rtol=1e-3)


def test_a_group_shares_its_number_of_positive_anchors():
    positive = jnp.arange(10)[None] < jnp.array([3, 5, 0, 1])[:, None]
    np.testing.assert_allclose(image_weights(positive, 2), [1 / 16, 1 / 16, 1 / 4, 1 / 4], 1e-6)
    np.testing.assert_allclose(image_weights(positive, 1), [1 / 12, 1 / 20, 1 / 4, 1 / 4], 1e-6)
    np.testing.assert_allclose(image_weights(positive, 8), [1 / 10] * 4, 1e-6)
    with pytest.raises(UserError, match="A batch of 4 images does not divide into groups of 3"):
        image_weights(positive, 3)


def brute_force(boxes, scores, labels, threshold):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        overlaps = [
            float(iou(jnp.asarray(boxes[i]), jnp.asarray(boxes[j])))
            for j in kept
            if labels[j] == labels[i]
        ]
        if not any(overlap > threshold for overlap in overlaps):
            kept.append(int(i))
    return kept


def test_suppression_is_greedy_by_class_with_ties_in_order():
    random = np.random.default_rng(1)
    corner = random.uniform(0, 20, (40, 2))
    boxes = np.float32(np.concatenate([corner, corner + random.uniform(5, 15, (40, 2))], 1))
    scores = np.float32(random.integers(0, 12, 40) / 12)  # with ties
    labels = random.integers(0, 2, 40)
    wanted = brute_force(boxes, scores, labels, 0.5)
    assert len(wanted) < 40
    boxes, scores, labels = map(jnp.asarray, (boxes, scores, labels))
    found = suppress(boxes, scores, labels, threshold=0.5, kept=40)
    assert found.candidate[: len(wanted)].tolist() == wanted
    assert found.real.sum() == len(wanted)
    few = suppress(boxes, scores, labels, threshold=0.5, kept=5)
    assert few.candidate.tolist() == wanted[:5]


def test_the_best_pairs_are_those_of_sorting_all():
    """Pairs are chosen in two steps; equal scores are ordered as by one stable sort."""
    random = np.random.default_rng(2)
    logits = np.float32(random.integers(-6, 3, (1, 4, 5, 2 * 3)) / 2)
    corner = random.uniform(0, 50, (40, 2))
    anchors = jnp.float32(np.concatenate([corner, corner + 10], 1))
    rules = dataclasses.replace(RULES, candidates=7, kept=7, nms_iou=2.0)  # nothing is dropped
    found = detect(
        [logits], [np.zeros((1, 4, 5, 2 * 4), np.float32)], anchors,
        jnp.array([[100, 100]]), jnp.ones((1, 2)), rules,
    )  # fmt: skip
    best = np.argsort(-logits.ravel(), kind="stable")[:7]
    assert found.labels[0].tolist() == (best % 3).tolist()
    np.testing.assert_allclose(found.boxes[0], anchors[best // 3], atol=1e-5)


def test_boxes_are_in_pixels_of_the_original_image_and_scores_exceed_the_least():
    anchors = jnp.array([[10.0, 20, 30, 60]])
    maps = [np.array([[[[3.0, -9.0]]]], np.float32)], [np.zeros((1, 1, 1, 4), np.float32)]
    found = detect(*maps, anchors, jnp.array([[50, 100]]), jnp.array([[2.0, 0.5]]), RULES)
    np.testing.assert_allclose(found.boxes[0, 0], [20, 10, 60, 25])
    assert found.labels[0].tolist() == [0] + [-1] * 99
    assert (found.scores[0, 1:] == 0).all()
