"""Preprocessing as a whole: the frequency of each change, and what the draws depend on."""

import collections
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sample_crops import noise_images, sample_crops
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bocb_jax.augment import erasing, geometry
from bocb_jax.augment.preprocess import (
    Augmentation,
    _uniform,
    normalize,
    preprocess,
    sample_operations,
)
from bocb_jax.errors import UserError

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS = Augmentation(shift=0.125, flip=True, rotate=15.0, scale=0.2)
PYTORCH = Augmentation(pad=4, pad_mode="reflect", flip=True)
DEIT = Augmentation(
    resized_crop=(0.08, 1.0), flip=True, rand_augment="rand-m9-mstd0.5-inc1", erase=0.25
)
DEIT_3 = Augmentation(pad=4, flip=True, three_augment=True, color_jitter=0.3)
POLICIES = {"digits": DIGITS, "pytorch": PYTORCH, "deit": DEIT, "deit 3": DEIT_3}
LARGE = ("deit", "deit 3")  # which take long to compile


@functools.cache
def prepare(policy, size=32, mesh=None, backend="cpu"):
    """Return `preprocess`, jitted as for a backend."""
    plain = functools.partial(
        preprocess, image_size=size, mean=MEAN, std=STD, policy=policy, mesh=mesh
    )

    def call(images, key=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: backend)
            return plain(images, key=key)

    return jax.jit(call)


def pixels(prepared):
    """Return the pixels before normalization."""
    return np.asarray(prepared) * np.float32(STD) * 255 + np.float32(MEAN) * 255


# tests/data/test_loader.py covers DeiT's policy in the default run.
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x in LARGE)) for x in POLICIES]
)
def test_one_device_and_eight_agree_bit_for_bit(name):
    images, key = sample_crops(16, 32), jax.random.key(3)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.device_put(images, NamedSharding(mesh, P(("data", "fsdp"))))
    alone = prepare(POLICIES[name])(images, key)
    np.testing.assert_array_equal(prepare(POLICIES[name], mesh=mesh)(sharded, key), alone)


def test_cpus_and_accelerators_agree():
    images, key = sample_crops(16, 32), jax.random.key(3)
    one_by_one, at_once = (
        prepare(DEIT, backend=backend)(images, key) for backend in ("cpu", "gpu")
    )
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-5)  # the noise is not in integers


@pytest.mark.slow
def test_large_batches_are_augmented_in_parts(monkeypatch):
    images, key = sample_crops(10, 32), jax.random.key(3)
    at_once = prepare(DEIT, backend="gpu")(images, key)
    monkeypatch.setattr("bocb_jax.augment.preprocess._AT_A_TIME", 4)
    in_parts = prepare(DEIT, backend="gpu")(images, key)  # of 4, 4 and 2
    np.testing.assert_allclose(in_parts, at_once, atol=1e-5)


@pytest.mark.parametrize("name", ["pytorch", "deit 3"])
def test_the_draw_depends_only_on_the_position_in_the_batch(name):
    images, key = sample_crops(16, 32), jax.random.key(0)
    few, many = (prepare(POLICIES[name])(images[:count], key) for count in (4, 16))
    np.testing.assert_array_equal(few, many[:4])


def test_the_draws_never_change():
    # Otherwise a run resumed after an upgrade would go on with other augmentations.
    keys = jax.vmap(functools.partial(jax.random.fold_in, jax.random.key(3)))(jnp.arange(4))
    policy = Augmentation(rand_augment="rand-m9-mstd0.5-inc1", three_augment=True, color_jitter=0.3)
    _, sampled = sample_operations(keys, policy, (32, 32))
    assert sampled.kind.tolist() == [
        [0, 0, 13, 18, 16, 17], [0, 11, 13, 17, 16, 18],
        [3, 0, 14, 16, 17, 18], [0, 0, 15, 17, 16, 18],
    ]  # fmt: skip
    draws = _uniform(keys, "crop", 22)
    crops = jax.vmap(
        lambda u: jnp.stack(geometry.resized_crop_box(u, (40, 60), (0.08, 1.0), (3 / 4, 4 / 3)))
    )(draws)
    assert crops.tolist() == [[3, 16, 31, 33], [4, 17, 33, 25], [0, 10, 40, 46], [0, 27, 15, 14]]
    draws = _uniform(keys, "erase", erasing.NUM_DRAWS)
    boxes = jax.vmap(lambda u: jnp.stack(erasing.erased_box(u[1:], (32, 32))))(draws)
    assert boxes.tolist() == [[6, 20, 18, 7], [22, 3, 9, 27], [9, 10, 19, 15], [20, 15, 12, 14]]


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x == "deit")) for x in POLICIES]
)
def test_every_example_and_every_step_has_its_own_draw(name):
    images = np.tile(sample_crops(1, 32), (16, 1, 1, 1))
    out = np.asarray(prepare(POLICIES[name])(images, jax.random.key(0)))
    assert len({image.tobytes() for image in out}) > 12  # some stay as they are
    other = np.asarray(prepare(POLICIES[name])(images, jax.random.key(1)))
    assert not np.array_equal(out, other)


def test_leaving_an_augmentation_out_does_not_change_the_rest():
    images, key = sample_crops(16, 32), jax.random.key(0)
    erased = np.asarray(prepare(Augmentation(pad=4, flip=True, erase=0.5))(images, key))
    plain = np.asarray(prepare(Augmentation(pad=4, flip=True))(images, key))
    same = (erased == plain).all(-1).mean((1, 2))
    assert (same > 0.6).all()
    assert (same == 1).any()


