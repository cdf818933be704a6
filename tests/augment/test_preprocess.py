"""The policy as a whole: what is drawn how often, and that nothing else decides the result."""

import collections
import functools
import math
import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sample_crops import sample_crops
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bocb_jax.augment import erasing, geometry, operations
from bocb_jax.augment.operations import RAND_AUGMENT_KINDS, RAND_AUGMENT_OPERATIONS, RandAugment
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


@functools.cache
def prepare(policy, size=32, mesh=None, backend="cpu"):
    """Jitted, on the formulation of a backend."""
    plain = functools.partial(
        preprocess, image_size=size, mean=MEAN, std=STD, policy=policy, mesh=mesh
    )

    def call(images, key=None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jax, "default_backend", lambda: backend)
            return plain(images, key=key)

    return jax.jit(call)


def pixels(prepared):
    """Back to grey levels."""
    return np.asarray(prepared) * np.float32(STD) * 255 + np.float32(MEAN) * 255


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def uniform(count, width, seed=0):
    return jax.random.uniform(jax.random.key(seed), (count, width))


# -- what nothing but key and position may decide ---------------------------------------------


# The training step as a whole is held to it with DeiT's policy in the default run.
@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x == "deit")) for x in POLICIES]
)
def test_one_device_and_eight_agree_bit_for_bit(name):
    images, key = sample_crops(16, 32), jax.random.key(3)
    mesh = jax.make_mesh((4, 2), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    sharded = jax.device_put(images, NamedSharding(mesh, P(("data", "fsdp"))))
    alone = prepare(POLICIES[name])(images, key)
    np.testing.assert_array_equal(prepare(POLICIES[name], mesh=mesh)(sharded, key), alone)


def test_the_formulations_for_cpus_and_accelerators_agree():
    images, key = sample_crops(16, 32), jax.random.key(3)
    one_by_one, at_once = (
        prepare(DEIT, backend=backend)(images, key) for backend in ("cpu", "gpu")
    )
    np.testing.assert_allclose(one_by_one, at_once, atol=1e-5)  # the noise is not of integers


@pytest.mark.parametrize("name", ["pytorch", "deit 3"])
def test_the_draw_depends_on_the_position_in_the_batch_alone(name):
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


@pytest.mark.parametrize("name", POLICIES)
def test_every_example_and_every_step_has_its_own_draw(name):
    images = np.tile(sample_crops(1, 32), (16, 1, 1, 1))
    out = np.asarray(prepare(POLICIES[name])(images, jax.random.key(0)))
    assert len({image.tobytes() for image in out}) > 12  # some stay as they are
    other = np.asarray(prepare(POLICIES[name])(images, jax.random.key(1)))
    assert not np.array_equal(out, other)


def test_what_a_policy_leaves_out_does_not_disturb_the_rest():
    images, key = sample_crops(16, 32), jax.random.key(0)
    erased = np.asarray(prepare(Augmentation(pad=4, flip=True, erase=0.5))(images, key))
    plain = np.asarray(prepare(Augmentation(pad=4, flip=True))(images, key))
    same = (erased == plain).all(-1).mean((1, 2))
    assert (same > 0.6).all()
    assert (same == 1).any()


def test_without_a_key_nothing_is_random():
    images = noise(4, 8, 8, 3)
    plain = prepare(DIGITS, size=8)(images)
    np.testing.assert_allclose(plain, normalize(images, MEAN, STD), atol=1e-6)


# -- crops --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "policy", [Augmentation(shift=0.25), Augmentation(pad=2, pad_mode="reflect")]
)
def test_padded_crops_are_all_drawn(policy):
    images = noise(200, 8, 8, 3)
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


def test_flip_mirrors_about_half():
    images = noise(400, 4, 4, 3)
    out = np.rint(pixels(prepare(Augmentation(flip=True), size=4)(images, jax.random.key(0))))
    same = (out == images).all((1, 2, 3))
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    assert (same | mirrored).all()
    assert 150 < mirrored.sum() < 250


def test_boxes_of_resized_crops_are_those_of_torchvision():
    size, area, ratio = (40, 60), (0.08, 1.0), (3 / 4, 4 / 3)
    draw = jax.jit(jax.vmap(lambda u: geometry.resized_crop_box(u, size, area, ratio)))
    top, left, height, width = np.asarray(draw(uniform(4000, 22)))
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + height <= 40).all()
    assert (left + width <= 60).all()
    wanted = np.array([torchvision_box(random.Random(i), size, area, ratio) for i in range(4000)])
    for ours, theirs in zip((top, left, height, width), wanted.T, strict=True):
        apart = np.sort(ours) - np.sort(theirs)
        assert np.abs(apart).mean() < 0.6  # pixels: the same distribution
    assert len(set(zip(height.tolist(), width.tolist(), strict=True))) > 400


