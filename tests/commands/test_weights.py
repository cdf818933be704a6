"""Weights that come in from elsewhere, and go out again."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pandas
import pytest
from drills import kill_run
from flax import nnx
from helpers import filled
from helpers.torch_files import zipped
from helpers.untrained import untrained_run
from safetensors.numpy import load_file, save, save_file

import bocb_jax
from bocb_jax import torch_weights
from bocb_jax.__main__ import main as bocb
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.engine import checkpoint
from bocb_jax.errors import UserError
from bocb_jax.train import Run, train

RUN = {
    "model": "vit_mini",
    "model_args": {"depth": 1},
    "opt": "sgd",
    "lr": 1e-30,  # the weights stay what they were
    "weight_decay": 0.0,
    "epochs": 1,
    "batch_size": 512,
    "parallel": {"devices": 1},
    "augment": {"only": True},
    "log": {"progress": "none"},
}


@pytest.fixture
def config(tmp_path, compile_cache):
    return from_dict(
        TrainConfig, {**RUN, "workdir": str(tmp_path / "runs"), "compile_cache": compile_cache}
    )


def build(classes, name="vit_mini", key=0):
    settings = {"depth": 1} if name == "vit_mini" else {}
    return bocb_jax.create_model(
        name, num_classes=classes, image_size=32, rngs=nnx.Rngs(key), **settings
    )


def model_of(classes, name="vit_mini"):
    return nnx.eval_shape(lambda: build(classes, name))


def a_file(folder, classes=10, name="vit_mini", without=(), **changes):
    """A file of made-up weights with PyTorch's names."""
    random = np.random.default_rng(0)
    weights = {
        n: (0.05 * random.standard_normal(shape) + n.endswith("var")).astype(np.float32)
        for n, shape in filled.torch_shapes(model_of(classes, name)).items()
        if n not in without
    }
    folder.mkdir(exist_ok=True)
    save_file(weights | changes, folder / "weights.safetensors")
    return str(folder / "weights.safetensors")


def state_dict_of(run, classes=10):
    """What a run answers with, under PyTorch's names."""
    model = model_of(classes)
    torch_weights.load_weights(model, checkpoint.read_best(run))
    return torch_weights.to_torch_state_dict(model)


def learned(weights):
    return {name: weight for name, weight in weights.items() if ".running_" not in name}


def same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], 0, 1e-20, err_msg=name)


def test_a_run_starts_from_a_file_and_another_from_that_run(config, tmp_path, capsys):
    file = a_file(tmp_path / "in")
    first = dataclasses.replace(config, init=file)
    outcome = train(first)
    same(learned(state_dict_of(first.folder())), learned(load_file(file)))
    second = dataclasses.replace(config, init=str(first.folder() / "checkpoints" / "best"))
    train(second)
    same(learned(state_dict_of(second.folder())), learned(load_file(file)))
    assert "starts from random weights" not in capsys.readouterr().err

    other = dataclasses.replace(config, model="mixer_mini", model_args={}, init=str(first.folder()))
    with pytest.raises(UserError, match=r"do not fit Mixer: missing: .* more; unexpected: "):
        train(other)

    made = tmp_path / "made.safetensors"
    assert bocb(["export-weights", str(first.folder()), "--to", "timm", "--out", str(made)]) == 0
    same(load_file(made), load_file(file))
    assert capsys.readouterr().out == f"{made}\n"

    # The file counts as a setting; a run that goes on does not need it any more.
    assert first.folder() != config.folder()
    (tmp_path / "in" / "weights.safetensors").unlink()
    (first.folder() / "result.json").unlink()
    again = train(first)
    for result in (again, outcome):
        for clock in kill_run.CLOCKS:
            del result[clock]
    assert again == outcome


@pytest.mark.slow
def test_the_first_step_sees_the_logits_of_the_model_that_came_in(config, tmp_path):
    from bocb_jax.build import compiled_program, program_spec
    from bocb_jax.data.registry import open_dataset
    from bocb_jax.resolve import resolve
    from bocb_jax.starting_weights import starting_weights

    file = a_file(tmp_path / "in")
    dataset = open_dataset("digits")
    spec = program_spec(config, resolve(config, dataset), dataset, 3)
    start, new = starting_weights(spec, file, jax.random.key(0))
    assert new == []
    state = compiled_program(spec).init(jax.random.key(0), 0.1, 0.0, start)
    graph, params, rest = nnx.split(build(10, key=5), nnx.Param, ...)
    images = np.random.default_rng(1).standard_normal((4, 32, 32, 3)).astype(np.float32)
    apply = nnx.jit(lambda model: model(images))
    ours = apply(nnx.merge(graph, state.params, state.model_state))
    imported = nnx.merge(graph, params, rest)
    assert np.abs(ours - apply(imported)).max() > 0.1
    bocb_jax.load_torch_weights(imported, bocb_jax.read_weights(file))
    np.testing.assert_array_equal(ours, apply(imported))


