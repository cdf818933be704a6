"""Geometric operations against Pillow's and torchvision's rules."""

import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pillow import difference, factors, ours, theirs
from helpers.sample_crops import noise_images, sample_crops, uniform_draws
from PIL import Image

from bocb_jax.augment import geometry

FILL = (124, 116, 104)
SIDE = 32


@pytest.fixture(scope="module")
def crops():
    return sample_crops(100, 32)


def affine(*entries):
    def transform(image, value):
        matrix = [x(value, image.size) if callable(x) else x for x in entries]
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
        )

    return transform


WARPS = {
    "shear x": (geometry.shear_x, affine(1, lambda v, s: v, 0, 0, 1, 0), 0.3),
    "shear y": (geometry.shear_y, affine(1, 0, 0, lambda v, s: v, 1, 0), 0.3),
    "translate x": (
        lambda v: geometry.translate_x(v * SIDE),
        affine(1, 0, lambda v, s: v * s[0], 0, 1, 0),
        0.45,
    ),
    "translate y": (
        lambda v: geometry.translate_y(v * SIDE),
        affine(1, 0, 0, 0, 1, lambda v, s: v * s[1]),
        0.45,
    ),
    "rotate": (
        lambda v: geometry.rotate(v, (SIDE, SIDE)),
        lambda image, v: image.rotate(float(v), Image.Resampling.BICUBIC, fillcolor=FILL),
        30.0,
    ),
}


@pytest.mark.parametrize("name", WARPS)
def test_warps(name, crops):
    # Pillow interpolates in float64 and rounds down; our weights are multiples of 1/1024. For a
    # source at the very edge of the image, rounding decides whether the pixel is filled.
    matrix, reference, most = WARPS[name]
    values = factors(100, -most, most)
    got = ours(lambda x, v: geometry.warp(x, matrix(v), FILL), crops, values)
    apart = difference(got, theirs(reference, crops, values))
    assert apart.mean() < 0.05
    assert (apart > 2).mean() < 1e-4


@pytest.mark.parametrize("name", ["shear x", "shear y", "translate x", "translate y"])
def test_warps_along_one_axis_equal_the_general_warp(name, crops):
    matrix, _, most = WARPS[name]
    values = factors(100, -2 * most, 2 * most)
    along = geometry.warp_along_x if name.endswith("x") else geometry.warp_along_y
    for images in (crops, crops[:, :, :20]):
        np.testing.assert_array_equal(
            ours(lambda x, v: along(x, matrix(v), FILL), images, values),
            ours(lambda x, v: geometry.warp(x, matrix(v), FILL), images, values),
        )


def test_translations_by_whole_pixels_are_exact(crops):
    for matrix in (geometry.translate_x(5.0), geometry.translate_y(-3.0), geometry.shear_x(0.0)):
        got = ours(lambda x, m=matrix: geometry.warp(x, m, FILL), crops[:5])
        columns, rows = (int(x) >> geometry.COORDINATE_BITS for x in (matrix[2], matrix[5]))
        want = np.broadcast_to(np.array(FILL, np.uint8), crops[:5].shape).copy()
        place = np.arange(SIDE)
        from_row, from_column = place + rows, place + columns
        good_row, good_column = ((x >= 0) & (x < SIDE) for x in (from_row, from_column))
        inner = crops[:5][:, from_row[good_row]][:, :, from_column[good_column]]
        want[np.ix_(range(5), place[good_row], place[good_column])] = inner
        np.testing.assert_array_equal(got, want)


def rows_first(image, size):
    """Resize along the rows, then along the columns, as Pillow does before version 12.

    Later versions begin with the cheaper axis, which changes overshoots by a few levels.
    """
    for new in ((size[1], image.height), size[::-1]):
        image = image.resize(new, Image.Resampling.BICUBIC)
    return image


@pytest.mark.parametrize("size", [(32, 32), (48, 40), (13, 17), (8, 60)])
def test_crop_and_resize(size, crops):
    random = np.random.default_rng(0)
    sides = random.integers(4, 33, (100, 2))
    corners = random.integers(0, 33 - sides)
    boxes = np.concatenate([corners, sides], 1).astype(np.int32)
    got = ours(lambda x, box: geometry.crop_and_resize(x, box, size), crops, boxes)

    def reference(image, box):
        top, left, height, width = (int(x) for x in box)
        return rows_first(image.crop((left, top, left + width, top + height)), size)

    apart = difference(got, theirs(reference, crops, boxes))
    assert apart.max() <= 2  # one level from each of the two axes
    assert apart.mean() < 0.02
    mirrored = ours(lambda x, box: geometry.crop_and_resize(x, box, size, True), crops, boxes)
    np.testing.assert_array_equal(mirrored, got[:, :, ::-1])


