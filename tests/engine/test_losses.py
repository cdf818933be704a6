"""Losses: against their formulas, written out."""

import typing

import jax.numpy as jnp
import numpy as np
import pytest

from bocb_jax.config import StepConfig
from bocb_jax.engine import losses

LOGITS = np.array([[2.0, -1.0, 0.5], [-3.0, 0.0, 4.0]])
LABELS = np.array([0, 1])
SOFT = np.array([[0.7, 0.3, 0.0], [0.0, 0.25, 0.75]])


def log_softmax(x):
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def binary(x, t):
    return -(t * np.log(1 / (1 + np.exp(-x))) + (1 - t) * np.log(1 / (1 + np.exp(x))))


def smooth(targets, share):
    return (1 - share) * targets + share / targets.shape[-1]


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("soft", [False, True], ids=["labels", "probabilities"])
def test_losses(soft, smoothing):
    targets = SOFT if soft else np.eye(3)[LABELS]
    wanted = smooth(targets, smoothing)
    expected = {
        "cross_entropy": -(wanted * log_softmax(LOGITS)).sum(-1),
        "bce": binary(LOGITS, wanted).mean(-1),
        "bce_sum": binary(LOGITS, wanted).sum(-1),
    }
    (names, _) = typing.get_args(typing.get_type_hints(StepConfig)["loss"])
    assert set(expected) == set(typing.get_args(names))
    given = jnp.asarray(SOFT if soft else LABELS)
    for name, values in expected.items():
        found = losses.loss(name, jnp.asarray(LOGITS), given, smoothing)
        np.testing.assert_allclose(found, values, rtol=1e-5)


def test_a_mixed_example_counts_as_its_likeliest_label():
    np.testing.assert_array_equal(losses.correct(jnp.asarray(LOGITS), jnp.asarray(SOFT)), [1, 1])
    np.testing.assert_array_equal(losses.correct(jnp.asarray(LOGITS), jnp.asarray(LABELS)), [1, 0])
