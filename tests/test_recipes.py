"""Recipes: no deviation from the paper without a reason, and the right one for each backbone."""

import pytest

from bocb_jax import recipes
from bocb_jax.errors import UserError


def test_no_silent_deviation():
    silent = [row for row in recipes.compare() if row.silent]
    assert not silent, silent


def test_every_reason_is_for_a_deviation_there_is():
    reasons = {row.reason for row in recipes.compare()}
    assert set(recipes.REASONS.values()) <= reasons


def test_a_changed_setting_would_be_found(monkeypatch):
    changed = dict(recipes.PAPER)
    changed["deit", "imagenet"] = {**changed["deit", "imagenet"], "mixup": 0.7}
    monkeypatch.setattr(recipes, "PAPER", changed)
    (row,) = [row for row in recipes.compare() if row.silent]
    assert (row.recipe, row.dataset, row.setting, row.paper) == ("deit", "imagenet", "mixup", 0.7)


@pytest.mark.parametrize(
    ("recipe", "regime", "size", "expected"),
    [
        ("pytorch", "cifar100", 32, {"pad": 4, "pad_mode": "reflect", "flip": True, "lr": 0.1}),
        ("pytorch", "cifar100", 224, {"resized_crop": (0.8, 1.0), "flip": True}),
        ("deit", "cifar100", 224, {"mixup": 0.8, "cutmix": 1.0, "erase": 0.25, "clip_norm": 5.0}),
        ("convnext", "cifar100", 32, {"warmup_epochs": 20, "clip_norm": None, "pad": 4}),
        ("rsb_a2", "imagenet", 224, {"loss": "bce_sum", "crop_ratio": 0.95, "batch_size": 2048}),
        ("rsb_a3", "imagenet", 224, {"image_size": 160, "test_size": 224, "epochs": 100}),
        ("deit", "digits", 32, {"flip": False, "mixup": 0.8}),
        ("digits", "digits", 32, {"shift": 0.125, "rotate": 12.0, "epochs": 20}),
    ],
)
def test_settings(recipe, regime, size, expected):
    settings = recipes.settings_of(recipes.get_recipe(recipe, regime, size))
    assert {name: settings[name] for name in expected} == expected


def test_regimes():
    assert recipes.regime_for("digits", 8) == "digits"
    assert recipes.regime_for("folder:pictures", 32) == "cifar100"
    assert recipes.regime_for("imagenet2012", None) == "imagenet"


def test_an_unknown_recipe_is_a_sentence():
    with pytest.raises(UserError, match=r"no recipe 'diet'\. There are: auto, digits, pytorch"):
        recipes.get_recipe("diet", "cifar100")
