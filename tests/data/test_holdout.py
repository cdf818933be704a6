"""Held-out parts: stratified, reproducible, and the same in every version of NumPy."""

import numpy as np
import pytest

from bocb_jax.data.holdout import permutation, stratified_split
from bocb_jax.errors import UserError


def test_every_part_has_the_same_share_of_every_class():
    labels = np.random.default_rng(0).choice(5, 1000, p=[0.5, 0.3, 0.1, 0.09, 0.01])
    parts = stratified_split(labels, [0.1, 0.2], seed=4)
    np.testing.assert_array_equal(np.sort(np.concatenate(parts)), np.arange(1000))
    total = np.bincount(labels, minlength=5)
    for part, share in zip(parts, [0.7, 0.1, 0.2], strict=True):
        assert np.abs(np.bincount(labels[part], minlength=5) - share * total).max() <= 1


def test_a_lone_example_stays_in_training():
    train, *_ = stratified_split(np.array([0] * 20 + [1]), [0.15, 0.15], seed=0)
    assert 20 in train


def test_few_examples_of_many_classes_can_be_split():
    parts = stratified_split(np.repeat(np.arange(30), 2), [0.1, 0.1], seed=0)
    assert [len(part) for part in parts] == [48, 6, 6]
    assert [len(part) for part in stratified_split(np.arange(3), [0.1, 0.1], seed=0)] == [1, 1, 1]
    with pytest.raises(UserError, match="too few"):
        stratified_split(np.arange(2), [0.1, 0.1], seed=0)


def test_held_out_examples_never_change():
    _, validation, test = stratified_split(np.arange(20) % 3, [0.15, 0.15], seed=5)
    assert (validation.tolist(), test.tolist()) == ([2, 10, 12], [9, 13, 17])


def test_permutations_never_change():
    # Splits and the order of batches depend on these.
    assert permutation(8, 3, 1).tolist() == [7, 3, 5, 6, 4, 0, 2, 1]
    assert sorted(permutation(1000, 0, 2**63)) == list(range(1000))
