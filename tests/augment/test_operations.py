"""RandAugment and color jitter: how often each operation is drawn, and with which arguments."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.sample_crops import uniform_draws

from bocb_jax.augment import operations
from bocb_jax.augment.operations import RAND_AUGMENT_KINDS, RAND_AUGMENT_OPERATIONS, RandAugment
from bocb_jax.errors import UserError


def test_rand_augment_draws_all_operations_equally_and_applies_half():
    policy = RandAugment.parse("rand-m9-mstd0.5-inc1")
    draw = jax.jit(jax.vmap(lambda u: policy.sample(u, (32, 32))))
    sampled = jax.tree.map(np.asarray, draw(uniform_draws(6000, policy.num_draws)))
    assert sampled.kind.shape == (6000, 2)
    counts = collections.Counter(RAND_AUGMENT_KINDS[kind] for kind in sampled.kind.ravel())
    assert abs(counts["keep"] / 12000 - 0.5) < 0.02
    for kind, times in collections.Counter(RAND_AUGMENT_OPERATIONS.values()).items():
        assert abs(counts[kind] / 12000 - times / 30) < 0.01


def test_rand_augment_magnitudes_are_normal_and_clipped():
    policy = RandAugment(magnitude=9.0, noise=0.5, probability=1.0, increasing=True)
    sampled = jax.jit(jax.vmap(lambda u: policy.sample(u, (32, 32))))(
        uniform_draws(6000, policy.num_draws)
    )
    factor = np.asarray(sampled.value)[
        np.asarray(sampled.kind) == RAND_AUGMENT_KINDS.index("brightness")
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


def test_color_jitter_covers_all_orders_and_its_range():
    sampled = jax.vmap(lambda u: operations.sample_color_jitter(u, 0.4))(uniform_draws(3000, 6))
    orders = collections.Counter(map(tuple, np.asarray(sampled.kind).tolist()))
    assert len(orders) == 6
    assert min(orders.values()) > 400
    factors = np.asarray(sampled.value)
    assert factors.min() >= 0.6
    assert factors.max() <= 1.4
    assert abs(factors.std() - 0.8 / 12**0.5) < 0.01
