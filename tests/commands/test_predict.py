"""`bocb predict`: what it finds is what an evaluation of the run finds, for all three tasks."""

import contextlib
import json
import shutil

import numpy as np
import pytest
from helpers.coco_files import annotation, changed, write
from PIL import Image

from bocb_jax.__main__ import main
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.data.registry import open_dataset
from bocb_jax.errors import UserError
from bocb_jax.pictures import kept
from bocb_jax.prediction.given_boxes import GivenBoxes
from bocb_jax.train import Run, train

BACKBONE = "helpers.tiny_features:Net"
TASKS = ("classification", "detection", "pose")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, compile_cache):
    """Trained for an epoch, one of each task: the folder of each, and its config."""
    here = tmp_path_factory.mktemp("runs")
    names = [f"{i}.png" for i in range(1, 9)]

    def change(data):
        data["images"] = [
            {"id": i + 1, "file_name": n, "width": 64, "height": 48} for i, n in enumerate(names)
        ]
        data["annotations"] = [annotation(i + 1, i + 1) for i in range(len(names))]

    coco = write(here / "coco", train=changed(change), val=changed(change), images=names)
    found = {}
    for task in TASKS:
        given = {
            "task": task, "model": BACKBONE, "opt": "adamw", "epochs": 1, "workdir": str(here),
            "run_id": task, "parallel": {"devices": 1}, "log": {"progress": "none"},
            "compile_cache": compile_cache,
        }  # fmt: skip
        if task != "classification":
            given |= {"dataset": f"coco:{coco}", "batch_size": 2, "image_size": 64}
            given |= {"transfer": {"width": 8}, "lr": 1e-2}
        config = from_dict(TrainConfig, given)
        assert train(config)["status"] == "finished"
        found[task] = config.folder(), config
    return found


@pytest.fixture(scope="module")
def images(runs):
    """The image files of the COCO folder."""
    return sorted((runs["detection"][0].parent / "coco").rglob("*.png"))


def predicted(capsys, run, *words, code=0):
    capsys.readouterr()
    found = main(["predict", str(run), *map(str, words), "--model", BACKBONE])
    said = capsys.readouterr()
    assert found == code, said.err
    return (json.loads(said.out) if said.out else None), " ".join(said.err.split())


def evaluated(config, split="test"):
    """What an evaluation of the split finds, with the best weights, by example."""
    run = Run(config)
    with contextlib.ExitStack() as stack:
        weights = run_weights(run)
        state = run.init_state(weights)
        batches = stack.enter_context(run.data.loader(run.program.batch_sharding).evaluation(split))
        parts = [run.program.eval_step(state, batch) for batch in batches]
    found = {name: np.concatenate([np.asarray(part[name]) for part in parts]) for name in parts[0]}
    real = found["weight"] > 0
    return run, {name: values[real] for name, values in found.items()}


def run_weights(run):
    from bocb_jax.engine.checkpoint import read_best
    from bocb_jax.engine.passes import weights_of
    from bocb_jax.torch_weights import load_weights

    model = run.program.steps.passes.abstract_model
    load_weights(model, read_best(run.folder))
    return weights_of(model)


# --- What is found --------------------------------------------------------------------------------


def test_classes_are_those_of_the_run(runs, tmp_path, capsys):
    folder, config = runs["classification"]
    test = open_dataset("digits").splits["test"]
    for i in range(40):
        Image.fromarray(test[i]["image"]).save(tmp_path / f"{i:02}.png")
    found, _ = predicted(capsys, folder, tmp_path, "--top", "3")
    assert [entry["image"] for entry in found] == [str(p) for p in sorted(tmp_path.iterdir())]
    best = []
    for entry in found:
        chances = [each["probability"] for each in entry["classes"]]
        assert len(chances) == 3
        assert chances == sorted(chances, reverse=True)
        assert sum(chances) <= 1.00001
        assert all(each["class"] == str(each["index"]) for each in entry["classes"])
        best.append(entry["classes"][0]["index"])
    run = Run(config)
    state = run.init_state(run_weights(run))
    batch = test.gather(np.arange(40)) | {"weight": np.ones(40, np.float32)}
    correct = run.program.eval_step(state, batch)["correct"]
    assert np.sum(np.array(best) == batch["label"]) == correct
    whole, _ = predicted(capsys, folder, tmp_path / "00.png", "--top", "10")
    assert sum(each["probability"] for each in whole[0]["classes"]) == pytest.approx(1, abs=1e-5)


