"""What a config leaves open: the paper's recipe for each backbone, and every value overridable."""

import dataclasses

import numpy as np
import pytest

from bocb_jax import paper
from bocb_jax.build import program_spec
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data.arrays import from_arrays
from bocb_jax.data.dataset import Dataset
from bocb_jax.engine.passes import GradientOptions
from bocb_jax.engine.steps import Averaging
from bocb_jax.engine.task import Classification
from bocb_jax.errors import UserError
from bocb_jax.resolve import resolve


def images(name="cifar100", side=32):
    zeros = np.zeros((40, side, side, 3), np.uint8)
    return from_arrays(name, zeros, np.arange(40) % 4)


def settings(dataset=None, **config):
    dataset = dataset or images(config.get("dataset", "cifar100"))
    return resolve(from_dict(TrainConfig, {"dataset": dataset.name, **config}), dataset)


RECIPES = {"PyTorch": "pytorch", "DeiT": "deit", "ConvNeXt": "convnext", "RSB A2": "rsb_a2"}


@pytest.mark.parametrize("row", paper.rows("backbones"), ids=lambda row: row["model"])
def test_every_backbone_of_the_paper_gets_its_recipe_and_input_size(row):
    found = settings(model=row["model"])
    assert found.recipe == RECIPES[row["training_setting"]]
    assert found.image_size == int(row["input_size"])
    assert (found.epochs, found.batch_size) == (200, 100)
    # Small images are padded and cropped; enlarged ones are cropped as they are enlarged.
    assert ("pad" in found.augmentation) == (found.image_size == 32)
    assert ("resized_crop" in found.augmentation) == (found.image_size == 224)


def test_small_twins_see_small_images():
    found = settings(model="vit_mini")
    assert (found.recipe, found.image_size) == ("deit", 32)
    assert found.augmentation["pad_mode"] == "reflect"


def test_on_large_images_a_net_sees_what_it_was_made_for():
    photographs = dataclasses.replace(images("imagenet2012"), image_shape=None)
    found = settings(photographs, model="resnet50")
    assert (found.recipe, found.image_size, found.epochs) == ("pytorch", 224, 100)
    assert found.host_crop == (0.08, 1.0)
    assert "resized_crop" not in found.augmentation
    assert settings(photographs, model="vit_mini").image_size == 32
    third = settings(photographs, model="resnet50", recipe="rsb_a3")
    assert (third.image_size, third.test_size, third.crop_ratio) == (160, 224, 0.95)


def test_a_folder_of_small_images_is_trained_as_small_images():
    folder = dataclasses.replace(images("folder:pictures"), image_shape=None)
    found = settings(folder, model="resnet_mini", image_size=32)
    assert (found.recipe, found.batch_size, found.host_crop) == ("pytorch", 100, None)


def test_every_value_can_be_given():
    found = settings(
        model="vit_s",
        augment={"mixup": 0.0, "erase": 0.0, "rand_augment": "none"},
        step={"loss": "bce", "clip_norm": 0, "ema": 0.999, "label_smoothing": 0.0},
        schedule={"by": "epoch", "end_fraction": 0.1, "warmup_epochs": 1},
        data={"repeats": 1, "crop_ratio": 0.9},
        image_size=64,
    )
    assert (found.mixup, found.cutmix, found.augmentation["erase"]) == (0.0, 1.0, 0.0)
    assert "rand_augment" not in found.augmentation
    assert (found.loss, found.clip_norm, found.ema, found.label_smoothing) == (
        "bce",
        None,
        0.999,
        0,
    )
    assert (found.schedule_by, found.end_fraction, found.warmup_epochs) == ("epoch", 0.1, 1)
    assert (found.repeats, found.crop_ratio, found.image_size) == (1, 0.9, 64)
    nothing = settings(model="vit_s", augment={"only": True, "flip": True})
    assert (nothing.augmentation, nothing.mixup, nothing.cutmix) == ({"flip": True}, 0.0, 0.0)


def test_weight_decay_of_plain_recipes_covers_everything_where_it_is_coupled():
    assert settings(model="resnet50", opt="sgd").decay_mask == "all"
    assert settings(model="resnet50", opt="adamw").decay_mask == "matrices"
    assert settings(model="vit_s", opt="sgd").decay_mask == "matrices"


