"""Detection and pose estimation, end to end, as a user starts them."""

import dataclasses
import itertools
import json
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from helpers.coco_files import annotation, changed, write
from helpers.untrained import spec_of

import bocb_jax
from bocb_jax import optim, results, transfer
from bocb_jax.build import (
    compiled_program,
    lr_multipliers,
)
from bocb_jax.config import TrainConfig, from_dict, run_id
from bocb_jax.coupling.scores import from_results
from bocb_jax.data.annotated import open_annotated
from bocb_jax.engine.checkpoint import read_best
from bocb_jax.errors import UserError
from bocb_jax.study.resolve import find_pairs
from bocb_jax.study.spec import study_from_dict
from bocb_jax.tasks.kinds import KINDS
from bocb_jax.tasks.resolve import usual_rates
from bocb_jax.train import Run, train

BACKBONE = "helpers.tiny_features:Net"


def files(folder):
    """Eight images, of which two are held out and all are tested."""
    names = [f"{i}.png" for i in range(1, 9)]

    def change(data):
        data["images"] = [
            {"id": i + 1, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(names)
        ]
        data["annotations"] = [annotation(i + 1, i + 1) for i in range(len(names))]

    data = changed(change)
    return write(folder, train=data, val=data, images=names)


def settings(task, **changes):
    given = {
        "task": task,
        "model": BACKBONE,
        "opt": "adamw",
        "epochs": 2,
        "batch_size": 2,
        "image_size": 64,
        "parallel": {"devices": 1},
        "log": {"every_steps": 2, "progress": "none"},
        "transfer": {"width": 8},
    }
    return {**given, **changes}


@pytest.fixture
def config(tmp_path, compile_cache):
    def make(task="detection", **changes):
        data = f"coco:{files(tmp_path / 'coco')}"
        changes = {"dataset": data, "workdir": str(tmp_path / "runs"), **changes}
        return from_dict(TrainConfig, settings(task, compile_cache=compile_cache, **changes))

    return make


# --- The door -------------------------------------------------------------------------------------


def test_the_task_decides_what_is_not_given():
    found = transfer.parse([])
    assert (found.task, found.dataset, found.opt) == ("detection", "shapes", "adamw")
    words = ["--task", "pose", "--data", "coco:/there", "--opt", "sgd", "--transfer.sigma", "3"]
    found = transfer.parse(words)
    assert (found.task, found.dataset, found.opt) == ("pose", "coco:/there", "sgd")
    assert found.transfer.sigma == 3
    assert transfer.parse(["--data=shapes"]).dataset == "shapes"


def test_a_file_of_settings_need_not_name_the_task(tmp_path):
    path = tmp_path / "run.toml"

    def parsed(text, *words):
        path.write_text(text)
        found = transfer.parse(["--config", str(path), *words])
        return found.task, found.model, found.opt, found.dataset, found.epochs

    assert parsed("epochs = 3") == ("detection", "resnet_mini", "adamw", "shapes", 3)
    assert parsed("epochs = 3", "--task", "pose") == ("pose", "resnet_mini", "adam", "shapes", 3)
    assert parsed('task = "pose"\nmodel = "vit_mini"', "--epochs", "4") == (
        "pose", "vit_mini", "adam", "shapes", 4,
    )  # fmt: skip
    for task in ('"classification"', "[1]"):
        with pytest.raises(UserError, match=r"task is .* detection or pose; bocb train trains"):
            parsed(f"task = {task}")


def test_classification_keeps_its_names():
    plain = TrainConfig()
    assert "task" not in plain.identity()
    assert "transfer" not in plain.identity()
    assert run_id(plain) == run_id(dataclasses.replace(plain, task="classification"))
    other = TrainConfig(task="detection").identity()
    assert (other["task"], other["dataset"], other["transfer"]["width"]) == (
        "detection", "shapes", None,
    )  # fmt: skip


@pytest.mark.parametrize("task", ["detection", pytest.param("pose", marks=pytest.mark.slow)])
def test_a_run_leaves_its_record(task, config):
    outcome = train(config(task))
    folder = config(task).folder()
    assert json.loads((folder / "result.json").read_text()) == outcome
    assert outcome["status"] == "finished"
    for name in ("validation_AP", "best_validation_AP", "test_AP", "test_AP50", "test_AP75"):
        assert 0 <= outcome[name] <= 1
    assert outcome["steps"] == 2 * 3 if task == "pose" else 2 * 4
    assert len(outcome["evaluations"]) == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    parts = {"class_loss", "box_loss"} if task == "detection" else set()
    for line in lines:
        assert parts <= line.keys()
        assert "accuracy" not in line
    if task == "detection":
        assert lines[0]["loss"] == pytest.approx(lines[0]["class_loss"] + lines[0]["box_loss"])
    assert train(config(task)) == outcome  # it has ended already
    weights = read_best(folder)
    assert any(name.startswith("backbone.stem") for name in weights)

    frame = results.read_runs(folder.parent)
    assert frame["test_AP"].tolist() == [outcome["test_AP"]]
    assert frame["config.task"].tolist() == [task]


def test_tables_of_runs_are_scored_by_ap(config):
    frame = results.read_runs(made_runs(config))
    table = from_results(frame)
    assert (table.score, table.unit, table.chance) == ("AP", "AP", 0.0)
    assert table.matrix().to_numpy().tolist() == [[30.0], [40.0]]


def made_runs(config):
    """Two runs that ended, with all but their files left out."""
    given = config()
    for opt, score in (("adamw", 0.3), ("sgd", 0.4)):
        run = dataclasses.replace(given, opt=opt, run_id=opt)
        folder = run.folder()
        folder.mkdir(parents=True)
        about = {"config": run.identity(), "resolved": {}, "label": "tiny", "study": None}
        (folder / "config.json").write_text(json.dumps(about))
        scores = {"validation_AP": score, "best_validation_AP": score, "test_AP": score}
        (folder / "result.json").write_text(json.dumps({"status": "finished", **scores}))
    return folder.parent


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "pose"])
def test_a_killed_run_leaves_the_same_bits(task, config, tmp_path):
    """The run is killed three times, right after a checkpoint."""
    every = {"checkpoint": {"every_steps": 1}, "epochs": 4}
    undisturbed = config(task, run_id="undisturbed", **every)
    train(undisturbed)
    killed = config(task, run_id="killed", **every)
    file = tmp_path / "run.json"
    file.write_text(json.dumps(dataclasses.asdict(killed)))
    code = (
        "import json, sys; from bocb_jax.config import *; from bocb_jax.train import train;"
        "train(from_dict(TrainConfig, json.load(open(sys.argv[1]))))"
    )
    last = killed.folder() / "checkpoints" / "last"
    for step in (2, 5, 9):
        process = subprocess.Popen([sys.executable, "-c", code, str(file)])
        while process.poll() is None and not any(
            path.name.isdigit() and int(path.name) >= step for path in last.glob("*")
        ):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed.folder() / "result.json").exists()
    train(killed)
    ours, theirs = read_best(killed.folder()), read_best(undisturbed.folder())
    assert ours.keys() == theirs.keys()
    for name in ours:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)