def test_a_new_head_where_the_classes_differ(config, tmp_path, capsys):
    file = a_file(tmp_path / "in", classes=7)
    config = dataclasses.replace(config, init=file)
    train(config)
    said = " ".join(capsys.readouterr().err.split())
    assert f"{file} has another number of classes than the 10 of digits" in said
    assert "the classifier (head.bias, head.weight) starts from random weights" in said
    weights, given = state_dict_of(config.folder()), load_file(file)
    head = {name: weights.pop(name) for name in ("head.weight", "head.bias")}
    same(learned(weights), {n: w for n, w in learned(given).items() if n not in head})
    # To the bit as the run starts without a file; the compiler's options can change the last one.
    begun = Run(dataclasses.replace(config, init=None)).program.passes.init_weights
    drawn = begun(jax.random.key(config.seed))["params"]["head"]
    np.testing.assert_array_equal(head["head.weight"], drawn["kernel"].T)
    np.testing.assert_allclose(
        head["head.bias"], drawn["bias"], atol=1e-30
    )  # it was trained a little


def words(config, init):
    settings = {"model": config.model, "opt": "sgd", "epochs": 1, "init": init}
    settings |= {"model-args.depth": 1}
    settings |= {"workdir": config.workdir, "compile-cache": config.compile_cache}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def test_weights_that_do_not_fit_are_a_sentence_and_nothing_is_written(config, tmp_path, capsys):
    strange = np.zeros((2, 3), np.float32)
    changes = {"layer9.weight": strange, "norm.bias": strange}
    noise = tmp_path / "noise.pth"
    noise.write_bytes(b"not a pickle")
    (tmp_path / "empty").mkdir()
    torn = tmp_path / "torn" / "checkpoints" / "best" / "3"
    torn.mkdir(parents=True)
    cases = {
        str(tmp_path / "absent.safetensors"): "There is no file of weights at",
        str(noise): "noise.pth is damaged, or no file of weights",
        str(tmp_path / "empty"): "holds no weights: it is neither a run's folder nor",
        str(tmp_path / "torn"): "The weights in",
        a_file(tmp_path / "a", without=("norm.weight",), **changes): (
            "do not fit ViT: missing: norm.weight; unexpected: layer9.weight; of another shape: "
            "norm.bias (2x3, expected 64)."
        ),
        a_file(tmp_path / "b", name="resnet_mini"): "do not fit ViT: missing: ",
    }
    for source, message in cases.items():
        assert bocb(["train", *words(config, source)]) == 2
        said = " ".join(capsys.readouterr().err.split())
        assert message in said
        assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()


def test_settings_of_a_backbone_may_be_lists(config):
    from bocb_jax.build import compiled_program, program_spec
    from bocb_jax.data.registry import open_dataset
    from bocb_jax.resolve import resolve

    args = {"depths": [1, 1], "widths": [8, 16]}
    config = dataclasses.replace(config, model="resnet_mini", model_args=args)
    dataset = open_dataset("digits")
    program = compiled_program(program_spec(config, resolve(config, dataset), dataset, 3))
    assert "layer2" in program.abstract_state.params
    assert "layer3" not in program.abstract_state.params


def bits(weights):
    return {name: (w.dtype, w.shape, w.tobytes()) for name, w in weights.items()}


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("resnet_mini", "torchvision"),
        pytest.param("swin_mini", "timm", marks=pytest.mark.slow),
        pytest.param("unireplknet_mini", "official", marks=pytest.mark.slow),
    ],
)
def test_through_a_folder_and_back_not_a_bit_changes(tmp_path, monkeypatch, capsys, name, names):
    monkeypatch.chdir(tmp_path)
    file = a_file(tmp_path / "in", classes=7, name=name)
    assert bocb(["import-weights", file, "--model", name]) == 0
    assert bocb(["export-weights", f"weights/{name}", "--to", names]) == 0
    assert capsys.readouterr().out == f"weights/{name}\nweights/{name}/{name}.safetensors\n"
    made = load_file(f"weights/{name}/{name}.safetensors")
    assert bits(made) == bits(load_file(file))


