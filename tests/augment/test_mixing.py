"""Mixup and CutMix: labels are weighted as the pixels are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bocb_jax.augment.mixing import Mixing, cutmix_box, mix, pixel_weights, smoothed_one_hot
from bocb_jax.errors import UserError

BOTH = Mixing(mixup=0.8, cutmix=1.0)


@pytest.mark.parametrize("policy", [Mixing(mixup=0.8), Mixing(cutmix=1.0), BOTH])
def test_label_weights_are_pixel_weights(policy):
    # Each pixel holds the image's one-hot label, so that mixed pixels are mixed labels.
    labels = smoothed_one_hot(jnp.arange(6), 6)
    images = jnp.broadcast_to(labels[:, None, None, :], (6, 16, 12, 6))
    step = jax.jit(lambda key: mix(images, labels, key=key, policy=policy))
    for seed in range(40):
        mixed, targets = step(jax.random.key(seed))
        # In float64, so that the mean adds no rounding of its own; labels are float32.
        mean = np.asarray(mixed, np.float64).mean((1, 2))
        np.testing.assert_allclose(targets, mean, rtol=0, atol=2**-23)
        np.testing.assert_allclose(np.asarray(targets).sum(1), 1, rtol=0, atol=2**-22)


def test_the_partner_comes_from_the_reversed_batch():
    images = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
    targets = smoothed_one_hot(jnp.arange(4), 4)
    mixed, labels = mix(images, targets, key=jax.random.key(1), policy=Mixing(mixup=1.0))
    share = labels[0, 0]
    np.testing.assert_allclose(mixed, share * images + (1 - share) * images[::-1], atol=1e-6)
    np.testing.assert_allclose(labels[0], [share, 0, 0, 1 - share], rtol=1e-6)


def test_cutmix_moves_whole_pixels():
    images = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    targets = smoothed_one_hot(jnp.arange(2), 2)
    step = jax.jit(lambda key: mix(images, targets, key=key, policy=Mixing(cutmix=1.0)))
    for seed in range(20):
        mixed, _ = step(jax.random.key(seed))
        own, other = (
            np.isclose(mixed, x, rtol=2**-22, atol=0).all(-1) for x in (images, images[::-1])
        )
        assert (own | other).all()
        pasted = other[0]
        assert pasted.sum() == pasted.any(0).sum() * pasted.any(1).sum()


def test_boxes_are_distributed_as_in_the_paper():
    keys = jax.random.split(jax.random.key(0), 2000)
    shares = jax.random.uniform(jax.random.key(1), (2000,))
    boxes, areas = jax.jit(jax.vmap(lambda k, s: cutmix_box(k, s, (32, 24))))(keys, shares)
    np.testing.assert_array_equal(np.asarray(boxes).sum((1, 2)), areas)
    cut = np.sqrt(1 - np.asarray(shares))
    whole = (32 * cut).astype(int) * (24 * cut).astype(int)
    assert (np.asarray(areas) <= whole).all()
    assert (np.asarray(areas) >= np.maximum(whole // 4 - 32, 0)).all()  # the center lies inside
    # Centers are uniform: every pixel is covered about as often as its neighbors.
    often = np.asarray(boxes).mean(0)
    assert often.min() > 0.1
    assert np.abs(np.diff(often, axis=0)).max() < 0.05
    np.testing.assert_allclose(often, often[::-1, ::-1], atol=0.05)


def test_methods_have_their_probabilities():
    kind = {"cutmix": 0, "mixup": 0, "none": 0}
    policy = Mixing(mixup=0.8, cutmix=1.0, probability=0.8, switch=0.25)
    draw = jax.jit(jax.vmap(lambda key: pixel_weights(key, (8, 8), policy)))
    weights, shares = map(np.asarray, draw(jax.random.split(jax.random.key(0), 3000)))
    for weight, share in zip(weights, shares, strict=True):
        if share == 1:
            kind["none"] += 1
        else:
            kind["cutmix" if set(np.unique(weight)) <= {0.0, 1.0} else "mixup"] += 1
    assert abs(kind["mixup"] / 3000 - 0.6) < 0.03
    assert abs(kind["cutmix"] / 3000 - 0.2) < 0.03
    mixup = shares[(weights.min((1, 2)) == weights.max((1, 2))) & (shares < 1)]
    assert abs(mixup.mean() - 0.5) < 0.03
    assert abs(mixup.var() - 1 / (4 * (2 * 0.8 + 1))) < 0.01  # of a beta distribution


def test_the_draws_never_change():
    # Otherwise a run resumed after an upgrade would be mixed differently.
    draw = jax.jit(lambda key: pixel_weights(key, (8, 8), BOTH))
    pixels = [float(draw(jax.random.key(i))[0].sum()) for i in range(4)]
    assert pixels == [40.0, 22.0, 4.9052734375, 48.0]  # of the own image; all are exact


def test_label_smoothing():
    targets = smoothed_one_hot(jnp.array([2, 0]), 4, 0.1)
    np.testing.assert_allclose(
        targets, [[0.025, 0.025, 0.925, 0.025], [0.925, 0.025, 0.025, 0.025]], rtol=1e-6
    )


@pytest.mark.slow
def test_one_device_and_eight_agree_bit_for_bit():
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 3))
    targets = smoothed_one_hot(jnp.arange(16), 16, 0.1)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = NamedSharding(mesh, P("data"))
    step = jax.jit(lambda x, y, key: mix(x, y, key=key, policy=BOTH))
    for seed in range(4):
        key = jax.random.key(seed)
        alone = step(images, targets, key)
        shared = step(*jax.device_put((images, targets), place), key)
        jax.tree.map(np.testing.assert_array_equal, shared, alone)


def test_an_inactive_policy_changes_nothing():
    images, targets = jnp.ones((3, 4, 4, 3)), jnp.eye(3)
    for policy in (Mixing(), Mixing(mixup=1.0, probability=0.0)):
        assert not policy.active
        assert mix(images, targets, key=jax.random.key(0), policy=policy)[0] is images


@pytest.mark.parametrize(
    "wrong",
    [
        {"mixup": -1.0},
        {"mixup": float("inf")},
        {"cutmix": float("nan")},
        {"probability": 2.0},
        {"switch": -0.5},
    ],
)
def test_impossible_policies_are_refused(wrong):
    with pytest.raises(UserError):
        Mixing(**wrong)
