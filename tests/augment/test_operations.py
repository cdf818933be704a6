"""Every image operation against Pillow on 100 crops of scikit-learn's sample photographs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sample_crops import sample_crops
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from bocb_jax.augment import color, geometry, operations

FILL = (124, 116, 104)


@pytest.fixture(scope="module")
def crops():
    return sample_crops(100, 32)


def draws(count, low, high, seed=0):
    return np.random.default_rng(seed).uniform(low, high, count).astype(np.float32)


def ours(function, images, *values):
    """One image after the other, as on a CPU in training."""
    return np.asarray(jax.jit(lambda x: jax.lax.map(lambda x: function(*x), x))((images, *values)))


def theirs(function, images, *values):
    pairs = zip(images, *values, strict=True)
    return np.stack([np.asarray(function(Image.fromarray(x), *rest)) for x, *rest in pairs])


def difference(a, b):
    return np.abs(a.astype(int) - b.astype(int))


def remap(equal):
    return lambda image: operations._remap(image, jnp.float32(equal))


EXACT = {
    "invert": (color.invert, ImageOps.invert, None),
    "equalize": (remap(1), ImageOps.equalize, None),
    "posterize": (
        color.posterize,
        lambda image, bits: image.point([i & ~(2 ** (8 - int(bits)) - 1) for i in range(256)] * 3),
        np.arange(100) % 9,
    ),
    "solarize": (
        color.solarize,
        lambda image, threshold: ImageOps.solarize(image, int(threshold)),
        np.linspace(0, 256, 100).astype(int),
    ),
    "solarize add": (
        color.solarize_add,
        lambda image, amount: image.point(
            [min(255, i + int(amount)) if i < 128 else i for i in range(256)] * 3
        ),
        np.arange(100) + 11,
    ),
} | {
    name: (
        getattr(color, name),
        lambda image, factor, enhance=enhance: enhance(image).enhance(float(factor)),
        np.asarray(color.on_grid(draws(100, 0.0, 2.0))),
    )
    for name, enhance in {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }.items()
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_operations_are_pillows_to_the_last_level(name, crops):
    function, reference, values = EXACT[name]
    values = () if values is None else (values,)
    np.testing.assert_array_equal(ours(function, crops, *values), theirs(reference, crops, *values))


def test_autocontrast_differs_by_pillows_rounding_alone(crops):
    crops = crops // 2 + 40  # something to stretch
    apart = difference(ours(remap(0), crops), theirs(ImageOps.autocontrast, crops))
    assert apart.max() <= 1
    assert apart.mean() < 0.01


def test_autocontrast_table_differs_from_pillows_where_stated():
    low, high = (x.ravel() for x in np.triu_indices(256, 1))
    counts = np.zeros((len(low), 256), np.int32)
    counts[np.arange(len(low)), low] = counts[np.arange(len(low)), high] = 1
    table = jax.jit(jax.vmap(color.autocontrast_table))(counts[:, None])[:, 0]
    scale = 255.0 / (high - low)
    pillow = np.arange(256)[None] * scale[:, None] - (low * scale)[:, None]
    pillow = np.clip(pillow.astype(int), 0, 255)
    smaller = np.asarray(table) - pillow
    assert set(np.unique(smaller)) == {0, 1}
    assert smaller.mean() < 1 / 600


@pytest.mark.parametrize("value", [0, 7, 255])
def test_a_flat_image_stays_as_pillow_leaves_it(value):
    image = np.full((1, 16, 16, 3), value, np.uint8)
    for function, reference in ((remap(0), ImageOps.autocontrast), (remap(1), ImageOps.equalize)):
        np.testing.assert_array_equal(ours(function, image), theirs(reference, image))


def test_gaussian_blur(crops):
    radius = draws(100, 0.1, 2.0)
    reference = theirs(lambda x, r: x.filter(ImageFilter.GaussianBlur(float(r))), crops, radius)
    apart = difference(ours(color.gaussian_blur, crops, radius), reference)
    assert apart.max() <= 1
    assert apart.mean() < 0.001


def affine(*entries):
    def transform(image, value):
        matrix = [x(value, image.size) if callable(x) else x for x in entries]
        return image.transform(
            image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC, fillcolor=FILL
        )

    return transform


SIDE = 32
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
    # Pillow weighs in float64 and drops fractions; our weights are multiples of 1/1024. Where a
    # pixel comes from just at the edge of the image, rounding decides whether it is filled.
    matrix, reference, most = WARPS[name]
    values = draws(100, -most, most)
    got = ours(lambda x, v: geometry.warp(x, matrix(v), FILL), crops, values)
    apart = difference(got, theirs(reference, crops, values))
    assert apart.mean() < 0.05
    assert (apart > 2).mean() < 1e-4


@pytest.mark.parametrize("name", ["shear x", "shear y", "translate x", "translate y"])
def test_warps_along_one_axis_equal_the_general_one(name, crops):
    matrix, _, most = WARPS[name]
    values = draws(100, -2 * most, 2 * most)
    along = geometry.warp_along_x if name.endswith("x") else geometry.warp_along_y
    for images in (crops, crops[:, :, :20]):
        np.testing.assert_array_equal(
            ours(lambda x, v: along(x, matrix(v), FILL), images, values),
            ours(lambda x, v: geometry.warp(x, matrix(v), FILL), images, values),
        )


def test_whole_moves_and_no_move_are_exact(crops):
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
    """Resized along the rows, then along the columns, as Pillow does before version 12.

    Later ones begin with the cheaper axis, which moves overshoots by some grey levels.
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
    assert apart.max() <= 2  # a level more or less after the first axis is one more of the second
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
    assert apart.max() <= 2  # a level more or less after the first axis is one more of the second
    assert apart.mean() < 0.02
