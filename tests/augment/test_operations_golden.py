"""Results of timm 1.0.31, stored: whole operations from magnitude to pixels; no PyTorch needed."""

import functools
import zlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sample_crops import photographs, sample_crops

from bocb_jax.augment import operations
from bocb_jax.augment.mixing import smoothed_one_hot
from bocb_jax.augment.operations import (
    RAND_AUGMENT_KINDS,
    RAND_AUGMENT_OPERATIONS,
    Operations,
    RandAugment,
)
from bocb_jax.augment.preprocess import preprocess

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INTERPOLATING = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


@pytest.fixture(scope="module")
def golden():
    return np.load(Path(__file__).parents[1] / "golden/augment/rand_augment.npz")


@functools.cache
def carry_out():
    """(crops), kinds, values, matrices of all operations -> (operations, crops, H, W, 3)."""
    fill = tuple(round(255 * x) for x in MEAN)
    one = functools.partial(operations.apply, kinds=RAND_AUGMENT_KINDS, fill=fill, branching=True)

    def all_of_one(crops, steps):
        return jax.lax.map(lambda crop: one(crop, steps), crops)

    return jax.jit(lambda crops, steps: jax.lax.map(lambda x: all_of_one(crops, x), steps))


@pytest.mark.parametrize("text", ["rand-m9-p1-inc1", "rand-m6-p1", "rand-m7-p1-inc1"])
@pytest.mark.parametrize("sign", [-1, 1])
def test_rand_augment_operations_match_timm(golden, text, sign):
    crops = sample_crops(4, 32)
    assert zlib.crc32(crops.tobytes()) == golden["crops_crc"], "other photographs than timm had"
    policy = RandAugment.parse(text)
    level = jnp.float32(policy.magnitude)
    values, matrices = policy.arguments(level, jnp.float32(sign), (32, 32))
    kinds = [RAND_AUGMENT_KINDS.index(kind) for kind in RAND_AUGMENT_OPERATIONS.values()]
    steps = Operations(jnp.array(kinds)[:, None], values[:, None], matrices[:, None])
    got = np.asarray(carry_out()(crops, steps)).astype(int)
    apart = np.abs(got - golden[f"{text}{sign:+d}"]).mean((1, 2, 3, 4))
    for name, mean in zip(RAND_AUGMENT_OPERATIONS, apart, strict=True):
        # Our factors are rounded to multiples of 2**-14, and AutoContrast differs by one level.
        assert mean < (0.05 if name in INTERPOLATING else 0.02), name


@pytest.mark.parametrize(("size", "ratio"), [(48, 0.875), (40, 1.0)])
def test_evaluation_matches_timm(golden, size, ratio):
    images = photographs()[:1, :120, :90]
    got = preprocess(images, image_size=size, mean=MEAN, std=STD, crop_ratio=ratio)
    apart = np.abs(np.asarray(got[0]) - golden[f"evaluate_{size}_{ratio}"]) * 255 * np.float32(STD)
    assert apart.max() < 2.1
    assert apart.mean() < 0.02


def test_mixed_smoothed_targets_match_timm(golden):
    targets = smoothed_one_hot(jnp.array([0, 2, 1]), 3, 0.1)
    np.testing.assert_allclose(0.7 * targets + 0.3 * targets[::-1], golden["targets"], atol=1e-6)
