"""Weights to and from PyTorch's names."""

import pathlib
import pickle
import zipfile

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import filled

import bocb_jax
from bocb_jax import torch_weights
from bocb_jax.errors import UserError
from bocb_jax.models import position_tables
from bocb_jax.weight_files import torch_pickle
from bocb_jax.weight_files.read import read_weights

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
    shapes = filled.torch_shapes(model)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def build(name, *, seed=0, num_classes=10):
    """A model with weights, without the cost of drawing its initial ones."""
    model = abstract(name, num_classes)
    torch_weights.load_torch_weights(model, draw(model, seed))
    return model


@pytest.fixture(scope="module")
def model():
    return build("resnet_mini")


@pytest.fixture
def state_dict(model):
    return torch_weights.to_torch_state_dict(model)


def all_leaves(model):
    return [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


@pytest.mark.parametrize("name", MINIS)
def test_round_trip_is_the_identity(name):
    model = abstract(name)
    names = [torch_weights.torch_name(model, *found) for found in torch_weights.variables(model)]
    assert len(set(names)) == len(names)
    weights = draw(model, 0)
    assert torch_weights.load_torch_weights(model, weights) == []
    returned = torch_weights.to_torch_state_dict(model)
    assert returned.keys() == weights.keys()
    for n, weight in weights.items():
        np.testing.assert_array_equal(returned[n], weight, err_msg=n)


def test_names_and_layouts_are_pytorchs(model, state_dict):
    kernel = np.asarray(model.layer1[0].conv2.kernel[...])
    np.testing.assert_array_equal(state_dict["layer1.0.conv2.weight"], kernel.transpose(3, 2, 0, 1))
    np.testing.assert_array_equal(state_dict["fc.weight"], np.asarray(model.fc.kernel[...]).T)
    np.testing.assert_array_equal(state_dict["bn1.weight"], model.bn1.scale[...])
    np.testing.assert_array_equal(state_dict["bn1.running_var"], model.bn1.var[...])


def test_all_mismatches_are_listed_at_once_and_nothing_changes(model, state_dict):
    del state_dict["bn1.weight"], state_dict["layer2.0.bn1.running_mean"]
    state_dict["layer9.conv.weight"] = np.zeros((1, 2, 3, 4), np.float32)
    state_dict["fc.weight"] = np.zeros((1000, 256), np.float32)
    state_dict["conv1.weight"] = state_dict["conv1.weight"] + 1
    before = all_leaves(model)
    with pytest.raises(UserError) as caught:
        torch_weights.load_torch_weights(model, state_dict)
    message = str(caught.value)
    for part in (
        "missing: bn1.weight, layer2.0.bn1.running_mean",
        "unexpected: layer9.conv.weight",
        "of another shape: fc.weight (1000x256, expected 10x256)",
        "ResNet",
    ):
        assert part in message
    for a, b in zip(all_leaves(model), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_counters_and_index_tables_are_ignored(state_dict):
    model = build("resnet_mini", seed=1)
    state_dict["bn1.num_batches_tracked"] = np.array(7)
    state_dict["layer1.0.attn.relative_position_index"] = np.zeros((4, 4), np.int64)
    state_dict["layer1.0.some_table"] = np.zeros((4, 4), np.int64)
    state_dict["layer1.0.attn_mask"] = np.zeros((4, 4), np.float32)
    assert torch_weights.load_torch_weights(model, state_dict) == []
    np.testing.assert_array_equal(
        torch_weights.to_torch_state_dict(model)["conv1.weight"], state_dict["conv1.weight"]
    )


def test_half_precision_is_loaded_as_float32(state_dict):
    model = build("resnet_mini", seed=1)
    halves = {name: array.astype(np.float16) for name, array in state_dict.items()}
    torch_weights.load_torch_weights(model, halves)
    returned = torch_weights.to_torch_state_dict(model)["conv1.weight"]
    assert returned.dtype == np.float32
    np.testing.assert_array_equal(returned, halves["conv1.weight"].astype(np.float32))


def test_the_model_shares_no_memory_with_the_loaded_arrays(state_dict):
    model = build("resnet_mini", seed=1)
    torch_weights.load_torch_weights(model, state_dict)
    loaded = np.array(model.bn1.scale[...])
    state_dict["bn1.weight"] += 1
    np.testing.assert_array_equal(model.bn1.scale[...], loaded)


def test_new_head_keeps_the_classifier_where_classes_differ(state_dict):
    model = build("resnet_mini", seed=1, num_classes=7)
    with pytest.raises(UserError, match=r"fc\.bias"):
        torch_weights.load_torch_weights(model, state_dict)
    head = np.array(model.fc.kernel[...])
    kept = torch_weights.load_torch_weights(model, state_dict, new_head=True)
    assert sorted(kept) == ["fc.bias", "fc.weight"]
    np.testing.assert_array_equal(model.fc.kernel[...], head)
    np.testing.assert_array_equal(model.bn1.scale[...], state_dict["bn1.weight"])
    del state_dict["bn1.bias"]
    with pytest.raises(UserError, match=r"missing: bn1.bias\."):
        torch_weights.load_torch_weights(model, state_dict, new_head=True)


FILES = pathlib.Path(__file__).parent / "golden" / "torch"


@pytest.mark.parametrize("name", ["checkpoint.pth", "checkpoint_before_1_6.pth"])
def test_files_of_pytorch_are_read_without_pytorch(name):
    """Both files were written by `torch.save`: a state dict under "state_dict" with a prefix
    "module.", beside an `argparse.Namespace` and the state of an optimizer."""
    weights = read_weights(FILES / name)
    assert weights.keys() == {
        "conv.weight", "half", "brain", "view", "alias", "bn.num_batches_tracked"
    }  # fmt: skip
    conv = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)  # saved in channels-last strides
    np.testing.assert_array_equal(weights["conv.weight"], conv)
    np.testing.assert_array_equal(weights["half"], np.array([1, 2.5], np.float16))
    np.testing.assert_array_equal(weights["brain"].astype(np.float32), [1.5, -2])
    np.testing.assert_array_equal(weights["view"], [2.0, 4.0, 6.0])
    np.testing.assert_array_equal(weights["alias"], [2.0, 4.0, 6.0])
    assert weights["bn.num_batches_tracked"] == 7


def test_safetensors_are_read(tmp_path, state_dict):
    numpy = pytest.importorskip("safetensors.numpy")
    numpy.save_file(state_dict, tmp_path / "weights.safetensors")
    weights = read_weights(tmp_path / "weights.safetensors")
    model = build("resnet_mini", seed=1)
    torch_weights.load_torch_weights(model, weights)
    for name, array in torch_weights.to_torch_state_dict(model).items():
        np.testing.assert_array_equal(array, state_dict[name])


class Hostile:
    """Writes a file when unpickled by anything that executes pickles."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


class Tampering:
    """Tries to take a part out of a class of ours."""

    def __reduce__(self):
        return (getattr, (torch_pickle.Tensor, "shape"))


@pytest.mark.parametrize("zipped", [True, False])
def test_no_pickle_is_executed(tmp_path, zipped):
    trap, file = tmp_path / "trap", tmp_path / "weights.pth"
    pickled = pickle.dumps({"weight": Hostile(trap), "other": Tampering()})
    if zipped:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", pickled)
    else:
        header = [pickle.dumps(part) for part in (0x1950A86A20F9469CFC6C, 1001, {})]
        file.write_bytes(b"".join([*header, pickled, pickle.dumps([])]))
    with pytest.raises(UserError, match="no state dict"):
        read_weights(file)
    assert not trap.exists()


def test_unreadable_files_are_refused_in_one_sentence(tmp_path):
    def message(name, content=None):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_weights(tmp_path / name)
        assert name in str(caught.value)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no file" in message("absent.pth")
    assert "no file of weights" in message("noise.pth", b"not a pickle")
    assert "older format" in message("other.pth", pickle.dumps({"a": 1}))
    whole = (FILES / "checkpoint.pth").read_bytes()
    assert "is damaged" in message("cut.pth", whole[: len(whole) // 2])
    old = (FILES / "checkpoint_before_1_6.pth").read_bytes()
    assert "is damaged" in message("cut_old.pth", old[:-40])


def fitting(model, state_dict, **choice):
    """What is said while weights are loaded, and the names that kept their values."""
    said = []
    kept = torch_weights.load_torch_weights(model, state_dict, say=said.append, **choice)
    return said, kept


@pytest.mark.parametrize(
    "prefix", ["model.", "backbone.", "net.", "encoder.", "model.backbone.", "module.net.model."]
)
def test_prefixes_of_a_backbone_inside_another_module(state_dict, prefix):
    model = build("resnet_mini", seed=1)
    inside = {prefix + name: array for name, array in state_dict.items()}
    assert fitting(model, inside) == ([], [])
    np.testing.assert_array_equal(
        torch_weights.to_torch_state_dict(model)["conv1.weight"], state_dict["conv1.weight"]
    )
    inside["criterion.weight"] = inside["head.x"] = np.ones(3, np.float32)
    [said], _ = fitting(model, inside)
    assert f"{prefix!r} are taken; 2 others are not (criterion.weight, head.x)" in said


def test_two_models_under_two_prefixes_are_refused(model, state_dict):
    both = {p + name: array for p in ("net.", "encoder.") for name, array in state_dict.items()}
    with pytest.raises(UserError, match=r"several ResNets are there, under 'net\.' and 'encoder\."):
        torch_weights.load_torch_weights(model, both)


def test_a_model_whose_own_names_begin_so_keeps_them():
    class Net(nnx.Module):
        def __init__(self):
            self.model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
            self.encoder = nnx.Linear(2, 3, rngs=nnx.Rngs(1))

    net = Net()
    weights = torch_weights.to_torch_state_dict(net)
    assert {name.partition(".")[0] for name in weights} == {"model", "encoder"}
    assert fitting(net, weights) == ([], [])
    assert fitting(net, {f"model.{n}": a for n, a in weights.items()}) == ([], [])


@pytest.mark.parametrize(("kind", "word"), [("i1", "int8"), ("?", "bool"), ("c8", "complex64")])
def test_parameters_that_are_no_floats_are_refused(model, state_dict, kind, word):
    state_dict["conv1.weight"] = state_dict["conv1.weight"].astype(kind)
    with pytest.raises(UserError, match=rf"not of floats: conv1\.weight \({word}\)\."):
        torch_weights.load_torch_weights(model, state_dict)


def at(name, image_size):
    return nnx.eval_shape(
        lambda: bocb_jax.create_model(name, num_classes=10, image_size=image_size, rngs=nnx.Rngs(0))
    )


def own_names(model):
    return {
        ".".join(map(str, path)): np.asarray(variable[...])
        for path, variable in torch_weights.variables(model)
    }


@pytest.mark.parametrize(
    ("name", "table", "resize", "sizes"),
    [
        ("vit_mini", "pos_embed", position_tables.resize_absolute, (32, 48)),
        (
            "swin_mini",
            "relative_position_bias_table",
            position_tables.resize_relative,
            (32, 16),
        ),
    ],
)
def test_position_tables_of_another_size_are_resized_and_said(name, table, resize, sizes):
    model, other = (at(name, size) for size in sizes)
    given = draw(model, 0)
    [said], kept = fitting(other, given)
    assert kept == []
    assert "Position tables of another image size were resized, as timm does: " in said
    made, changed = torch_weights.to_torch_state_dict(other), 0
    for n, array in made.items():
        wanted = given[n]
        if wanted.shape != array.shape:
            assert n.endswith(table)
            changed += 1
            wanted = resize(wanted, array.shape)
        np.testing.assert_array_equal(array, wanted, err_msg=n)
    assert changed
    # Runs are resized as files are.
    again, said = at(name, sizes[1]), []
    torch_weights.load_torch_weights(model, given)
    torch_weights.load_weights(again, own_names(model), say=said.append)
    assert len(said) == 1
    np.testing.assert_array_equal(torch_weights.to_torch_state_dict(again)[n], made[n])
    # Another patch or width is no other image size.
    given["patch_embed.proj.weight"] = np.zeros((64, 3, 5, 5), np.float32)
    with pytest.raises(UserError, match=r"of another shape: patch_embed\.proj\.weight"):
        torch_weights.load_torch_weights(other, given)


def test_the_python_interface_warns(state_dict):
    vit = at("vit_mini", 48)
    with pytest.warns(UserWarning, match="Position tables"):
        torch_weights.load_torch_weights(vit, draw(at("vit_mini", 32), 0))
