"""Many sets of weights at once: the table, the command and its errors, ridge plots."""

import json

import numpy as np
import pandas
import pytest
from helpers import torch_files
from helpers.untrained import untrained_run
from matplotlib.backends.backend_agg import FigureCanvasAgg
from safetensors.numpy import save_file

from bocb_jax.__main__ import main
from bocb_jax.errors import UserError
from bocb_jax.patterns.checkpoints import _check_layers, analyze_checkpoints
from bocb_jax.patterns.spectra import METRICS
from bocb_jax.report.plots import ridges


def make(path, seed=0):
    generator = np.random.default_rng(seed)
    shapes = {"conv1.weight": (24, 12, 3, 3), "fc.weight": (10, 64), "fc.bias": (10,)}
    save_file({n: generator.normal(size=s).astype("float32") for n, s in shapes.items()}, path)
    return path


def test_a_folder_of_files_is_one_tidy_table(tmp_path):
    for seed in range(3):
        make(tmp_path / f"{seed}.safetensors", seed)
    frame = analyze_checkpoints([tmp_path], jobs=1, progress=False)
    assert len(frame) == 6
    assert list(frame["layer"][:2]) == ["conv1", "fc"]
    assert {f"{name}_init" for name in METRICS} <= set(frame)
    assert frame["l2_norm_init"].iloc[0] == pytest.approx(np.sqrt(24), rel=0.1)


def test_the_averages_of_a_file_are_read_where_they_are_wanted(tmp_path):
    plain = np.random.default_rng(0).normal(size=(24, 20)).astype("float32")
    both = {"model": {"fc.weight": plain}, "model_ema": {"fc.weight": 3 * plain}}
    (tmp_path / "w.pth").write_bytes(torch_files.zipped(both))
    norms = []
    for words in ([], ["--init-ema"]):
        out = str(tmp_path / "t.csv")
        assert main(["patterns", str(tmp_path / "w.pth"), "--output", out, *words]) == 0
        norms.append(pandas.read_csv(out)["l2_norm"].item())
    assert norms[1] == pytest.approx(3 * norms[0])


def test_the_command_writes_a_table_and_a_picture(tmp_path, capsys):
    path = make(tmp_path / "a.safetensors")
    for name in ("a.csv", "a.parquet"):
        assert main(["patterns", str(path), "--output", str(tmp_path / name)]) == 0
    assert len(pandas.read_csv(tmp_path / "a.csv")) == 2
    assert len(pandas.read_parquet(tmp_path / "a.parquet")) == 2
    assert main(["patterns", str(path), "--plot", str(tmp_path / "a.svg")]) == 0
    assert (tmp_path / "a.svg").stat().st_size > 1000
    assert "conv1" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["missing", "empty", "no safetensors", "text", "suffix"])
def test_bad_input_is_reported_in_one_sentence(tmp_path, capsys, kind):
    path = tmp_path / "runs"
    arguments = [str(path)]
    if kind == "empty":
        path.mkdir()
    elif kind == "no safetensors":
        arguments = [str(tmp_path / "x.safetensors")]
        (tmp_path / "x.safetensors").write_text("x")
    elif kind == "text":
        arguments = [str(tmp_path / "x.txt")]
        (tmp_path / "x.txt").write_text("x")
    elif kind == "suffix":
        arguments = [str(make(tmp_path / "x.safetensors")), "--output", str(tmp_path / "x.doc")]
    assert main(["patterns", *arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert (tmp_path / "runs").name in said.err or "x." in said.err


def test_damaged_records_and_mixed_models_are_refused(tmp_path):
    (tmp_path / "run/checkpoints/best").mkdir(parents=True)
    (tmp_path / "run/config.json").write_text(json.dumps([]))
    with pytest.raises(UserError):
        analyze_checkpoints([tmp_path], progress=False)
    rows = [[{"backbone": "net", "source": s, "layer": layer}] for s, layer in ("ax", "by")]
    with pytest.raises(UserError, match="b are of another model than those in a"):
        _check_layers(rows)


def save_run(folder, weights, config, resolved=None, result=None):
    """Write a run directory with these best weights."""
    from bocb_jax.engine.checkpoint import Checkpoints

    folder.mkdir(parents=True)
    record = {"config": config, "resolved": resolved or {}, "label": config["model"]}
    (folder / "config.json").write_text(json.dumps(record))
    if result:
        (folder / "result.json").write_text(json.dumps(result))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save_best(10, weights, {})
    checkpoints.wait()
    checkpoints.close()


def test_runs_are_compared_with_their_own_initialization(tmp_path):
    import jax

    from bocb_jax import build
    from bocb_jax.config import TrainConfig, from_dict
    from bocb_jax.data.registry import open_dataset
    from bocb_jax.resolve import resolve

    data = open_dataset("digits", split_seed=0)
    small = {"model": "vit_mini", "model_args": {"depth": 1}, "seed": 3}
    config = from_dict(TrainConfig, {**small, "image_size": 16})
    settings = resolve(config, data)
    compiled = build.compiled_program(build.program_spec(config, settings, data, 10))
    weights = compiled.weights(compiled.init(jax.random.key(config.seed), 0.1, 0.0))
    resolved = {k: getattr(settings, k) for k in ("num_classes", "image_size", "precision")}
    resolved["drop_path"] = settings.drop_path
    own = {**small, "opt": "adamw"}
    ended = {"status": "finished", "test_accuracy": 0.5}
    save_run(tmp_path / "own", weights, own, resolved, ended)
    other = own | {"opt": "sgd", "seed": 4}
    save_run(tmp_path / "seed", weights, other, resolved, {"status": "diverged"})
    gone = own | {"model": "nets_of_mine:Gone"}
    save_run(tmp_path / "gone", weights, gone, resolved)
    frame = analyze_checkpoints([tmp_path], jobs=1, progress=False)
    runs = {name.rpartition("/")[2]: part for name, part in frame.groupby("source")}
    assert len(runs["own"]) == 6
    for name in METRICS:  # untrained: equal to its initialization, to the bit
        np.testing.assert_array_equal(runs["own"][name], runs["own"][f"{name}_init"])
    assert set(runs["own"]["init"]) == set(runs["seed"]["init"]) == {"own"}
    assert (runs["seed"]["entropy"] != runs["seed"]["entropy_init"]).all()
    assert set(runs["gone"]["init"]) == {"gaussian"}
    assert set(runs["own"]["score"]) == {50.0}
    assert (set(runs["own"]["failed"]), set(runs["seed"]["failed"])) == ({False}, {True})


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "pose"])
def test_detectors_and_pose_nets_are_compared_with_their_own_initialization(task, tmp_path):
    untrained_run(tmp_path / "run", task)
    frame = analyze_checkpoints([tmp_path], jobs=1, progress=False)
    assert set(frame["init"]) == {"own"}
    for name in METRICS:
        np.testing.assert_array_equal(frame[name], frame[f"{name}_init"])
    around = {"detection": "bbox_head.retina_cls", "pose": "head.final_layer"}
    assert {around[task], "backbone.blocks.0.attn.qkv"} <= set(frame["layer"])


