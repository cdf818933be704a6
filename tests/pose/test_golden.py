"""Everything about poses equals MMPose's; the maps of the nets are in test_models/test_pose.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_weights import normal

from bocb_jax.data.warp import warp
from bocb_jax.pose import boxes, oks
from bocb_jax.pose.codec import HeatmapCodec, find_peaks, mirror_back
from bocb_jax.pose.losses import heatmap_loss
from bocb_jax.pose.skeleton import COCO_PERSON

GOLDEN = dict(np.load(pathlib.Path(__file__).parents[1] / "golden" / "transfer" / "pose.npz"))
SEED = int(GOLDEN["seed"])
CODEC = HeatmapCodec()
SIZE = CODEC.input_size


def channels_last(maps):
    return np.moveaxis(maps, -3, -1)


def noisy_maps():
    maps, seed = GOLDEN["heatmaps"], SEED
    return channels_last(
        maps * np.float32(0.8) + normal("noise", maps.shape, seed) * np.float32(0.05)
    )


def test_encodes():
    maps, weights = jax.jit(CODEC.encode)(GOLDEN["kp"], GOLDEN["vis"])
    np.testing.assert_array_equal(weights, GOLDEN["weights"])
    expected = channels_last(GOLDEN["heatmaps"])
    np.testing.assert_array_equal(maps > 0, expected > 0)
    # NumPy's exponential may differ in its last bit from one processor to another.
    np.testing.assert_array_max_ulp(np.asarray(maps), expected, 1)


def test_decodes():
    joints, scores = jax.jit(CODEC.decode)(noisy_maps())
    np.testing.assert_array_equal(joints, GOLDEN["decoded"])
    np.testing.assert_array_equal(scores, GOLDEN["decoded_scores"])


def test_maps_without_a_positive_value_have_no_joint():
    joints, scores = find_peaks(-jnp.ones((64, 48, 1)))
    np.testing.assert_array_equal(joints, GOLDEN["decode_all_negative"])
    assert scores[0] == -1


def test_loss_and_its_gradient():
    target, weights = channels_last(GOLDEN["heatmaps"]), GOLDEN["weights"]
    loss, gradient = jax.value_and_grad(heatmap_loss)(jnp.asarray(noisy_maps()), target, weights)
    np.testing.assert_allclose(loss, GOLDEN["loss"], rtol=1e-6)
    expected = 2 * weights[:, None, None] * (noisy_maps() - target) / target.size
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_mirrors_back():
    np.testing.assert_array_equal(COCO_PERSON.mirrored, GOLDEN["flip_indices"])
    maps = channels_last(normal("flip", GOLDEN["flip_out"].shape, SEED))
    back = mirror_back(maps, COCO_PERSON.mirrored)
    np.testing.assert_array_equal(back, channels_last(GOLDEN["flip_out"]))


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_crops(xp):
    center, size = boxes.center_and_size(xp.asarray(GOLDEN["boxes_xyxy"]))
    size = boxes.fit_aspect(size)
    np.testing.assert_array_equal(center, GOLDEN["centers"])
    np.testing.assert_allclose(size, GOLDEN["scales"], rtol=1e-7)
    rotation = xp.asarray(GOLDEN["rot"], dtype=size.dtype)
    matrix = boxes.crop_matrix(center, size, rotation, SIZE)
    # OpenCV solves for the matrix from three points in float32 of up to 350 pixels.
    np.testing.assert_allclose(matrix, GOLDEN["warp"], rtol=1e-6, atol=1e-4)


def test_crops_in_float64():
    center, size = GOLDEN["centers"].astype(float), GOLDEN["scales"].astype(float)
    matrix = boxes.crop_matrix(center, size, GOLDEN["rot"], SIZE)
    np.testing.assert_allclose(matrix, GOLDEN["warp"], rtol=2e-7, atol=5e-5)


@pytest.mark.parametrize("number", [0, 2])
def test_warps(number):
    image = warp(GOLDEN["crop_image"], GOLDEN["warp"][number], SIZE)
    expected = GOLDEN[f"crop{number}"].astype(int)
    difference = np.abs(image[::5, ::3] - expected)
    print(number, difference.max(), (difference > 1).mean())
    assert difference.max() <= 2


def test_returns_to_the_image():
    center, size = GOLDEN["centers"][0], GOLDEN["scales"][0]
    back = boxes.to_image(GOLDEN["back_in"].astype(float), center, size, SIZE)
    np.testing.assert_allclose(back, GOLDEN["back_out"], rtol=1e-6)
    matrix = boxes.crop_matrix(center, size, np.float32(0), SIZE)
    there = boxes.transform(GOLDEN["back_out"], matrix)
    np.testing.assert_allclose(there, GOLDEN["back_in"], rtol=1e-5, atol=1e-4)


def persons(extra=0):
    joints = np.pad(GOLDEN["oks_kp"].reshape(6, 17, -1)[..., :2], ((0, extra), (0, 0), (0, 0)))
    scores, areas = (np.pad(GOLDEN[f"oks_{name}"], (0, extra)) for name in ("scores", "areas"))
    return joints, scores, areas, np.arange(6 + extra) < 6


def test_similarity():
    joints, _, areas, _ = persons()
    matrix = oks.oks(joints, areas, joints, areas, COCO_PERSON.sigmas)
    np.testing.assert_allclose(matrix, GOLDEN["oks_matrix"], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("extra", [0, 3])
def test_removes_duplicates(extra):
    joints, scores, areas, valid = persons(extra)
    nms = jax.jit(lambda *arrays: oks.oks_nms(*arrays, COCO_PERSON.sigmas))
    kept = np.flatnonzero(nms(joints, scores, areas, valid))
    assert kept[np.argsort(-scores[kept])].tolist() == GOLDEN["oks_keep"].tolist()


@pytest.mark.parametrize("extra", [0, 3])
def test_removes_duplicates_softly(extra):
    joints, scores, areas, valid = persons(extra)
    nms = jax.jit(lambda *arrays: oks.soft_oks_nms(*arrays, COCO_PERSON.sigmas))
    taken = nms(joints, scores, areas, valid).tolist()
    assert taken == GOLDEN["soft_oks_keep"].tolist() + [-1] * extra


def test_scores_persons():
    scores = oks.person_scores(GOLDEN["rescore_kp"], GOLDEN["rescore_box"])
    np.testing.assert_allclose(scores, GOLDEN["rescore_out"], rtol=1e-6)
    assert oks.person_scores(jnp.full(17, 0.2), jnp.float32(1)) == 0
