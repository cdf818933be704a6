"""What happens to images on the device: exact where it can be, and independent of the sharding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from PIL import Image

from bocb_jax.data.augment import (
    Augmentation,
    affine,
    normalize,
    preprocess,
    resize,
)
from bocb_jax.data.augment import augment as augment_eagerly

augment = jax.jit(augment_eagerly, static_argnames="policy")
EVERYTHING = Augmentation(shift=0.125, flip=True, rotate=15.0, scale=0.2)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.mark.parametrize(("before", "after"), [(8, 32), (32, 24), (64, 16), (32, 33)])
def test_resize_is_pillows_bicubic(before, after):
    # Of middling contrast: Pillow cuts overshoots off between the two axes as well.
    images = 96 + noise(2, before, before, 3) // 4
    ours = np.asarray(resize(images, after))
    for image, got in zip(images, ours, strict=True):
        want = np.asarray(Image.fromarray(image).resize((after, after), Image.Resampling.BICUBIC))
        # Pillow rounds to integers, once along each axis.
        assert np.abs(got - want).max() <= 1.5


def test_resize_leaves_images_of_the_right_size_alone():
    images = noise(2, 16, 16, 3)
    np.testing.assert_array_equal(resize(images, 16), images)


def test_resize_keeps_the_aspect_and_the_middle():
    images = np.zeros((1, 32, 64, 3), np.uint8)
    images[:, :, 16:48] = 200  # the central square
    assert np.asarray(resize(images, 32)).min() == 200
    assert resize(np.swapaxes(images, 1, 2), 16).shape == (1, 16, 16, 3)


def test_normalize_centres_and_scales():
    images = noise(4, 16, 16, 3)
    mean = images.mean((0, 1, 2)) / 255
    std = images.std((0, 1, 2)) / 255
    out = np.asarray(normalize(images, tuple(mean), tuple(std)))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_shift_is_a_crop_of_the_padded_image():
    images = noise(200, 8, 8, 1).clip(1).astype(np.float32)
    policy = Augmentation(shift=0.25)
    shifted = np.asarray(augment(images, key=jax.random.key(0), policy=policy))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)))
    seen = set()
    for image, got in zip(padded, shifted, strict=True):
        found = [
            (y, x) for y in range(5) for x in range(5)
            if np.array_equal(image[y : y + 8, x : x + 8], got)
        ]  # fmt: skip
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25  # every shift occurs


def test_flip_mirrors_about_half():
    images = noise(400, 4, 4, 1).astype(np.float32)
    flipped = np.asarray(augment(images, key=jax.random.key(0), policy=Augmentation(flip=True)))
    same = (flipped == images).all((1, 2, 3))
    mirrored = (flipped == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_affine_turns_counter_clockwise():
    images = noise(4, 9, 9, 3).astype(np.float32)
    angles, sizes = jnp.array([0.0, 90.0, 180.0, -90.0]), jnp.ones(4)
    turned = affine(images, angles=angles, sizes=sizes)
    for image, got, quarters in zip(images, turned, [0, 1, 2, -1], strict=True):
        # A corner that rounding puts a hair outside the image may darken.
        np.testing.assert_allclose(got[1:-1, 1:-1], np.rot90(image, quarters)[1:-1, 1:-1], atol=0.1)


def test_affine_enlarges_about_the_centre():
    images = np.zeros((1, 17, 17, 1), np.float32)
    images[:, 6:11, 6:11] = 1.0
    large = np.asarray(affine(images, angles=jnp.zeros(1), sizes=jnp.full(1, 2.0)))[0, ..., 0]
    assert large[4:13, 4:13].min() == 1.0
    assert large[:, :2].max() == 0.0
    np.testing.assert_array_equal(large, large[::-1, ::-1])


def test_no_policy_changes_nothing():
    images = noise(4, 8, 8, 3).astype(np.float32)
    out = augment(images, key=jax.random.key(0), policy=Augmentation())
    np.testing.assert_array_equal(out, images)


def test_every_example_gets_its_own_draw():
    images = np.tile(noise(1, 16, 16, 3), (32, 1, 1, 1)).astype(np.float32)
    out = np.asarray(augment(images, key=jax.random.key(0), policy=EVERYTHING))
    assert len({image.tobytes() for image in out}) == 32
    other = np.asarray(augment(images, key=jax.random.key(1), policy=EVERYTHING))
    assert not np.array_equal(out, other)


def test_the_draw_depends_on_the_position_in_the_batch_alone():
    images = noise(8, 16, 16, 3).astype(np.float32)
    few = augment(images[:4], key=jax.random.key(0), policy=EVERYTHING)
    many = augment(images, key=jax.random.key(0), policy=EVERYTHING)
    np.testing.assert_allclose(few, many[:4], atol=1e-3)


def test_the_sharding_changes_nothing():
    images = noise(16, 8, 8, 3)
    key = jax.random.key(3)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    prepare = jax.jit(
        functools.partial(preprocess, image_size=16, mean=mean, std=std, policy=EVERYTHING)
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.device_put(images, NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(prepare(sharded, key=key), prepare(images, key=key), atol=1e-5)


def test_without_a_key_nothing_is_random():
    images = noise(4, 8, 8, 3)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
    plain = preprocess(images, image_size=8, mean=mean, std=std, policy=EVERYTHING)
    np.testing.assert_allclose(plain, (images / 255.0 - 0.5) / 0.25, atol=1e-5)


def test_a_policy_is_a_static_argument():
    images = jnp.ones((2, 8, 8, 3))
    augment(images, key=jax.random.key(0), policy=Augmentation(flip=True))
    compiled = augment._cache_size()
    augment(images, key=jax.random.key(1), policy=Augmentation(flip=True))
    assert augment._cache_size() == compiled