def test_stochastic_depth_is_the_recipes_unless_the_backbone_has_none():
    dataset = images()
    config = from_dict(TrainConfig, {"model": "efficientnet_b0", "dataset": "cifar100"})
    spec = program_spec(config, resolve(config, dataset), dataset, 10)
    assert dict(spec.model_args) == {"drop_path": 0.05}
    config = dataclasses.replace(config, model_args={"drop_path": 0.3})
    spec = program_spec(config, resolve(config, dataset), dataset, 10)
    assert dict(spec.model_args) == {"drop_path": 0.3}
    assert settings(model="vgg13_bn").drop_path is None


def test_the_step_takes_its_options_by_name():
    dataset = images()
    config = from_dict(
        TrainConfig,
        {
            "model": "vit_s",
            "dataset": "cifar100",
            "step": {"accumulate": 2, "clip_norm": 3.0, "ema": 0.9, "loss": "bce"},
        },
    )
    resolved = resolve(config, dataset)
    spec = program_spec(config, resolved, dataset, 10)
    assert resolved.mixup > 0
    assert resolved.label_smoothing > 0
    assert spec.gradient == GradientOptions(3.0, 2)
    assert spec.averaging == Averaging(0.9, True)
    assert spec.classification == Classification("bce", 0.0)  # mixed targets are smooth already


def test_tuned_values_of_the_paper():
    found = settings(model="resnet50", opt="sgd", hparams="paper")
    assert (found.learning_rate, found.weight_decay) == (0.1, 1e-4)
    assert found.hparams_source == "the paper's tuned values"
    neighbor = settings(model="densenet121", opt="lamb", hparams="paper")
    assert neighbor.learning_rate == 5e-3
    assert "for resnet50, which stands in for densenet121" in neighbor.hparams_source
    given = settings(model="resnet50", opt="sgd", hparams="paper", lr=0.5)
    assert (given.learning_rate, given.weight_decay) == (0.5, 1e-4)
    with pytest.raises(UserError, match="no tuned values for resnet50 with muon"):
        settings(model="resnet50", opt="muon", hparams="paper")


def test_a_batch_that_does_not_divide_is_a_sentence():
    with pytest.raises(UserError, match="batch of 100 does not divide into 8 equal parts"):
        settings(model="resnet50", step={"batch_norm_groups": 8})


def test_an_unknown_recipe_is_a_sentence():
    with pytest.raises(UserError, match="no recipe 'deep'"):
        settings(model="resnet50", recipe="deep")


def test_tuned_on_the_test_split_as_the_paper():
    dataset: Dataset = images().tuned_on_test()
    assert dataset.splits["validation"] is dataset.splits["test"]
    assert len(dataset.splits["train"]) + len(dataset.splits["test"]) == 40


@pytest.mark.parametrize(
    ("changes", "warms"),
    [
        ({"step": {"ema": 0.999}}, True),
        ({"step": {"ema": 0.999, "ema_warmup": False}}, False),
        ({}, False),  # no average
        ({"step": {"ema_warmup": True}}, False),
        ({"dataset": "imagenet", "recipe": "convnext"}, False),  # the recipe's, at its length
        ({"dataset": "imagenet", "recipe": "convnext", "epochs": 5}, True),
        ({"dataset": "imagenet", "recipe": "convnext", "step": {"ema_warmup": True}}, True),
    ],
)
def test_the_average_of_a_command_warms_up(changes, warms):
    changes = dict(changes)
    resolved = settings(images(changes.pop("dataset", "cifar100"), 224), **changes)
    assert resolved.ema_warmup is warms
    assert (resolved.ema is not None) == ("recipe" in changes or "ema" in changes.get("step", {}))


def test_sizes_are_bounded_for_the_backbones_of_the_package_alone():
    with pytest.raises(UserError, match=r"model_args.width is 100000.*at most 65,536"):
        settings(model="vit_mini", model_args={"width": 100_000})
    own = settings(model="flax.nnx:Linear", model_args={"rope_theta": 1e5, "depths": [[2000]]})
    assert own.recipe == "pytorch"