def test_what_a_record_cannot_mean_has_gaussian_layers_beside_it(tmp_path, capsys):
    untrained_run(tmp_path / "run", "detection")
    file = tmp_path / "run" / "config.json"
    stored = json.loads(file.read_text())
    for transfer in ([1], {"width": 10**9}, None, {**stored["resolved"]["transfer"], "short": "x"}):
        stored["resolved"]["transfer"] = transfer
        file.write_text(json.dumps(stored))
        frame = analyze_checkpoints([tmp_path], jobs=1, progress=False)
        assert set(frame["init"]) == {"gaussian"}
        assert "started from are not known" in " ".join(capsys.readouterr().err.split())


def test_ridges_are_sorted_by_score_and_failed_ones_are_grey():
    names = ["sgd", "adamw", "lamb", "lars"]
    rows = [
        {"source": o, "backbone": "net", "optimizer": o, "depth": d, "alpha": 3.0 + d + i,
         "alpha_init": 5.0, "score": 80.0 - i if o != "lars" else np.nan}
        for i, o in enumerate(names) for d in range(6)
    ]  # fmt: skip
    frame = pandas.DataFrame(rows)
    frame.loc[frame["optimizer"].eq("adamw") & frame["depth"].isin((1, 3)), "alpha"] = np.nan
    scores = {"sgd": 10.0, "adamw": 60.0, "lamb": 90.5}
    picture = ridges.draw(frame, scores=scores, failed=["sgd"])
    (axes,) = picture.axes
    labels = [text.get_text() for text in axes.get_yticklabels()]
    assert labels == ["lamb", "adamw", "sgd", "lars", "initialization"]
    said = [text.get_text() for text in axes.texts]
    assert said == ["90.5", "60.0", "10.0 failed", "", "score"]
    fills = [shape for shape in axes.collections if shape.get_facecolor().size]
    hatched = [shape for shape in fills if shape.get_hatch()]
    assert len(hatched) == 1
    red, green, blue, _ = hatched[0].get_facecolor()[0]
    assert max(red, green, blue) - min(red, green, blue) < 0.05
    order = ridges.draw(frame, scores=scores, higher_is_better=False).axes[0].get_yticklabels()
    assert [text.get_text() for text in order[:3]] == ["sgd", "adamw", "lamb"]


@pytest.mark.parametrize("layers", [1, 16, 60])
def test_labels_of_ridges_do_not_overlap(layers):
    names = [f"schedule_free_adamw{i}" for i in range(20)]
    frame = pandas.DataFrame(
        [{"source": o, "backbone": "net", "optimizer": o, "depth": d, "entropy": 3 + 0.01 * d,
          "entropy_init": 3.5} for o in names for d in range(layers)]
    )  # fmt: skip
    picture = ridges.draw(frame, metric="entropy", scores=dict.fromkeys(names, 1.0), failed=names)
    FigureCanvasAgg(picture).draw()
    (axes,) = picture.axes
    whole = picture.bbox
    texts = [*axes.get_yticklabels(), *axes.texts, axes.title, axes.xaxis.label]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    assert all(whole.x0 <= box.x0 and box.x1 <= whole.x1 for box in boxes)
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_a_ridge_plot_refuses_several_backbones(tmp_path):
    frame = analyze_checkpoints([make(tmp_path / "a.safetensors")], progress=False)
    frame = pandas.concat([frame.assign(backbone=b, optimizer="sgd") for b in ("x", "y")])
    with pytest.raises(UserError, match="x, y"):
        ridges.write(frame, tmp_path / "a.png")
    ridges.write(frame.assign(backbone="x"), tmp_path / "a.png")
    assert (tmp_path / "a.png").exists()
