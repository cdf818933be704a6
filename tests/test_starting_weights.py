"""Detectors and pose nets start from the weights of backbones, of whole nets and of runs."""

import dataclasses

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx
from helpers.filled import with_values
from helpers.untrained import spec_of, untrained_run

import bocb_jax
from bocb_jax import torch_weights
from bocb_jax.build import build_backbone, build_model
from bocb_jax.commands.weights import ImportOptions, import_weights
from bocb_jax.starting_weights import starting_weights

BACKBONE = "helpers.tiny_features:Net"


def filled(model, seed):
    """A backbone with its classifier, of 10 classes, and random values everywhere."""
    found = bocb_jax.create_model(model, num_classes=10, image_size=32, rngs=nnx.Rngs(seed))
    draw = np.random.default_rng(seed)
    for _, variable in torch_weights.variables(found):
        value = draw.standard_normal(variable.shape).astype(np.float32)
        variable.set_value(value)
    return found


# What a file does not say of a backbone that was built for small images.
STEMS = {"resnet_mini": {"stem": "cifar"}, "vit_mini": {}}


@pytest.mark.parametrize(("model", "task"), [
    ("vit_mini", "pose"),
    pytest.param("resnet_mini", "pose", marks=pytest.mark.slow),
    *(pytest.param(n, "detection", marks=pytest.mark.slow) for n in STEMS),
])  # fmt: skip
def test_starts_from_a_file_with_pytorchs_names(model, task, tmp_path):
    source = filled(model, 3)
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(torch_weights.to_torch_state_dict(source), path)
    check_backbone_is(source, spec_of(model, task, model_args=STEMS[model]), str(path))


@pytest.mark.parametrize("task", ["detection", "pose"])
def test_starts_from_a_file_that_calls_the_backbone_so(task, tmp_path):
    """As MMPretrain, in which the paper's backbones were trained, saves a classifier."""
    spec = spec_of(BACKBONE, task, transfer={"width": 8})
    source = with_values(nnx.eval_shape(lambda: build_backbone(spec, nnx.Rngs(0))))
    arrays = torch_weights.to_torch_state_dict(source)
    names = {name: f"backbone.{name}" if "fc." not in name else f"head.{name}" for name in arrays}
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({names[name]: array for name, array in arrays.items()}, path)
    check_backbone_is(source, spec, str(path))


@pytest.mark.parametrize(
    ("task", "other"),
    [("detection", "pose"), pytest.param("pose", "detection", marks=pytest.mark.slow)],
)
def test_starts_from_the_backbone_of_another_net(task, other, tmp_path):
    given = {"model": BACKBONE, "model_args": {}, "transfer": {"width": 8}}
    _, weights = untrained_run(tmp_path / "run", other, **given)
    source = weights["params"]["backbone"]
    spec = spec_of(BACKBONE, task, transfer={"width": 8})
    said = []
    taken, new = starting_weights(spec, str(tmp_path / "run"), jax.random.key(0), say=said.append)
    assert said[-1].startswith("The backbone starts from")
    assert not any(name.startswith("backbone.") for name in new)
    jax.tree.map(np.testing.assert_array_equal, taken["params"]["backbone"], source)


def test_starts_from_a_run(tmp_path):
    source = filled("resnet_mini", 3)
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file(torch_weights.to_torch_state_dict(source), path)
    run = import_weights(ImportOptions(str(path), "resnet_mini", out=str(tmp_path / "run")))
    spec = spec_of("resnet_mini", init=str(run))
    assert (spec.image_size, spec.backbone_size) == (64, 32)  # as the run's, with its stem
    check_backbone_is(source, spec, str(run))
    assert spec_of("vit_mini").backbone_size == 32  # that of its table of positions
    assert spec_of("resnet_mini").backbone_size == 64


def check_backbone_is(source, spec, path):
    said = []
    weights, new = starting_weights(spec, path, jax.random.key(0), say=said.append)
    assert new
    assert f"The backbone starts from {path} (" in said[-1]
    assert not any(name.startswith("backbone.") for name in new)
    given = {".".join(map(str, p)): v.get_value() for p, v in torch_weights.variables(source)}
    both = [*leaves(weights["params"]), *leaves(weights["model_state"])]
    taken = {name.removeprefix("backbone."): v for name, v in both if name.startswith("backbone.")}
    taken = {name: v for name, v in taken.items() if name in given}
    assert len(taken) > len(given) - 8  # all but the classifier's
    for name, value in taken.items():
        np.testing.assert_array_equal(value, given[name], err_msg=name)


@pytest.mark.parametrize("classes", [5, 9])
def test_starts_from_a_whole_net_of_the_same_or_other_classes(classes, tmp_path):
    """`shapes` has five categories."""
    spec = spec_of(BACKBONE, transfer={"width": 8})
    other = dataclasses.replace(
        spec, num_classes=classes, net=dataclasses.replace(spec.net, num_classes=classes)
    )
    source = with_values(nnx.eval_shape(lambda: build_model(other, nnx.Rngs(0))))
    path = tmp_path / "net.safetensors"
    safetensors.numpy.save_file(torch_weights.to_torch_state_dict(source), path)
    said = []
    weights, new = starting_weights(spec, str(path), jax.random.key(0), say=said.append)
    given = {".".join(map(str, p)): v.get_value() for p, v in torch_weights.variables(source)}
    if classes == 5:
        assert not new
        assert said == [f"All {len(given)} arrays start from {path}."]
    else:
        assert new == ["bbox_head.retina_cls.bias", "bbox_head.retina_cls.weight"]
        assert said[-1].startswith(f"{len(given) - 2} arrays start from {path}, those of another")
    for name, value in (*leaves(weights["params"]), *leaves(weights["model_state"])):
        if "retina_cls" not in name or classes == 5:
            np.testing.assert_array_equal(value, given[name], err_msg=name)


def leaves(tree):
    found = jax.tree_util.tree_leaves_with_path(tree)
    return [(".".join(str(key.key) for key in path), leaf) for path, leaf in found]
