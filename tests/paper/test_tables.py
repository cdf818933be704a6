"""The paper's tables as data: complete and readable."""

import pytest

import bocb_jax
from bocb_jax import paper
from bocb_jax.errors import UserError


def test_tables_hold_the_paper():
    scores = bocb_jax.published("cifar100")
    assert scores.shape == (20, 20)
    assert scores.loc["SGD-M", "R-50"] == 78.76
    assert scores.loc["SGD-M", ["RVGG-A1", "DeiT-S", "MLP-S"]].tolist() == [75.85, 63.20, 72.64]
    marks = bocb_jax.published("cifar100_marks")
    assert (marks == "outlier").to_numpy().sum() == 50
    assert bocb_jax.published("coco").shape == (20, 11)
    box, pose = bocb_jax.published("coco_box"), bocb_jax.published("coco_pose")
    assert (box.shape, pose.shape) == ((20, 8), (20, 3))
    assert box.loc["Adan", "CNXT_AdamW"] == 43.2
    assert pose.loc["AdaFactor", "VGG_SGD"] == 72.8
    assert bocb_jax.published("imagenet").shape == (20, 2)
    hyperparameters = bocb_jax.published("hyperparameters")
    assert len(hyperparameters) == 320
    assert hyperparameters["learning_rate"].dtype == float


def test_every_table_is_complete():
    for name in paper.names():
        rows = paper.rows(name)
        assert rows, name
        assert all(None not in row.values() and None not in row for row in rows), name


def test_only_published_tables_are_listed():
    assert "cifar100" in paper.names()
    assert not {"taxonomy", "later_optimizers"} & set(paper.names())


def test_an_unknown_table_is_refused():
    with pytest.raises(
        UserError, match=r"no published table 'cifar'\. There are: backbones, cifar"
    ):
        bocb_jax.published("cifar")