def test_boxes_are_those_of_an_evaluation(runs, images, capsys):
    folder, config = runs["detection"]
    run, expected = evaluated(config)
    annotations = run.dataset.splits["test"].annotations
    found, _ = predicted(capsys, folder, *images)
    by_name = {entry["image"].rpartition("/")[2]: entry for entry in found}
    for place, index in enumerate(expected["index"]):
        entry = by_name[annotations.file_names[index]]
        assert (entry["width"], entry["height"]) == (64, 48)
        real = expected["labels"][place] >= 0
        np.testing.assert_allclose(
            [box["score"] for box in entry["boxes"]], expected["scores"][place][real], rtol=1e-4
        )
        corners = np.array([box["bbox"] for box in entry["boxes"]]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        np.testing.assert_allclose(corners, expected["boxes"][place][real], atol=1e-2)
        names = [annotations.category_names[i] for i in expected["labels"][place][real]]
        assert [box["category"] for box in entry["boxes"]] == names
        assert set(names) <= {"person", "dog"}


def test_joints_are_those_of_an_evaluation(runs, images, tmp_path, capsys):
    folder, config = runs["pose"]
    _, expected = evaluated(config)
    boxes = [
        {"image": str(path), "boxes": [{"bbox": [4, 6, 20, 30], "score": 1.0}]} for path in images
    ]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found, _ = predicted(capsys, folder, *images, "--boxes", tmp_path / "boxes.json")
    assert len(found) == len(expected["index"])
    for entry in found:
        [person] = entry["persons"]
        assert [joint["name"] for joint in person["joints"]] == ["head", "left_hand", "right_hand"]
        assert person["bbox"] == [4, 6, 20, 30]
    scores = [[joint["score"] for joint in entry["persons"][0]["joints"]] for entry in found]
    np.testing.assert_allclose(scores, expected["joint_scores"], rtol=1e-3, atol=1e-6)


def test_an_image_without_boxes_is_one_person(runs, images, capsys):
    [entry], _ = predicted(capsys, runs["pose"][0], images[0])
    [person] = entry["persons"]
    assert person["bbox"] == [0, 0, 64, 48]


def test_a_detector_finds_the_persons_for_a_pose_net(runs, images, tmp_path, capsys):
    file = tmp_path / "boxes.json"
    entries, _ = predicted(capsys, runs["detection"][0], images[0], "--json", file)
    assert entries is None
    found = json.loads(file.read_text())
    found[0]["boxes"] = [
        {"category": "person", "score": 0.9, "bbox": [4.0, 6.0, 20.0, 30.0]},
        {"category": "person", "score": 0.1, "bbox": [4.0, 6.0, 20.0, 30.0]},
        {"category": "dog", "score": 0.9, "bbox": [0.0, 0.0, 9.0, 9.0]},
        {"category": "person", "score": 0.9, "bbox": [64.0, 6.0, 0.0, 30.0]},  # clipped
    ]
    file.write_text(json.dumps(found))
    shutil.copy(images[0], tmp_path / "1.png")
    [entry], _ = predicted(capsys, runs["pose"][0], tmp_path / "1.png", "--boxes", file)
    assert [person["bbox"] for person in entry["persons"]] == [[4, 6, 20, 30]]
    results = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 30, 40], "score": 0.8},
        {"image_id": 1, "category_id": 18, "bbox": [0, 0, 9, 9], "score": 0.8},
    ]
    file.write_text(json.dumps(results))
    [entry], _ = predicted(capsys, runs["pose"][0], tmp_path / "1.png", "--boxes", file)
    assert [person["bbox"] for person in entry["persons"]] == [[0, 0, 30, 40]]


