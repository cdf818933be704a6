"""Random crops: their distributions, and what they do to joints."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.pose import boxes
from bocb_jax.pose.augmentation import AUGMENTATIONS, Draws, PoseAugmentation, augment, draw
from bocb_jax.pose.skeleton import COCO_PERSON

SETTINGS = AUGMENTATIONS["1.3"]
NOTHING = Draws(np.False_, np.False_, np.False_, np.zeros(2), np.float64(1), np.float64(0))


def many(version, count=4000):
    rng = np.random.default_rng(0)
    drawn = [draw(AUGMENTATIONS[version], rng) for _ in range(count)]
    return Draws(*(np.stack(each) for each in zip(*drawn, strict=True)))


def person(seed=0):
    rng = np.random.default_rng(seed)
    joints = rng.uniform(20, 180, (17, 2))
    return np.array([100.0, 90.0]), np.array([150.0, 200.0]), joints, np.full(17, 2)


def crop(draws, settings=SETTINGS, visible=None):
    center, size, joints, labelled = person()
    visible = labelled if visible is None else visible
    return augment(center, size, joints, visible, 200, draws, settings, COCO_PERSON)


def test_the_same_state_draws_the_same():
    one, other = (draw(SETTINGS, np.random.default_rng(3)) for _ in range(2))
    for ours, theirs in zip(one, other, strict=True):
        np.testing.assert_array_equal(ours, theirs)


# Of a standard normal number between -1 and 1 the standard deviation is .5396; cut at -1 and 1 it
# is .7188, cut at two .9593; of a uniform one .5774. With 4000 draws a standard error is 1.1 %.
SPREADS = {"1.3": (0.5396, 0.5396, 0.5396), "0.26": (0.5774, 0.7188, 0.9593)}


@pytest.mark.parametrize("version", AUGMENTATIONS)
def test_distributions(version):
    drawn, settings = many(version), AUGMENTATIONS[version]
    for share, expected in (
        (drawn.flip, 0.5),
        (drawn.half_body, 0.3),
        (drawn.upper, 0.7 if version == "1.3" else 0.691),
        (drawn.shift.any(1), 0.3),
        (drawn.rotation != 0, 0.6),
    ):
        assert share.mean() == pytest.approx(expected, abs=0.03)
    shifts = drawn.shift[drawn.shift.any(1)] / settings.shift.amplitude
    turns = drawn.rotation[drawn.rotation != 0] / settings.rotation.amplitude
    resizes = (drawn.resize - 1) / settings.resize.amplitude
    for found, expected in zip((shifts, resizes, turns), SPREADS[version], strict=True):
        assert found.std() == pytest.approx(expected, rel=0.06)
        assert found.mean() == pytest.approx(0, abs=0.06)
    assert np.abs(drawn.rotation).max() <= 80
    assert 0.5 <= drawn.resize.min() < 0.6
    assert 1.4 < drawn.resize.max() <= 1.5
    assert np.abs(drawn.shift).max() <= 0.16


def test_nothing_changes_nothing():
    center, size, joints, visible = person()
    found = crop(NOTHING)
    for ours, expected in zip(found, (center, size, 0, joints, visible, False), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_mirrors():
    found = crop(NOTHING._replace(flip=np.True_), visible=np.arange(17))
    _, _, joints, _ = person()
    assert found.flip
    np.testing.assert_array_equal(found.joints[6], [199 - joints[5, 0], joints[5, 1]])
    assert found.visible[6] == 5
    np.testing.assert_array_equal(found.center, [99, 90])


def test_shifts_by_the_padded_box_and_resizes():
    draws = NOTHING._replace(shift=np.array([0.1, -0.05]), resize=np.float64(1.2))
    found = crop(draws)
    np.testing.assert_allclose(found.center, [115, 80])
    np.testing.assert_allclose(found.size, [180, 240])


@pytest.mark.parametrize("upper", [True, False])
def test_half_bodies(upper):
    found = crop(NOTHING._replace(half_body=np.True_, upper=np.bool_(upper)))
    joints = person()[2][slice(0, 11) if upper else slice(11, 17)]
    np.testing.assert_allclose(found.center, joints.mean(0))
    np.testing.assert_allclose(found.size, 1.5 * (joints.max(0) - joints.min(0)))


# How many upper and lower joints are labelled, whether the upper half is preferred, and which half
# is taken.
HALVES = [(11, 6, True, "upper"), (11, 6, False, "lower"), (8, 2, False, "upper"),
          (1, 6, True, None), (5, 3, True, None), (6, 3, False, "lower")]  # fmt: skip


@pytest.mark.parametrize(("upper", "lower", "prefer", "taken"), HALVES)
def test_half_bodies_need_joints(upper, lower, prefer, taken):
    visible = np.zeros(17, int)
    visible[:upper] = visible[11 : 11 + lower] = 1
    found = crop(NOTHING._replace(half_body=np.True_, upper=np.bool_(prefer)), visible=visible)
    _, size, joints, _ = person()
    if taken is None:
        np.testing.assert_array_equal(found.size, size)
    else:
        half = joints[:upper] if taken == "upper" else joints[11 : 11 + lower]
        np.testing.assert_allclose(found.center, half.mean(0))


def test_the_older_version_shifts_before_half_bodies():
    draws = NOTHING._replace(half_body=np.True_, upper=np.True_, shift=np.array([0.1, 0.1]))
    old, new = (crop(draws, AUGMENTATIONS[version]) for version in ("0.26", "1.3"))
    np.testing.assert_allclose(old.center, person()[2][:11].mean(0))
    np.testing.assert_allclose(new.center, old.center + 0.1 * new.size)


def test_jax_with_leading_axes_equals_numpy():
    drawn = Draws(*(each[:6].reshape(2, 3, *each.shape[1:]) for each in many("1.3", 6)))
    persons = [person(seed) for seed in range(6)]
    arrays = [np.stack(each).reshape(2, 3, *each[0].shape) for each in zip(*persons, strict=True)]
    width = np.full((2, 3), 200)

    def run(arrays, width, drawn):
        found = augment(*arrays, width, drawn, PoseAugmentation(half_body=1.0), COCO_PERSON)
        matrix = boxes.crop_matrix(
            found.center, boxes.fit_aspect(found.size), found.rotation, (192, 256)
        )
        return boxes.transform(found.joints, matrix)

    here = run(arrays, width, drawn)
    assert here.shape == (2, 3, 17, 2)
    jitted = jax.jit(run)(*jax.tree.map(jnp.asarray, (arrays, width, drawn)))
    np.testing.assert_allclose(jitted, here, rtol=1e-4, atol=1e-2)
    alone = run([each[1, 2] for each in arrays], 200, Draws(*(each[1, 2] for each in drawn)))
    np.testing.assert_allclose(here[1, 2], alone, rtol=1e-12, atol=1e-9)


def test_boxes_are_clipped_to_pixels():
    clipped = boxes.clip_boxes(np.array([[-5.0, 3, 70, 20]]), 64, 48)
    assert clipped.tolist() == [[0, 3, 63, 20]]
    assert boxes.clip_boxes(jnp.array([[-5.0, 3, 70, 60]]), 64, 48).tolist() == [[0, 3, 63, 47]]
