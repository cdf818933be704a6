"""Weights to and from PyTorch's names."""

import jax
import numpy as np
import pytest
from flax import nnx

import bocb_jax
from bocb_jax import interop
from bocb_jax.errors import UserError

MINIS = bocb_jax.list_models("*_mini")


def abstract(name, num_classes=10):
    return nnx.eval_shape(
        lambda: bocb_jax.create_model(
            name, num_classes=num_classes, image_size=32, rngs=nnx.Rngs(0)
        )
    )


def draw(model, seed):
    """A state dict for the model, in PyTorch's names and layouts."""
    rng = np.random.default_rng(seed)
    shapes = interop.torch_shapes(model)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def build(name, *, seed=0, num_classes=10):
    """A model with weights, without the cost of drawing its initial ones."""
    model = abstract(name, num_classes)
    interop.load_torch_weights(model, draw(model, seed))
    return model


@pytest.fixture(scope="module")
def model():
    return build("resnet_mini")


@pytest.fixture
def state_dict(model):
    return interop.to_torch_state_dict(model)


def all_leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


@pytest.mark.parametrize("name", MINIS)
def test_round_trip_is_the_identity(name):
    model = abstract(name)
    names = [interop.torch_name(model, *found) for found in interop.variables(model)]
    assert len(set(names)) == len(names)
    weights = draw(model, 0)
    assert interop.load_torch_weights(model, weights) == []
    returned = interop.to_torch_state_dict(model)
    assert returned.keys() == weights.keys()
    for n, weight in weights.items():
        np.testing.assert_array_equal(returned[n], weight, err_msg=n)


def test_names_and_layouts_are_pytorchs(model, state_dict):
    kernel = np.asarray(model.layer1[0].conv2.kernel[...])
    np.testing.assert_array_equal(state_dict["layer1.0.conv2.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state_dict["fc.weight"], np.asarray(model.fc.kernel[...]).T)
    np.testing.assert_array_equal(state_dict["bn1.weight"], model.bn1.scale[...])
    np.testing.assert_array_equal(state_dict["bn1.running_var"], model.bn1.var[...])


def test_all_faults_are_named_at_once_and_nothing_changes(model, state_dict):
    del state_dict["bn1.weight"], state_dict["layer2.0.bn1.running_mean"]
    state_dict["layer9.conv.weight"] = np.zeros((1, 2, 3, 4), np.float32)
    state_dict["fc.weight"] = np.zeros((1000, 256), np.float32)
    state_dict["conv1.weight"] = state_dict["conv1.weight"] + 1
    before = all_leaves(model)
    with pytest.raises(UserError) as caught:
        interop.load_torch_weights(model, state_dict)
    message = str(caught.value)
    for part in (
        "missing: bn1.weight, layer2.0.bn1.running_mean",
        "unexpected: layer9.conv.weight",
        "of another shape: fc.weight (1000x256 where 10x256 is wanted)",
        "ResNet",
    ):
        assert part in message
    for a, b in zip(all_leaves(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_counters_and_index_tables_are_passed_over(state_dict):
    model = build("resnet_mini", seed=1)
    state_dict["bn1.num_batches_tracked"] = np.array(7)
    state_dict["layer1.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    state_dict["layer1.0.some_table"] = np.zeros((4, 4), np.int64)
    state_dict["layer1.0.attn_mask"] = np.zeros((4, 4), np.float32)
    assert interop.load_torch_weights(model, state_dict) == []
    np.testing.assert_array_equal(
        interop.to_torch_state_dict(model)["conv1.weight"], state_dict["conv1.weight"]
    )


def test_half_precision_comes_in_as_float32(state_dict):
    model = build("resnet_mini", seed=1)
    halves = {name: array.astype(np.float16) for name, array in state_dict.items()}
    interop.load_torch_weights(model, halves)
    returned = interop.to_torch_state_dict(model)["conv1.weight"]
    assert returned.dtype == np.float32
    np.testing.assert_array_equal(returned, halves["conv1.weight"].astype(np.float32))


def test_the_model_does_not_share_memory_with_what_was_loaded(state_dict):
    model = build("resnet_mini", seed=1)
    interop.load_torch_weights(model, state_dict)
    loaded = np.array(model.bn1.scale[...])
    state_dict["bn1.weight"] += 1
    np.testing.assert_array_equal(model.bn1.scale[...], loaded)


def test_a_new_head_where_the_classes_differ(state_dict):
    model = build("resnet_mini", seed=1, num_classes=7)
    with pytest.raises(UserError, match=r"fc\.bias"):
        interop.load_torch_weights(model, state_dict)
    head = np.array(model.fc.kernel[...])
    kept = interop.load_torch_weights(model, state_dict, new_head=True)
    assert sorted(kept) == ["fc.bias", "fc.weight"]
    np.testing.assert_array_equal(model.fc.kernel[...], head)
    np.testing.assert_array_equal(model.bn1.scale[...], state_dict["bn1.weight"])
    del state_dict["bn1.bias"]
    with pytest.raises(UserError, match=r"missing: bn1.bias\."):
        interop.load_torch_weights(model, state_dict, new_head=True)
