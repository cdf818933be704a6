"""Tuned values: those of a pair, of what stands in for it, and the most frequent."""

import numpy as np
import pytest

import bocb_jax
from bocb_jax import paper
from bocb_jax.paper import taxonomy


def test_modes_are_those_of_the_tuned_values():
    # Counted in another way than the table was: by NumPy.
    values = bocb_jax.published("hyperparameters")
    for row in paper.rows("hyperparameter_modes"):
        rates = values[values.optimizer == row["optimizer"]]
        for column, mode in (("learning_rate", "modal_lr"), ("weight_decay", "modal_wd")):
            distinct, counts = np.unique(rates[column], return_counts=True)
            modal = {float(value) for value in row[mode].split("|")}
            assert modal <= set(distinct[counts == counts.max()]), row["optimizer"]


def test_most_frequent_values_are_the_published_modes():
    for row in paper.rows("hyperparameter_modes"):
        printed = (row["modal_lr"], row["modal_wd"])
        expected = tuple(tuple(sorted(map(float, text.split("|")))) for text in printed)
        opt = next(o["opt"] for o in paper.rows("optimizers") if o["optimizer"] == row["optimizer"])
        assert paper.most_frequent(opt) == expected, opt
    assert paper.most_frequent("lars@openmixup") == paper.most_frequent("lars")
    assert paper.most_frequent("muon") == ((), ())


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


def test_every_stand_in_has_values_of_its_own():
    published = {row["backbone"] for row in paper.rows("hyperparameters")}
    for model, base in paper.STAND_INS.items():
        assert taxonomy.backbones()[model].column not in published
        assert taxonomy.backbones()[base].column in published
