"""Backbones of the paper: their features, and which of them a name belongs to."""

import pytest

from bocb_jax import paper
from bocb_jax.models import list_models, model_card
from bocb_jax.paper import taxonomy
from bocb_jax.recipes import list_recipes


def test_the_backbones_are_the_columns_of_the_scores_and_resnet101():
    known = taxonomy.backbones()
    columns = [backbone.column for backbone in known.values()]
    assert columns == [*paper.table("cifar100").columns, "R-101"]
    assert set(known) <= set(list_models())
    assert {backbone.recipe for backbone in known.values()} <= set(list_recipes())
    assert {backbone.input_size for backbone in known.values()} == {32, 224}


def test_the_reading_follows_the_printed_table():
    printed = {row["model"]: row for row in paper.rows("backbones")}
    pairs = {"operator": "mixer", "stage_wise_design": "stages", "residual_branch": "residual"}
    for column, feature in pairs.items():
        readings = {}
        for model, row in printed.items():
            readings.setdefault(row[column], set()).add(
                getattr(taxonomy.backbones()[model], feature)
            )
        assert all(len(levels) == 1 for levels in readings.values()), readings
    for model, row in printed.items():
        patches = taxonomy.backbones()[model].stem == "patches"
        assert patches == row["stage_wise_design"].startswith("Patchfy"), model


def test_every_model_of_this_project_has_the_taxonomy_of_its_relative():
    for name in list_models():
        card, known = model_card(name), taxonomy.find(name)
        assert (card.category, card.recipe) == (known.category, known.recipe), name
        assert card.input_size == (32 if name.endswith("_mini") else known.input_size), name


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("resnet50", "resnet50"),
        ("R-50", "resnet50"),
        ("R-101", "resnet101"),
        ("deit_s", "vit_s"),
        ("resnet152", "resnet50"),
        ("convnextv2_atto", "convnextv2_t"),
        ("convnext_mini", "convnext_t"),
        ("poolformerv2_mini", "poolformerv2_s12"),
        ("mypackage:vit_wide", "vit_s"),
        ("ResNet-18", "resnet50"),
        ("ViT-B/16", "vit_s"),
        ("R50_SGD", "resnet50"),
        ("SwinT_AdamW", "swin_t"),
        ("VGG_SGD", "vgg13_bn"),
        ("R-50_RSB-A2_300ep", "resnet50"),
    ],
)
def test_a_name_finds_its_relative(name, model):
    assert taxonomy.find(name).model == model


@pytest.mark.parametrize("name", ["", "123", "my_own_net", "mypackage:MyNet", "R-18"])
def test_other_names_find_nothing(name):
    assert taxonomy.find(name) is None


def test_vgg_without_batchnorm_has_no_norm():
    norms = [taxonomy.find(name).norm for name in ("vgg13", "vgg13_bn", "vgg_mini", "VGG-13")]
    assert norms == ["none", "batch", "batch", "batch"]
