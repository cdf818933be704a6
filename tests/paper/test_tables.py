"""The paper's tables as data: complete, and the values of every pair findable."""

import numpy as np
import pytest

import bocb_jax
from bocb_jax import paper
from bocb_jax.errors import UserError
from bocb_jax.models import list_models
from bocb_jax.optim import list_optimizers


def test_tables_hold_the_paper():
    scores = bocb_jax.published("cifar100")
    assert scores.shape == (20, 20)
    assert scores.loc["SGD-M", "R-50"] == 78.76
    assert scores.loc["SGD-M", ["RVGG-A1", "DeiT-S", "MLP-S"]].tolist() == [75.85, 63.20, 72.64]
    marks = bocb_jax.published("cifar100_marks")
    assert (marks == "outlier").to_numpy().sum() == 50
    assert bocb_jax.published("coco").shape == (20, 11)
    assert bocb_jax.published("imagenet").shape == (20, 2)
    hyperparameters = bocb_jax.published("hyperparameters")
    assert len(hyperparameters) == 320
    assert hyperparameters["learning_rate"].dtype == float


def test_every_table_is_complete():
    for name in paper.names():
        rows = paper.rows(name)
        assert rows, name
        assert all(None not in row.values() and None not in row for row in rows), name


def test_taxonomies_name_what_there_is():
    models = {row["model"] for row in paper.rows("backbones")}
    assert len(models) == 20
    assert models <= set(list_models())
    optimizers = {row["opt"] for row in paper.rows("optimizers")}
    assert len(optimizers) == 20
    assert optimizers <= set(list_optimizers())


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("vit_s", "vit_s"),
        ("vit_mini", "vit_s"),
        ("resnet18", "resnet50"),
        ("convnextv2_atto", "convnextv2_t"),
        ("convnext_mini", "convnext_t"),
        ("mynet", None),
        ("MyNet", None),
    ],
)
def test_a_backbone_has_the_row_of_its_family(name, model):
    found = paper.backbone(name)
    assert (found and found.model) == model


def test_every_model_card_has_the_papers_taxonomy():
    for name in list_models():
        card, row = bocb_jax.model_card(name), paper.backbone(name)
        assert row is not None, name
        assert (card.category, card.recipe) == (row.category, row.recipe)
        assert card.input_size == (32 if name.endswith("_mini") else row.input_size)


def test_modes_are_those_of_the_tuned_values():
    # Counted in another way than the table was: by NumPy.
    values = bocb_jax.published("hyperparameters")
    for row in paper.rows("hyperparameter_modes"):
        rates = values[values.optimizer == row["optimizer"]]
        for column, mode in (("learning_rate", "modal_lr"), ("weight_decay", "modal_wd")):
            distinct, counts = np.unique(rates[column], return_counts=True)
            modal = {float(value) for value in row[mode].split("|")}
            assert modal <= set(distinct[counts == counts.max()]), row["optimizer"]


@pytest.mark.parametrize(
    ("model", "opt", "expected"),
    [
        ("resnet50", "sgd", (0.1, 1e-4, "resnet50", True)),
        ("vit_s", "adamw", (5e-4, 5e-2, "vit_s", True)),
        ("resnet101", "lars", (1.2, 1e-4, "resnet101", True)),
        ("convnext_t", "novograd", (3e-3, 1e-4, "convnext_t", True)),
        ("vit_mini", "adamw", (5e-4, 5e-2, "vit_s", False)),
        ("convnextv2_mini", "adamw", (5e-4, 5e-2, "convnext_t", False)),
        ("vgg16_bn", "sgd", (0.3, 2e-4, "vgg13_bn", False)),
        ("caformer_s12", "lamb", (5e-3, 5e-2, "convformer_s12", False)),
    ],
)
def test_tuned_values_of_a_pair(model, opt, expected):
    tuned = paper.tuned(model, opt)
    assert (tuned.learning_rate, tuned.weight_decay, tuned.backbone, tuned.exact) == expected


def test_every_pair_of_the_paper_has_values_and_others_none():
    for backbone in paper.rows("backbones"):
        for optimizer in paper.rows("optimizers"):
            assert paper.tuned(backbone["model"], optimizer["opt"]) is not None
    assert paper.tuned("vit_s", "muon") is None
    assert paper.tuned("my_own_net", "sgd") is None


def test_an_unknown_table_is_a_sentence():
    with pytest.raises(
        UserError, match=r"no published table 'cifar'\. There are: backbones, cifar"
    ):
        bocb_jax.published("cifar")