def test_images_of_one_name_do_not_take_the_boxes_of_each_other(tmp_path):
    file = tmp_path / "boxes.json"
    entries = [
        {"image": f"{folder}/x.png", "boxes": [{"bbox": [0, 0, side, side], "score": 1.0}]}
        for folder, side in (("a", 5), ("b", 7))
    ]
    file.write_text(json.dumps(entries))
    given = GivenBoxes(str(file), 0.3)
    assert [given.of(f"{folder}/x.png")[0][2] for folder in "ab"] == [5, 7]
    with pytest.raises(UserError, match="no boxes for the image"):
        given.of("c/x.png")
    file.write_text(json.dumps(entries[:1]))
    assert GivenBoxes(str(file), 0.3).of("c/x.png")[0][2] == 5


# --- Files ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_odd_images_cost_a_sentence_each(task, runs, tmp_path, capsys):
    draw = np.random.default_rng(0)

    def image(*shape):
        return Image.fromarray(draw.integers(0, 256, shape, np.uint8))

    image(7, 90).save(tmp_path / "gray.png")
    image(300, 200, 3).save(tmp_path / "large.jpg")
    image(1, 1, 3).save(tmp_path / "point.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image(30, 50, 3).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "large.jpg").read_bytes()[:40])
    (tmp_path / "empty.png").write_bytes(b"")
    lost = tmp_path / "lost.png"
    out = tmp_path / "out"
    found, said = predicted(capsys, runs[task][0], tmp_path, lost, "--out", out, code=2)
    assert "cut.jpg' cannot be decoded" in said
    assert "empty.png' cannot be decoded (the file is empty)" in said
    assert "lost.png' cannot be read: No such file" in said
    names = [entry["image"].rpartition("/")[2] for entry in found]
    order = ["cut.jpg", "empty.png", "gray.png", "large.jpg", "point.png", "turned.jpg", "lost.png"]
    assert names == order
    failed = [name for name, entry in zip(names, found, strict=True) if "error" in entry]
    assert failed == ["cut.jpg", "empty.png", "lost.png"]
    if task != "classification":
        assert (found[5]["width"], found[5]["height"]) == (30, 50)  # upright
    drawn = {path.name for path in out.iterdir()}
    assert drawn == {"gray.png", "large.png", "point.png", "turned.png"}


def test_pictures_take_the_place_of_no_image(runs, images, tmp_path, capsys):
    folder = runs["detection"][0]
    _, said = predicted(capsys, folder, images[0], "--out", images[0].parent, code=2)
    assert "is one of the images, and its picture would take its place" in said
    (tmp_path / "a").mkdir()
    shutil.copy(images[0], tmp_path / "a" / images[0].name)
    predicted(capsys, folder, images[0], tmp_path / "a", "--out", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-2.png", "1.png"]


def test_training_leaves_pictures(runs):
    for task in ("detection", "pose"):
        [picture] = kept(runs[task][0] / "pictures")
        with Image.open(picture) as image:
            assert image.width > 2 * 256
    assert not (runs["classification"][0] / "pictures").exists()


# --- Records --------------------------------------------------------------------------------------


@pytest.fixture
def copied(runs, tmp_path):
    """A function that copies a run and changes its record."""

    def copy(task, change=lambda stored: None, data=lambda stored: None):
        folder = tmp_path / task
        shutil.copytree(runs[task][0], folder)
        for name, edit in (("config.json", change), ("dataset.json", data)):
            stored = json.loads((folder / name).read_text())
            edit(stored)
            (folder / name).write_text(json.dumps(stored))
        return folder

    return copy


def in_transfer(**fields):
    return lambda stored: stored["resolved"]["transfer"].update(fields)


def in_resolved(**fields):
    return lambda stored: stored["resolved"].update(fields)


# name -> (task, change of config.json, change of dataset.json, what is said)
EDITED = {
    "width": ("detection", in_transfer(width=10**9), None, "transfer.width is 1000000000"),
    "wide": ("detection", in_transfer(width=4096), None, "parameters, but the weights beside it"),
    "style": ("detection", in_transfer(style="os:system"), None, "style is 'os:system'"),
    "long": ("detection", in_transfer(long=10**6), None, "transfer.long is 1000000"),
    "short": ("detection", in_transfer(short="x"), None, "transfer.short is 'x'"),
    "size": ("pose", in_transfer(input_size=[10**6, 1]), None, "transfer.input_size is"),
    "sigma": ("pose", in_transfer(sigma=-1), None, "transfer.sigma is -1"),
    "backbone": ("pose", in_transfer(backbone_size=10**6), None, "image_size is 1000000"),
    "nothing": ("pose", in_resolved(transfer=None), None, "transfer.width is missing"),
    "classes": ("classification", in_resolved(num_classes=10**5), None, "num_classes is 100000"),
    "precision": ("classification", in_resolved(precision="x"), None, "precision is 'x'"),
    "task": ("classification", lambda s: s["config"].update(task="os:system"), None, "'os:system'"),
    "mean": ("classification", None, lambda s: s.update(mean=[0.5]), "dataset.json: mean is"),
    "std": ("classification", None, lambda s: s.update(std=[0, 0, 0]), "dataset.json: std.0 is 0"),
    "names": ("classification", None, lambda s: s.update(class_names=["\x1b[2J"] * 10),
              "not text without control characters"),
    "joints": ("pose", None, lambda s: s.update(skeleton=None), "does not say which joints"),
    "limbs": ("pose", None, lambda s: s["skeleton"].update(limbs=[[0, 99]]), "names joint 99"),
    "joint": ("pose", None, lambda s: s["skeleton"]["names"].append("tail"), "a skeleton of 4"),
}  # fmt: skip


@pytest.mark.parametrize("name", EDITED)
def test_edited_records_are_refused_in_a_sentence(name, copied, images, capsys):
    task, change, data, says = EDITED[name]
    nothing = lambda stored: None  # noqa: E731
    folder = copied(task, change or nothing, data or nothing)
    _, said = predicted(capsys, folder, images[0], code=2)
    assert says.lower() in said.lower()
    assert "Traceback" not in said


def test_import_paths_of_a_record_are_not_followed(runs, images, capsys):
    assert main(["predict", str(runs["pose"][0]), str(images[0])]) == 2
    assert "nothing that a run names is imported" in " ".join(capsys.readouterr().err.split())


def test_runs_of_earlier_versions_need_the_name_of_their_data(runs, copied, images, capsys):
    folder = copied("detection")
    (folder / "dataset.json").unlink()
    _, said = predicted(capsys, folder, images[0], code=2)
    assert "does not describe its data; give the name of the data set with --data" in said
    found, _ = predicted(capsys, folder, images[0], "--data", runs["detection"][1].dataset)
    assert found == predicted(capsys, runs["detection"][0], images[0])[0]


def test_what_does_not_fit_is_a_sentence(runs, images, tmp_path, capsys):
    folder = runs["detection"][0]
    assert "is not a run directory" in predicted(capsys, tmp_path, images[0], code=2)[1]
    for words, says in (
        (("--boxes", tmp_path / "x.json"), "--boxes is for a pose net"),
        (("--json", tmp_path / "no" / "x.json"), "cannot be written: its folder does not exist"),
        (("--top", "0"), "--top"),
        (("--min-score", "2"), "--min-score"),
    ):
        assert says in predicted(capsys, folder, images[0], *words, code=2)[1]
    file = tmp_path / "boxes.json"
    for content, says in (
        ("{}", "are no list of objects"),
        ('[{"x": 1}]', "give objects with an image and its boxes"),
        ('[{"image": "x", "boxes": [{"bbox": [0, 0, -1, 1]}]}]', "sizes of at least 0"),
        ('[{"image": "x", "boxes": []}]', "There are no boxes for the image"),
        ("no JSON", "is no JSON"),
    ):
        file.write_text(content)
        assert says in predicted(
            capsys, runs["pose"][0], images[0], "--boxes", file, code=2
        )[1]  # fmt: skip
