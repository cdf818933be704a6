"""Color operations against Pillow's on 100 crops of scikit-learn's sample photographs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.pillow import difference, factors, ours, theirs
from helpers.sample_crops import sample_crops
from PIL import ImageEnhance, ImageFilter, ImageOps

from bocb_jax.augment import color, operations


@pytest.fixture(scope="module")
def crops():
    return sample_crops(100, 32)


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
        np.asarray(color.on_grid(factors(100, 0.0, 2.0))),
    )
    for name, enhance in {
        "brightness": ImageEnhance.Brightness,
        "contrast": ImageEnhance.Contrast,
        "saturation": ImageEnhance.Color,
        "sharpness": ImageEnhance.Sharpness,
    }.items()
}


@pytest.mark.parametrize("name", EXACT)
def test_exact_operations_equal_pillows(name, crops):
    function, reference, values = EXACT[name]
    values = () if values is None else (values,)
    np.testing.assert_array_equal(ours(function, crops, *values), theirs(reference, crops, *values))


def test_autocontrast_differs_only_by_pillows_rounding(crops):
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
def test_a_flat_image_gives_what_pillow_gives(value):
    image = np.full((1, 16, 16, 3), value, np.uint8)
    for function, reference in ((remap(0), ImageOps.autocontrast), (remap(1), ImageOps.equalize)):
        np.testing.assert_array_equal(ours(function, image), theirs(reference, image))


def test_gaussian_blur(crops):
    radius = factors(100, 0.1, 2.0)
    reference = theirs(lambda x, r: x.filter(ImageFilter.GaussianBlur(float(r))), crops, radius)
    apart = difference(ours(color.gaussian_blur, crops, radius), reference)
    assert apart.max() <= 1
    assert apart.mean() < 0.001
