"""Fine-tuning of a classifier, and linear probing: recipes, and what is trained."""

import json

import jax
import numpy as np
import pytest

from bocb_jax import optim
from bocb_jax.build import lr_multipliers
from bocb_jax.config import TrainConfig, from_dict, run_id
from bocb_jax.errors import UserError
from bocb_jax.models.maps import inspect_maps
from bocb_jax.resolve import recorded_size
from bocb_jax.tasks.kinds import KINDS
from bocb_jax.train import Run

CLASSIFICATION = KINDS["classification"]
LAMB = optim.optimizer_info("lamb")
WEIGHTS = "weights.safetensors"  # nothing reads it before a run is opened


def config(**settings):
    return from_dict(TrainConfig, {"recipe": "finetune", "init": WEIGHTS, **settings})


def resolved(**settings):
    given = config(**settings)
    return CLASSIFICATION.resolve(given, CLASSIFICATION.open(given))


# (settings, learning rate, weight decay, layer decay, what is trained)
RECIPES = [
    ({"opt": "sgd"}, 0.01, 1e-4, None, "all"),
    ({"opt": "adamw"}, 5e-5, 0.05, 0.75, "all"),
    ({"opt": "adamw", "model": "resnet_mini"}, 5e-5, 0.05, None, "all"),
    ({"opt": "adamw", "init": None}, 5e-5, 0.05, None, "all"),
    ({"opt": "adamw", "step": {"layer_decay": 0.9}}, 5e-5, 0.05, 0.9, "all"),
    ({"opt": "lamb"}, 0.1 * LAMB.default_learning_rate, LAMB.default_weight_decay, None, "all"),
    ({"opt": "sgd", "recipe": "linear_probe"}, 0.1, 0.0, None, "classifier"),
    ({"opt": "adamw", "recipe": "linear_probe"}, 1e-3, 0.0, None, "classifier"),
    (
        {"opt": "lamb", "recipe": "linear_probe"},
        LAMB.default_learning_rate,
        0.0,
        None,
        "classifier",
    ),
    (
        {"recipe": "auto", "opt": "lamb", "step": {"train": "classifier"}},
        LAMB.default_learning_rate,
        LAMB.default_weight_decay,
        None,
        "classifier",
    ),
]


@pytest.mark.parametrize(("settings", "rate", "decay", "layer_decay", "train"), RECIPES)
def test_recipes_say_what_is_trained_and_how(settings, rate, decay, layer_decay, train):
    found = resolved(**{"model": "vit_mini", **settings})
    assert found.learning_rate == pytest.approx(rate)
    assert found.weight_decay == decay
    assert (found.layer_decay, found.train) == (layer_decay, train)


def test_recipes_keep_the_size_of_the_weights(tmp_path):
    assert resolved(model="vit_s").image_size == 224  # of digits of 8 pixels
    assert resolved(model="vit_s", image_size=64).image_size == 64
    stored = {"config": {"model": "vit_s"}, "resolved": {"num_classes": 10, "image_size": 96}}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    (tmp_path / "checkpoints" / "best").mkdir(parents=True)
    for init in (tmp_path, tmp_path / "checkpoints" / "best"):
        assert resolved(model="vit_s", init=str(init)).image_size == 96
    stored["resolved"]["image_size"] = 10**6  # from somebody else
    (tmp_path / "config.json").write_text(json.dumps(stored))
    assert recorded_size(str(tmp_path)) is None
    assert recorded_size(str(tmp_path / "weights.pth")) is None
    assert recorded_size(None) is None


def test_settings_that_are_not_given_leave_run_ids_alone():
    plain = TrainConfig()
    assert not {"train", "layer_decay"} & plain.identity()["step"].keys()
    probing = from_dict(TrainConfig, {"step": {"train": "classifier"}})
    assert probing.identity()["step"]["train"] == "classifier"
    assert run_id(probing) != run_id(plain)


def test_rates_fall_below_the_classifier():
    run = Run(config(model="vit_mini", step={"layer_decay": 0.5}))
    factors = lr_multipliers(run.spec, run.program.steps.passes.abstract_model)
    assert factors["head/kernel"] == factors["norm/scale"] == 1
    assert factors["blocks/3/mlp/fc1/kernel"] == 0.5
    assert factors["blocks/0/attn/qkv/kernel"] == 0.5**4
    assert factors["patch_embed/proj/kernel"] == factors["pos_embed"] == 0.5**5
    every = jax.tree.leaves(run.program.abstract_state.params)
    assert len(factors) == len(every)


@pytest.mark.parametrize(
    ("model", "classifier", "blocks"),
    [("resnet_mini", "fc/kernel", 8), ("vgg_mini", "head/fc/kernel", 16),
     ("moganet_mini", "head/kernel", 5), ("convnext_mini", "head/fc/kernel", 9)],
)  # fmt: skip
def test_the_classifier_is_on_top_of_all_blocks(model, classifier, blocks):
    run = Run(config(model=model, step={"layer_decay": 0.5}))
    net = run.program.steps.passes.abstract_model
    factors = lr_multipliers(run.spec, net)
    assert factors[classifier] == 1
    order = ["/".join(map(str, path)) for path in inspect_maps(net, 32, 32).order]
    found = [factors[name] for name in order if name in factors]
    assert found == sorted(found)
    assert found[0] in (0.5**blocks, 0.5 ** (blocks + 1))  # a list may begin with the stem


def test_linear_probing_changes_the_classifier_alone():
    run = Run(config(model="resnet_mini", recipe="linear_probe", opt="sgd", batch_size=8))
    state = run.init_state()
    before = jax.device_get((state.params, state.model_state))
    assert list(before[0]) == ["fc"]
    with run.data.loader(run.program.batch_sharding).train(seed=0) as batches:
        state, metrics = run.program.train_step(state, next(batches), run.key)
    after = jax.device_get((state.params, state.model_state))
    assert np.isfinite(metrics["loss"])
    assert np.abs(after[0]["fc"]["kernel"] - before[0]["fc"]["kernel"]).max() > 0
    jax.tree.map(np.testing.assert_array_equal, after[1], before[1])


REFUSED = {
    "own": ({"model": "helpers.tiny_features:Net", "step": {"train": "classifier"}},
            "Which layer of Net is the classifier is not known"),
    "detection": ({"task": "detection", "recipe": "auto", "init": None,
                   "step": {"train": "classifier"}}, "step.train is for classification"),
    "what": ({"step": {"train": "stem"}}, "step.train is 'stem'; it must be one of all"),
    "blocks": ({"model": "densenet_mini", "step": {"layer_decay": 0.5}},
               "layer_decay counts the entries .* densenet_mini has no list"),
    "zero": ({"step": {"layer_decay": 0.0}}, "step.layer_decay is 0.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name):
    settings, says = REFUSED[name]
    with pytest.raises(UserError, match=says):
        Run(config(**settings))