def test_settings_of_the_model_come_along(tmp_path):
    model = nnx.eval_shape(
        lambda: bocb_jax.create_model(
            "resnet_mini", stem="imagenet", image_size=48, num_classes=3, rngs=nnx.Rngs(0)
        )
    )
    shapes = filled.torch_shapes(model).items()
    file, out = tmp_path / "in.safetensors", str(tmp_path / "out")
    save_file({n: np.ones(shape, np.float32) for n, shape in shapes}, file)
    arguments = ["import-weights", str(file), "--model", "resnet_mini", "--out", out]
    assert bocb(arguments) == 2  # at 32 pixels the stem is another
    assert bocb([*arguments, "--image-size", "48"]) == 0
    assert bocb(["export-weights", out]) == 0
    assert bits(load_file(f"{out}/resnet_mini.safetensors")) == bits(load_file(file))
    stem = ["--model-args.stem", "imagenet", "--out", f"{out}2"]
    assert bocb([*arguments[:4], *stem]) == 0
    assert bocb(["export-weights", f"{out}2"]) == 0


def test_nothing_is_overwritten_and_wrong_wishes_are_a_sentence(tmp_path, capsys):
    file, out = a_file(tmp_path / "in"), str(tmp_path / "out")
    vit = ("import-weights", file, "--model", "vit_mini", "--model-args.depth", "1", "--out", out)
    assert bocb(list(vit)) == 0
    before = sorted(tmp_path.rglob("*"))
    cases = {
        vit: "exists already",
        ("export-weights", out, "--out", file): "exists already",
        (
            "export-weights",
            out,
            "--to",
            "official",
        ): "cannot have the names of official, only those of",
        ("export-weights", str(tmp_path / "in")): "is not a run directory",
        ("import-weights", file, "--model", "vit_mni"): "There is no model 'vit_mni'",
        ("import-weights", file, "--model", "mixer_mini", "--out", f"{out}2"): "do not fit Mixer",
    }
    for words, message in cases.items():
        assert bocb(list(words)) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert sorted(tmp_path.rglob("*")) == before


def test_averaged_weights_are_chosen_and_said(config, tmp_path, capsys):
    weights = load_file(a_file(tmp_path / "in"))
    averages = {name: array + 1 for name, array in weights.items()}
    file = tmp_path / "checkpoint.PTH.TAR"
    file.write_bytes(
        zipped({"model": {f"module.{n}": a for n, a in weights.items()}, "model_ema": averages})
    )
    plain = dataclasses.replace(config, init=str(file))
    averaged = dataclasses.replace(plain, init_ema=True)
    assert "init_ema" not in plain.identity()  # so that run ids stay what they were
    assert plain.folder() != averaged.folder()
    train(averaged)
    same(learned(state_dict_of(averaged.folder())), learned(averages))
    said = capsys.readouterr().err
    assert f"{file}: the averaged weights under 'model_ema' are taken." in said
    arguments = ["import-weights", str(file), "--model", "vit_mini", "--model-args.depth", "1"]
    for flags, wanted in (([], weights), (["--init-ema"], averages)):
        out = str(tmp_path / f"out{len(flags)}")
        assert bocb([*arguments, *flags, "--out", out]) == 0
        same(state_dict_of(tmp_path / out), wanted)
        assert "ema" in capsys.readouterr().err


def test_the_number_of_classes_is_found_behind_a_prefix(tmp_path, capsys):
    weights = load_file(a_file(tmp_path / "in", classes=7, name="resnet_mini"))
    save_file({f"model.{n}": a for n, a in weights.items()}, tmp_path / "w.safetensors")
    out = str(tmp_path / "out")
    file = str(tmp_path / "w.safetensors")
    assert bocb(["import-weights", file, "--model", "resnet_mini", "--out", out]) == 0
    assert bocb(["export-weights", out]) == 0
    assert bits(load_file(f"{out}/resnet_mini.safetensors")) == bits(weights)


# --- Detectors and pose nets ----------------------------------------------------------------------

RESNET = {"model": "resnet_mini", "model_args": {}}


@pytest.fixture(scope="module")
def nets(tmp_path_factory):
    """Untrained runs, by task: the folder, the run and its weights."""
    here = tmp_path_factory.mktemp("nets")
    return {t: (here / t, *untrained_run(here / t, t, **RESNET)) for t in ("detection", "pose")}


def exported(run, *words):
    file = run.parent / f"{len(list(run.parent.iterdir()))}.safetensors"
    assert bocb(["export-weights", str(run), "--out", str(file), *words]) == 0
    return file, load_file(file)