def test_without_a_key_nothing_is_random():
    images = noise_images(4, 8, 8, 3)
    plain = prepare(DIGITS, size=8)(images)
    np.testing.assert_allclose(plain, normalize(images, MEAN, STD), atol=1e-6)


@pytest.mark.parametrize(
    "policy", [Augmentation(shift=0.25), Augmentation(pad=2, pad_mode="reflect")]
)
def test_padded_crops_are_all_drawn(policy):
    images = noise_images(200, 8, 8, 3)
    got = np.rint(pixels(prepare(policy, size=8)(images, jax.random.key(0))))
    how = {"mode": "reflect"} if policy.pad else {}
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2), (0, 0)), **how)
    seen = collections.Counter()
    for image, out in zip(padded, got, strict=True):
        found = [
            (y, x) for y in range(5) for x in range(5)
            if np.array_equal(image[y : y + 8, x : x + 8], out)
        ]  # fmt: skip
        assert len(found) == 1
        seen.update(found)
    assert len(seen) == 25


def test_half_of_the_images_are_flipped():
    images = noise_images(400, 4, 4, 3)
    out = np.rint(pixels(prepare(Augmentation(flip=True), size=4)(images, jax.random.key(0))))
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_three_augment_applies_one_of_three():
    policy = Augmentation(three_augment=True)
    images = sample_crops(60, 32)
    out = np.rint(pixels(prepare(policy)(images, jax.random.key(0)))).astype(int)
    gray = (out[..., 0] == out[..., 1]).all((1, 2)) & (out[..., 1] == out[..., 2]).all((1, 2))
    solarized = (out == np.where(images < 128, images, 255 - images)).all((1, 2, 3))
    assert 8 < gray.sum() < 35
    assert 8 < (solarized & ~gray).sum() < 35
    blurred = ~gray & ~solarized
    assert 8 < blurred.sum() < 35
    rough = [np.abs(np.diff(x[blurred].astype(int), axis=1)).mean() for x in (out, images)]
    assert rough[0] < rough[1]


def test_erasing_has_its_probability():
    images = np.full((400, 8, 8, 3), 100, np.uint8)
    out = np.asarray(prepare(Augmentation(erase=0.25), size=8)(images, jax.random.key(0)))
    assert 70 < (out != out[:, :1, :1]).any((1, 2, 3)).sum() < 130


def test_normalize_centers_and_scales():
    images = noise_images(4, 16, 16, 3)
    mean, std = images.mean((0, 1, 2)) / 255, images.std((0, 1, 2)) / 255
    out = np.asarray(normalize(images, tuple(mean), tuple(std)))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("more", "backend"),
    [
        ({"three_augment": True, "color_jitter": 0.3}, "cpu"),
        ({"three_augment": True, "color_jitter": 0.3}, "gpu"),
        ({"rand_augment": "rand-m9"}, "cpu"),
        ({"rand_augment": "rand-m9"}, "gpu"),
    ],
    ids=str,
)
def test_images_that_were_rotated_take_operations_too(more, backend):
    images, key = sample_crops(4, 16), jax.random.key(0)
    rotated = np.rint(pixels(prepare(DIGITS, 16)(images, key)))
    expected = pixels(prepare(Augmentation(**more), 16)(rotated.astype(np.uint8), key))
    assert (np.abs(expected - rotated) > 2).mean() > 0.1
    policy = dataclasses.replace(DIGITS, **more)
    got = pixels(prepare(policy, 16, backend=backend)(images, key))
    # A pixel on the border of two levels may be rounded to either, and changes a histogram by one.
    assert (np.abs(got - expected) < 2.01).mean() > 0.99


@pytest.mark.parametrize(("arguments", "message"), [
    ({"rand_augment": "trivial"}, "rand-m9"),
    ({"pad": 4, "shift": 0.1}, "not both"),
    ({"pad_mode": "edge"}, "zero"),
    ({"resized_crop": (0.5, 1.5)}, "exceeds"),
    ({"resized_crop": (1.0, 0.5)}, "least"),
    ({"resized_crop": 0.5}, "a least and a largest"),
    ({"resized_crop": (0.5, float("nan"))}, "a least and a largest"),
    ({"ratio": (0.5, float("inf"))}, "a least and a largest"),
    ({"erase": 1.5}, "erase must lie in 0 ... 1; it is 1.5"),
    ({"erase": float("nan")}, "erase must lie in"),
    ({"rotate": float("nan")}, "rotate must lie in -360 ... 360; it is nan"),
    ({"scale": float("inf")}, "scale must lie in"),
    ({"scale": 1.0}, "scale must lie below 1"),
    ({"shift": -0.1}, "shift must lie in"),
    ({"pad": -1}, "pad must lie in"),
    ({"color_jitter": 100.0}, "color_jitter must lie in"),
    ({"rand_augment": "rand-m9999"}, "magnitude of RandAugment must lie in"),
    ({"rand_augment": "rand-n1000000"}, "1000000 operations an image"),
    ({"rand_augment": "rand-p2"}, "probability of RandAugment"),
])  # fmt: skip
def test_impossible_policies_are_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**arguments)