def torchvision_box(draw, size, area, ratio):
    """What RandomResizedCrop does, said once more."""
    for _ in range(10):
        target = draw.uniform(*area) * size[0] * size[1]
        aspect = math.exp(draw.uniform(math.log(ratio[0]), math.log(ratio[1])))
        width, height = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if width <= size[1] and height <= size[0]:
            top, left = draw.randint(0, size[0] - height), draw.randint(0, size[1] - width)
            return top, left, height, width
    raise AssertionError("never for these sizes")


def test_the_box_that_never_fits_is_the_central_one():
    draws = uniform(1, 22)[0]
    box = geometry.resized_crop_box(draws, (20, 60), (0.99, 1.0), (3 / 4, 4 / 3))
    assert [int(x) for x in box] == [0, 16, 20, 27]
    box = geometry.resized_crop_box(draws, (60, 20), (0.99, 1.0), (3 / 4, 4 / 3))
    assert [int(x) for x in box] == [16, 0, 27, 20]


def test_turning_is_counter_clockwise():
    images = noise(4, 9, 9, 3)
    turn = jax.vmap(geometry.rotate_and_scale)
    turned = turn(images, jnp.array([0.0, 90.0, 180.0, -90.0]), jnp.ones(4))
    for image, got, quarters in zip(images, turned, [0, 1, 2, -1], strict=True):
        # A corner that rounding puts a hair outside the image may darken.
        np.testing.assert_allclose(got[1:-1, 1:-1], np.rot90(image, quarters)[1:-1, 1:-1], atol=0.1)


def test_scaling_enlarges_about_the_centre():
    image = np.zeros((17, 17, 1), np.uint8)
    image[6:11, 6:11] = 1
    large = np.asarray(geometry.rotate_and_scale(image, jnp.zeros(()), jnp.full((), 2.0)))[..., 0]
    assert large[4:13, 4:13].min() == 1.0
    assert large[:, :2].max() == 0.0
    np.testing.assert_array_equal(large, large[::-1, ::-1])


# -- RandAugment and its relatives ----------------------------------------------------------------


def test_rand_augment_draws_every_operation_as_often_and_half_of_them():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    draw = jax.jit(jax.vmap(lambda u: policy.sample(u, (32, 32))))
    steps = jax.tree.map(np.asarray, draw(uniform(6000, policy.num_draws)))
    assert steps.kind.shape == (6000, 2)
    counts = collections.Counter(RAND_AUGMENT_KINDS[kind] for kind in steps.kind.ravel())
    assert abs(counts["keep"] / 12000 - 0.5) < 0.02
    for kind, times in collections.Counter(RAND_AUGMENT_OPERATIONS.values()).items():
        assert abs(counts[kind] / 12000 - times / 30) < 0.01


def test_rand_augment_magnitudes_are_normal_and_cut_off():
    policy = RandAugment(magnitude=9.0, noise=0.5, probability=1.0, increasing=True)
    steps = jax.jit(jax.vmap(lambda u: policy.sample(u, (32, 32))))(uniform(6000, policy.num_draws))
    factor = np.asarray(steps.value)[
        np.asarray(steps.kind) == RAND_AUGMENT_KINDS.index("brightness")
    ]
    levels = np.abs(factor - 1) / 0.09
    assert abs((factor > 1).mean() - 0.5) < 0.06
    assert levels.max() <= 10.001
    inside = levels[levels < 9.999]
    assert abs((levels > 9.999).mean() - 0.0228) < 0.015
    assert abs(np.median(levels) - 9) < 0.05
    assert abs(inside.std() - 0.46) < 0.05


@pytest.mark.parametrize(("text", "level", "expected"), [
    ("rand-m9-inc1", 9.0, {"Posterize": 1, "Solarize": 26, "SolarizeAdd": 99, "Color": 1.81}),
    ("rand-m9", 9.0, {"Posterize": 3, "Solarize": 230, "SolarizeAdd": 99, "Color": 1.72}),
    ("rand-m7-inc1", 7.0, {"Posterize": 2, "Solarize": 77, "SolarizeAdd": 77, "Contrast": 1.63}),
    ("rand-m10-inc1", 10.0, {"Posterize": 0, "Solarize": 0, "SolarizeAdd": 110, "Equalize": 1}),
])  # fmt: skip
def test_arguments_at_a_level(text, level, expected):
    values, _ = RandAugment.parse(text).arguments(jnp.float32(level), jnp.float32(1), (32, 32))
    got = dict(zip(RAND_AUGMENT_OPERATIONS, np.asarray(values).tolist(), strict=True))
    assert {name: got[name] for name in expected} == pytest.approx(expected, abs=1e-4)