# --- What a config leaves open --------------------------------------------------------------------


def resolved(task, **changes):
    given = from_dict(TrainConfig, {"task": task, **changes})
    kind = KINDS[task]
    return kind.resolve(given, kind.open(given))


def test_recipes_are_the_references(config):
    data = config().dataset
    found = resolved("detection", model="resnet50", opt="sgd", dataset=data, init="r50.pth")
    assert (found.recipe, found.epochs, found.batch_size) == ("1x", 12, 16)
    assert (found.learning_rate, found.weight_decay, found.decay_mask) == (0.01, 1e-4, "all")
    special = found.transfer
    assert (special["short"], special["long"], special["shapes"]) == ([800, 800], 1333, 2)
    assert (special["frozen_stages"], special["batch_norm"]) == (1, "statistics")
    assert special["boundaries"] == [8 / 12, 11 / 12]
    more = resolved("detection", model="resnet50", opt="sgd", dataset=data, batch_size=32)
    assert more.learning_rate == 0.02  # linear in the batch
    assert (more.transfer["frozen_stages"], more.transfer["batch_norm"]) == (0, "nothing")
    longer = resolved("detection", model="swin_t", dataset=data, recipe="3x")
    assert (longer.epochs, longer.transfer["short"]) == (36, [640, 800])
    assert (longer.learning_rate, longer.weight_decay) == (1e-4, 0.05)
    small = resolved("detection", model="resnet50", dataset=data, image_size=400)
    assert (small.transfer["short"], small.transfer["long"]) == ([400, 400], 666)
    vit = resolved("detection", model="deit_s", dataset=data, init="deit.pth")
    assert (vit.layer_decay, vit.drop_path) == (0.7, 0.1)
    assert (found.drop_path, longer.drop_path) == (None, 0.2)
    given = resolved("pose", model="swin_t", dataset=data, model_args={"drop_path": 0.3})
    assert given.drop_path is None  # the arguments have it
    for model in ("swin_t", "convnext_t", "deit_s"):  # nothing is frozen there
        given = resolved("detection", model=model, dataset=data, init="weights.pth")
        assert given.transfer["frozen_stages"] == 0

    pose = resolved("pose", model="resnet50", opt="adam", dataset=data)
    assert (pose.recipe, pose.epochs, pose.batch_size) == ("210e", 210, 512)
    assert (pose.learning_rate, pose.weight_decay) == (5e-4, 0.0)
    assert (pose.transfer["input_size"], pose.transfer["sigma"]) == ([192, 256], 2)
    assert pose.transfer["boundaries"] == [170 / 210, 200 / 210]


