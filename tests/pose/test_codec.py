import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.errors import UserError
from bocb_jax.pose.codec import HeatmapCodec, find_peaks
from bocb_jax.pose.skeleton import COCO_PERSON, Skeleton, skeleton_of

LARGE = HeatmapCodec((288, 384), (72, 96), 3)


@pytest.mark.parametrize("codec", [HeatmapCodec(), LARGE], ids=["256x192", "384x288"])
def test_what_is_encoded_is_decoded_to_the_pixel_of_the_map(codec):
    rng = np.random.default_rng(0)
    joints = rng.uniform(12, np.array(codec.input_size) - 16, (3, 17, 2)).astype(np.float32)
    maps, weights = codec.encode(joints, np.full((3, 17), 2, np.int8))
    assert maps.shape == (3, codec.heatmap_size[1], codec.heatmap_size[0], 17)
    assert (weights == 1).all()
    assert (maps.max((1, 2)) == 1).all()
    # Rounded to a pixel of the map, of 4 of the input, about which the Gaussian is symmetric.
    decoded, scores = codec.decode(maps)
    assert np.abs(decoded - joints).max() <= 2
    assert (scores == 1).all()


# x of a joint in pixels of an input 192 wide, whose map is 48 wide with Gaussians of 13 pixels:
# whether it counts, and the columns that it is drawn on.
EDGES = {
    "in-the-middle": (100, 1, 13),
    "cut-at-the-left": (0, 1, 7),
    "last-column-left": (-26, 1, 1),
    "just-outside-left": (-31, 1, 0),  # the reference gives it weight 1 and an empty map
    "outside-left": (-34, 0, 0),
    "last-column-right": (212, 1, 1),
    "outside-right": (214, 0, 0),
}


@pytest.mark.parametrize("name", EDGES)
def test_edges(name):
    x, counts, columns = EDGES[name]
    joints = jnp.array([[[x, 128.0]]])
    maps, weights = HeatmapCodec().encode(joints, jnp.ones((1, 1)))
    assert weights[0, 0] == counts
    assert (maps[0, :, :, 0] > 0).any(0).sum() == columns


def test_joints_that_are_not_labelled_have_no_map():
    maps, weights = HeatmapCodec().encode(jnp.full((2, 2), 90.0), jnp.array([0, 1]))
    assert not maps[..., 0].any()
    assert weights.tolist() == [0, 1]


def test_works_without_leading_axes_and_with_several():
    joints = np.random.default_rng(0).uniform(0, 190, (2, 3, 17, 2)).astype(np.float32)
    visible = np.ones((2, 3, 17), np.float32)
    whole, _ = jax.jit(HeatmapCodec().encode)(joints, visible)
    alone, _ = HeatmapCodec().encode(joints[1, 2], visible[1, 2])
    np.testing.assert_array_equal(whole[1, 2], alone)
    np.testing.assert_array_equal(find_peaks(whole)[0][1, 2], find_peaks(alone)[0])


# Where the maximum of a 6x6 map is, and where the joint is found with larger neighbors to the
# right and below.
QUARTERS = {(2, 3): (2.25, 3.25), (1, 3): (1, 3.25), (0, 3): (0, 3), (5, 3): (5, 3.25),
            (3, 1): (3.25, 1), (3, 0): (3, 0), (4, 4): (4.25, 4.25)}  # fmt: skip


@pytest.mark.parametrize("place", QUARTERS)
def test_a_quarter_pixel_towards_the_larger_neighbor(place):
    x, y = place
    maps = np.zeros((6, 6, 1), np.float32)
    maps[:, x + 1 : x + 2] = maps[y + 1 : y + 2] = 0.5
    maps[y, x] = 1
    joints, _ = find_peaks(jnp.asarray(maps))
    np.testing.assert_array_equal(joints[0], QUARTERS[place])


def test_of_equal_maxima_the_first_is_taken():
    joints, _ = find_peaks(jnp.ones((4, 5, 1)))
    assert joints.tolist() == [[0, 0]]


def test_refuses_sizes_that_are_none():
    with pytest.raises(UserError, match="at least 1"):
        HeatmapCodec((192, 256), (0, 64))


def test_skeletons_of_other_names():
    found = skeleton_of(["nose", "Left Wing", "Right Wing", "tail"], [(0, 3)])
    assert found.pairs == ((1, 2),)
    assert found.sigmas == (0.026, 0.07, 0.07, 0.07)
    assert found.mirrored.tolist() == [0, 2, 1, 3]
    assert skeleton_of(list(COCO_PERSON.names)) is COCO_PERSON
    with pytest.raises(UserError, match="of 1 joints names joint 4"):
        skeleton_of(["nose"], [(0, 4)])
    with pytest.raises(UserError, match="has the sigmas"):
        Skeleton(("nose",), (), ())