@pytest.mark.parametrize(
    ("task", "words", "names"),
    [
        ("detection", (), {"backbone.conv1.weight", "neck.lateral_convs.0.conv.weight",
                           "bbox_head.retina_cls.bias", "backbone.bn1.running_var"}),
        ("detection", ("--to", "torchvision"), {
            "backbone.body.conv1.weight", "backbone.fpn.inner_blocks.0.0.weight",
            "head.classification_head.cls_logits.bias", "backbone.body.bn1.running_var"}),
        ("pose", (), {"backbone.conv1.weight", "head.deconv_layers.0.weight",
                      "head.deconv_layers.1.running_mean", "head.final_layer.bias"}),
    ],
)  # fmt: skip
def test_whole_nets_go_out_and_come_back(nets, task, words, names):
    from bocb_jax.starting_weights import starting_weights

    folder, run, weights = nets[task]
    file, made = exported(folder, *words)
    assert names < made.keys()
    again, new = starting_weights(run.spec, str(file), jax.random.key(9), say=lambda text: None)
    assert not new
    jax.tree.map(np.testing.assert_array_equal, again, weights)


@pytest.mark.parametrize("task", ["detection", "pose"])
def test_backbones_of_nets_go_out_alone(nets, task):
    folder, _, weights = nets[task]
    _, made = exported(folder, "--backbone", "--to", "timm")
    expected = filled.torch_shapes(model_of(10, "resnet_mini"))
    here = {name: array.shape for name, array in made.items()}
    wider = {"conv1.weight"}  # at 64 pixels and more the stem is another
    assert here.keys() == {n for n in expected if not n.startswith("fc.")}
    assert all(shape == expected[n] for n, shape in here.items() if n not in wider)
    kernel = weights["params"]["backbone"]["layer1"][0]["conv1"]["kernel"]
    np.testing.assert_array_equal(
        made["layer1.0.conv1.weight"], np.moveaxis(kernel, (-1, -2), (0, 1))
    )


def test_names_that_a_net_does_not_have_are_a_sentence(nets, tmp_path, capsys):
    detector, pose = (str(nets[task][0]) for task in ("detection", "pose"))
    assert bocb(["import-weights", a_file(tmp_path), "--model", "vit_mini",
                 "--model-args.depth", "1", "--out", str(tmp_path / "vit")]) == 0  # fmt: skip
    for words, message in (
        ((detector, "--to", "timm"), "have the names of MMDetection, or of torchvision, around"),
        ((pose, "--to", "torchvision"), "the names of MMPose around the backbone; those of torch"),
        ((pose, "--to", "official", "--backbone"), "only those of timm and torchvision"),
        ((str(tmp_path / "vit"), "--backbone"), "is a backbone already; leave out --backbone"),
    ):
        capsys.readouterr()
        assert bocb(["export-weights", *words, "--out", str(tmp_path / "no")]) == 2
        assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("name", ["w.safetensors", "w.PTH", "w.ckpt", "w.pth.tar", "w.pt", "w.bin"])
def test_patterns_reads_what_init_reads(tmp_path, capsys, name):
    rows = np.random.default_rng(0).standard_normal((24, 30)).astype(ml_dtypes.bfloat16)
    arrays = {"a.weight": rows, "b.weight": rows.T}
    file = tmp_path / name
    file.write_bytes(save(arrays) if "safe" in name else zipped({"state_dict": arrays}))
    for path in (file, tmp_path):
        assert bocb(["patterns", str(path)]) == 0
        assert "24x30" in capsys.readouterr().out


def test_patterns_of_weights_in_several_files_are_those_of_one_network(tmp_path, capsys):
    rows = np.random.default_rng(0).standard_normal((24, 30)).astype(np.float32)
    names = {"a.weight": "one.safetensors", "b.weight": "two.safetensors"}
    for name, file in names.items():
        save_file({name: rows}, tmp_path / file)
    (tmp_path / "w.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert bocb(["patterns", str(tmp_path), "--output", str(tmp_path / "out.csv")]) == 0
    assert pandas.read_csv(tmp_path / "out.csv")["layer"].tolist() == ["a", "b"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, capsys, monkeypatch):
    file, out = a_file(tmp_path / "in"), str(tmp_path / "out")
    vit = ["import-weights", file, "--model", "vit_mini", "--model-args.depth", "1", "--out", out]
    assert bocb(vit) == 0

    def full(*_):
        raise OSError(28, "No space left on device")

    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr("bocb_jax.commands.weights.save_file", full)
    assert bocb(["export-weights", out]) == 2
    assert "cannot be written: [Errno 28] No space left" in " ".join(
        capsys.readouterr().err.split()
    )
    assert bocb(["export-weights", out, "--out", f"{file}/x"]) == 2
    assert sorted(tmp_path.rglob("*")) == before