@pytest.mark.parametrize(("shape", "size", "ratio"), [
    ((40, 60), 24, 1.0), ((60, 40), 24, 0.875), ((32, 32), 48, 0.95), ((50, 33), 33, 1.0),
])  # fmt: skip
def test_resize_and_central_crop(shape, size, ratio):
    images = sample_crops(8, 64)[:, : shape[0], : shape[1]]
    got = np.asarray(
        jax.jit(functools.partial(geometry.resize, size=size, crop_ratio=ratio))(images)
    )
    short = int(size / ratio)
    new = [int(short * side / min(shape)) for side in shape]

    def reference(image):
        image = rows_first(image, new)
        top, left = (round((side - size) / 2) for side in new)
        return image.crop((left, top, left + size, top + size))

    apart = difference(got, theirs(reference, images))
    assert apart.max() <= 2  # one level from each of the two axes
    assert apart.mean() < 0.02


def test_resize_keeps_images_of_the_right_size():
    images = noise_images(2, 16, 16, 3)
    np.testing.assert_array_equal(geometry.resize(images, 16), images)


def test_resized_crops_are_distributed_as_torchvisions():
    size, area, ratio = (40, 60), (0.08, 1.0), (3 / 4, 4 / 3)
    draw = jax.jit(jax.vmap(lambda u: geometry.resized_crop_box(u, size, area, ratio)))
    top, left, height, width = np.asarray(draw(uniform_draws(4000, 22)))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 60).all()
    wanted = np.array([torchvision_box(random.Random(i), size, area, ratio) for i in range(4000)])
    for drawn, expected in zip((top, left, height, width), wanted.T, strict=True):
        apart = np.sort(drawn) - np.sort(expected)
        assert np.abs(apart).mean() < 0.6  # pixels: the same distribution
    assert len(set(zip(height.tolist(), width.tolist(), strict=True))) > 400


def torchvision_box(draw, size, area, ratio):
    """Draw a box by the rules of torchvision's RandomResizedCrop."""
    for _ in range(10):
        target = draw.uniform(*area) * size[0] * size[1]
        aspect = math.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if width <= size[1] and height <= size[0]:
            top, left = draw.randint(0, size[0] - height), draw.randint(0, size[1] - width)
            return top, left, height, width
    raise AssertionError("some box fits at these sizes")


def test_the_central_box_is_taken_if_none_fits():
    draws = uniform_draws(1, 22)[0]
    box = geometry.resized_crop_box(draws, (20, 60), (0.99, 1.0), (3 / 4, 4 / 3))
    assert [int(x) for x in box] == [0, 16, 20, 27]
    box = geometry.resized_crop_box(draws, (60, 20), (0.99, 1.0), (3 / 4, 4 / 3))
    assert [int(x) for x in box] == [16, 0, 27, 20]


def test_rotation_is_counter_clockwise():
    images = noise_images(4, 9, 9, 3)
    turn = jax.vmap(geometry.rotate_and_scale)
    turned = turn(images, jnp.array([0.0, 90.0, 180.0, -90.0]), jnp.ones(4))
    for image, got, quarters in zip(images, turned, [0, 1, 2, -1], strict=True):
        # Rounding may place a corner just outside the image, which darkens it.
        np.testing.assert_allclose(got[1:-1, 1:-1], np.rot90(image, quarters)[1:-1, 1:-1], atol=0.1)


def test_scaling_enlarges_about_the_center():
    image = np.zeros((17, 17, 1), np.uint8)
    image[6:11, 6:11] = 1
    large = np.asarray(geometry.rotate_and_scale(image, jnp.zeros(()), jnp.full((), 2.0)))[..., 0]
    assert large[4:13, 4:13].min() == 1.0
    assert large[:, :2].max() == 0.0
    np.testing.assert_array_equal(large, large[::-1, ::-1])