@pytest.mark.parametrize(("task", "recipe"), [("detection", "1x"), ("pose", "210e")])
def test_the_command_decides_how_rates_fall(task, recipe):
    assert spec_of("resnet_mini", task).layer_decay is None
    assert spec_of("resnet_mini", task, step={"layer_decay": 0.9}).layer_decay == 0.9
    given = {"model": "vit_mini", "init": "vit.pth", "recipe": recipe}
    assert resolved(task, **given).layer_decay < 0.9
    assert resolved(task, **given, step={"layer_decay": 0.9}).layer_decay == 0.9


def test_every_optimizer_has_usual_rates():
    for name in optim.list_optimizers():
        for task in ("detection", "pose"):
            rate, decay = usual_rates(TrainConfig(task=task, opt=name))
            assert rate > 0
            assert decay >= 0


SHARED = ("task", "epochs", "batch_size", "image_size", "transfer")
REFUSED = {
    "recipe": ({"recipe": "4x"}, "no recipe '4x' for detection. There are: 1x, 3x, small"),
    "data": ({"dataset": "cifar100"}, "'cifar100' is no data set for detection: give coco:PATH"),
    "folder": ({"dataset": "coco:/lost"}, "lost' is not there"),
    "mixup": ({"augment": {"mixup": 0.2}}, "augment is for classification"),
    "paper": ({"hparams": "paper"}, "hparams is for classification; for detection, the paper has"),
    "corrupt": ({"on_corrupt": "skip"}, "a damaged image ends the run"),
    "batch": ({"task": "pose", "batch_size": 5000}, "[0-9]+ persons, fewer than one batch of 5000"),
    "parts": (
        {"step": {"batch_norm_groups": 3}},
        "A batch of 2 does not divide into 3 equal parts",
    ),
    "odd": ({"batch_size": 3}, "A batch of 3 images does not divide into groups of 2"),
    "folder of data": ({"data": {"dir": "/data"}}, "data.dir is for classification; .* coco:PATH"),
    "device": ({"data": {"on_device": "yes"}}, "data.on_device is for .* read for each batch"),
    "of pose": ({"transfer": {"sigma": 3}}, "transfer.sigma is for pose, not for detection"),
    "of detection": (
        {"task": "pose", "transfer": {"style": "mmdet"}},
        "transfer.style is for detection, not for pose",
    ),
    "of both": (
        {"task": "classification", "dataset": "digits"},
        "Settings under transfer are for detection and pose; leave them out",
    ),
    "short": ({"transfer": {"short": [9, 8]}}, "transfer.short is .* two rising numbers of pixels"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refuses(name, tmp_path):
    changes, says = REFUSED[name]
    changed = settings("detection", workdir=str(tmp_path)) | changes
    with pytest.raises(UserError, match=says):
        Run(from_dict(TrainConfig, changed))
    assert not list(tmp_path.iterdir())


def test_says_how_many_shapes_are_compiled(config):
    text = Run(config()).data.said
    assert text == "Images are put into one padded shape (128x64 pixels); each is compiled.\n"


def test_says_how_many_images_are_left_out(config, tmp_path):
    given = config()
    file = tmp_path / "coco" / "annotations" / "instances_train.json"
    data = json.loads(file.read_text())
    data["images"].append(data["images"][0] | {"id": 99})
    file.write_text(json.dumps(data))
    run = Run(dataclasses.replace(given, protocol="paper"))
    said = "1 training image(s) without a box or with a side below 32 pixels are left out, as in"
    assert run.data.said.startswith(said)
    assert len(run.data.splits["train"]) == 8
    for image in data["images"]:
        image["width"] = 31
    file.write_text(json.dumps(data))
    small = open_annotated(given.dataset, "detection")
    says = "no box of at least a pixel in a training image of no side below 32 pixels"
    with pytest.raises(UserError, match=says):
        Run(given, small)


@pytest.mark.parametrize("side", [40, 64, 300])
def test_maps_are_those_of_the_padded_images(side):
    given = {"task": "detection", "model": "resnet_mini", "image_size": side}
    net = Run(from_dict(TrainConfig, given)).program.steps.passes.abstract_model
    assert net.plan.taken == (0, 1, 2, 3)
    assert net.strides == (4, 8, 16, 32, 64)


def test_a_damaged_image_ends_the_run_in_a_sentence(config, tmp_path):
    given = config()
    (tmp_path / "coco" / "images" / "5.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"5.png' cannot be decoded .*Replace it"):
        train(given)


def test_a_study_has_the_rates_of_its_task(config):
    few = {name: value for name, value in settings("detection").items() if name in SHARED}
    study = study_from_dict(
        {
            "backbones": [BACKBONE],
            "optimizers": ["adamw", "sgd"],
            "train": {**few, "dataset": config().dataset},
        }
    )
    adamw, sgd = find_pairs(study)
    assert (adamw.center, adamw.tuned) == ((1e-4, 0.05), None)
    assert sgd.center == (0.01 * 2 / 16, 1e-4)
    assert (adamw.epochs, adamw.images, adamw.has_data) == (2, 2 * 8, True)
    assert adamw.macs > 0


def test_a_study_of_coco_is_planned_without_it_by_the_recipe_for_it(tmp_path):
    train = {"task": "pose", "dataset": f"coco:{tmp_path / 'nowhere'}"}
    study = study_from_dict({"backbones": [BACKBONE], "optimizers": ["sgd"], "train": train})
    (pair,) = find_pairs(study, stand_in=True)
    assert (pair.epochs, pair.has_data) == (210, False)
    assert pair.images == 210 * (149_813 // 512) * 512
    with pytest.raises(UserError, match="nowhere"):
        find_pairs(study)


# --- What is compiled in --------------------------------------------------------------------------


@pytest.mark.parametrize("kept", ["nothing", "statistics", "all"])
def test_fixed_statistics_are_not_recomputed_for_an_evaluation(kept):
    spec = spec_of("resnet_mini", transfer={"width": 8, "batch_norm": kept})
    program = compiled_program(spec)
    assert program.has_batch_stats == (kept == "nothing")
    assert (program.passes.update_batch_stats is None) == (kept != "nothing")


def test_rates_fall_from_layer_to_layer():
    spec = dataclasses.replace(spec_of("vit_mini"), layer_decay=0.5)
    model = compiled_program(spec).steps.passes.abstract_model
    factors = lr_multipliers(spec, model)
    assert factors["backbone/patch_embed/proj/kernel"] == 0.5**5
    assert factors["backbone/pos_embed"] == 0.5**5
    assert factors["backbone/blocks/0/attn/qkv/kernel"] == 0.5**4
    assert factors["backbone/blocks/3/mlp/fc1/kernel"] == 0.5
    assert factors["backbone/norm/scale"] == 1
    assert lr_multipliers(dataclasses.replace(spec, layer_decay=None), model) is None


def test_rates_fall_where_the_last_map_is_that_of_a_block():
    spec = dataclasses.replace(spec_of("resnet_mini"), layer_decay=0.5)
    factors = lr_multipliers(spec, compiled_program(spec).steps.passes.abstract_model)
    assert factors["backbone/layer4/1/conv3/kernel"] == 0.5
    assert factors["backbone/layer4/0/conv1/kernel"] == 0.25
    assert factors["backbone/layer4/0/downsample/0/kernel"] == 0.25  # a part of the block
    assert factors["backbone/conv1/kernel"] == 0.5**9


# --- Every backbone -------------------------------------------------------------------------------

MINIS = bocb_jax.list_models("*_mini")


def small_run(model, task):
    """A run at 64 pixels, square for backbones that take no other images."""
    given = settings(task, model=model, dataset="shapes")
    if task == "pose":
        given["transfer"] = {"width": 8, "input_size": [64 if "mixer" in model else 48, 64]}
    return Run(from_dict(TrainConfig, given))


# One map and maps as they are; maps after a norm and all others with `-m slow`.
QUICK = {("vit_mini", "detection"), ("resnet_mini", "pose")}


@pytest.mark.parametrize(
    ("model", "task"),
    [
        pytest.param(*pair, marks=[pytest.mark.slow] * (pair not in QUICK))
        for pair in itertools.product(MINIS, ("detection", "pose"))
    ],
)
def test_every_backbone_has_a_training_step(model, task):
    run = small_run(model, task)
    batch = run.data.splits["train"].gather(np.arange(2))
    state, metrics = jax.eval_shape(
        run.program.steps.train_step, run.program.abstract_state, batch, run.key
    )
    assert metrics["loss"].shape == ()
    assert jax.tree.structure(state) == jax.tree.structure(run.program.abstract_state)


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "pose"])
@pytest.mark.parametrize("model", MINIS)
def test_every_backbone_takes_a_step(model, task):
    run = small_run(model, task)
    state = run.init_state()
    before = jax.tree.map(np.asarray, state.params)
    batch = run.data.splits["train"].gather(np.arange(2))
    state, metrics = run.program.train_step(state, batch, run.key)
    assert np.isfinite(metrics["loss"])
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, state.params)
    assert any(jax.tree.leaves(moved))


# --- Every optimizer ------------------------------------------------------------------------------

FEW = ("lion",)  # all with `-m slow`


@pytest.mark.parametrize(
    "opt",
    [n if n in FEW else pytest.param(n, marks=pytest.mark.slow) for n in optim.list_optimizers()],
)
def test_every_optimizer_takes_two_steps_of_detection(opt, config):
    run = Run(config(opt=opt))
    state = run.init_state()
    with run.data.loader(run.program.batch_sharding).train(seed=0) as batches:
        for _ in range(2):
            state, metrics = run.program.train_step(state, next(batches), run.key)
    assert int(state.step) == 2
    assert np.isfinite(metrics["loss"])
    assert np.isfinite(metrics["grad_norm"])