def test_the_notation_of_rand_augment():
    parsed = RandAugment.parse("rand-m6-n3-p0.7-mstd101-mmax12-inc0")
    assert parsed == RandAugment(6.0, 3, 0.7, float("inf"), 12.0, False)
    for wrong in ("m9", "rand-9", "rand-m9-q3", "rand-mx", "augmix-m3", "rand-n1.5"):
        with pytest.raises(UserError, match=r"rand-m9-mstd0\.5-inc1|whole"):
            RandAugment.parse(wrong)


def test_color_jitter_takes_all_orders_and_the_right_range():
    steps = jax.vmap(lambda u: operations.sample_color_jitter(u, 0.4))(uniform(3000, 6))
    orders = collections.Counter(map(tuple, np.asarray(steps.kind).tolist()))
    assert len(orders) == 6
    assert min(orders.values()) > 400
    factors = np.asarray(steps.value)
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert abs(factors.std() - 0.8 / 12**0.5) < 0.01


def test_three_augment_takes_one_of_three():
    policy = Augmentation(three_augment=True)
    images = sample_crops(60, 32)
    out = np.rint(pixels(prepare(policy)(images, jax.random.key(0)))).astype(int)
    grey = (out[..., 0] == out[..., 1]).all((1, 2)) & (out[..., 1] == out[..., 2]).all((1, 2))
    solarized = (out == np.where(images < 128, images, 255 - images)).all((1, 2, 3))
    assert 8 < grey.sum() < 35
    assert 8 < (solarized & ~grey).sum() < 35
    blurred = ~grey & ~solarized
    assert 8 < blurred.sum() < 35
    rough = [np.abs(np.diff(x[blurred].astype(int), axis=1)).mean() for x in (out, images)]
    assert rough[0] < rough[1]


# -- erasing --------------------------------------------------------------------------------------


def test_erased_boxes_have_the_published_sizes():
    boxes = jax.jit(jax.vmap(lambda u: erasing.erased_box(u, (32, 32))))(uniform(4000, 22))
    top, left, height, width = map(np.asarray, boxes)
    assert (height > 0).all()
    assert (top + height <= 32).all()
    assert (left + width <= 32).all()
    share = height * width / 1024
    assert share.min() > 0.01
    assert share.max() < 0.35
    # Even from 0.02 to 1/3, less the large and narrow ones that do not fit.
    assert abs(share.mean() - 0.172) < 0.01


def test_what_is_erased_is_standard_normal_noise_in_a_box():
    images = jnp.full((64, 32, 32, 3), 100.0)
    keys = jax.random.split(jax.random.key(0), 64)
    erase = jax.jit(lambda x: jax.lax.map(lambda x: erasing.erase(*x, 1.0), x))
    out = np.asarray(erase((images, uniform(64, 23), keys)))
    erased = (out != 100).any(-1)
    values = out[erased]
    assert abs(values.mean()) < 0.02
    assert abs(values.std() - 1) < 0.02
    assert abs((np.abs(values) > 2).mean() - 0.0455) < 0.005
    assert len(np.unique(values)) > 0.4 * min(values.size, 65536)
    for mask in erased:
        rows, columns = mask.any(1), mask.any(0)
        assert mask.sum() == rows.sum() * columns.sum()


def test_erasing_as_often_as_asked():
    images = np.full((400, 8, 8, 3), 100, np.uint8)
    out = np.asarray(prepare(Augmentation(erase=0.25), size=8)(images, jax.random.key(0)))
    assert 70 < (out != out[:, :1, :1]).any((1, 2, 3)).sum() < 130


# -- the rest -----------------------------------------------------------------------------------


def test_normalize_centres_and_scales():
    images = noise(4, 16, 16, 3)
    mean, std = images.mean((0, 1, 2)) / 255, images.std((0, 1, 2)) / 255
    out = np.asarray(normalize(images, tuple(mean), tuple(std)))
    np.testing.assert_allclose(out.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(out.std((0, 1, 2)), 1, atol=1e-5)


def test_resize_leaves_images_of_the_right_size_alone():
    images = noise(2, 16, 16, 3)
    np.testing.assert_array_equal(geometry.resize(images, 16), images)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"rand_augment": "trivial"}, "rand-m9"),
    ({"pad": 4, "shift": 0.1}, "not both"),
    ({"pad_mode": "edge"}, "zero"),
    ({"resized_crop": (0.5, 1.5)}, "exceeds"),
    ({"resized_crop": (1.0, 0.5)}, "least"),
    ({"erase": 1.5}, "probability"),
])  # fmt: skip
def test_a_policy_that_makes_no_sense_is_refused(arguments, message):
    with pytest.raises(UserError, match=message):
        Augmentation(**arguments)
