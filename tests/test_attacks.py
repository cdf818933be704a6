"""Folders of runs from somebody else: nothing in them is imported, opened, downloaded or run.

Each folder that is planted asks for code in another way. For every command that reads runs: the
canary file keeps its content, no module of the folder is imported, and an answer comes within the
documented exit codes, without a traceback.
"""

import ast
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers import made_runs, studies
from PIL import Image
from test_layering import FILES, TREES

from bocb_jax import sweep
from bocb_jax.__main__ import main
from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.study.spec import Search, Study

STUDY = Study(
    name="planted", backbones=("net0",), optimizers=("opt0", "opt1"),
    search=Search(lr_factors=(0.1, 1.0)),
)  # fmt: skip
CANARY = "as it was"
PACKAGE = "planted_package"
# What a package runs when it is imported, or installed.
SET_UP = "import pathlib\npathlib.Path({canary!r}).write_text('overwritten')\n"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The best weights of some network."""
    folder = tmp_path_factory.mktemp("weights")
    tree = {"params": {"fc": {"kernel": np.ones((8, 10), np.float32), "bias": np.ones(10, "f4")}}}
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save_best(1, tree, {})
    checkpoints.wait()
    checkpoints.close()
    return folder / "checkpoints"


def logging_path(here: Path, canary: Path) -> dict:
    """An import path of the standard library whose arguments truncate a file."""
    return {
        "model": "logging:basicConfig",
        "model_args": {"filename": str(canary), "filemode": "w"},
        "opt": "logging:basicConfig",
        "opt_args": {"filename": str(canary), "filemode": "w"},
        "dataset": "logging:basicConfig",
    }


def package_path(here: Path, canary: Path) -> dict:
    """A package beside the runs, in the current folder, that acts when it is imported."""
    for name in (PACKAGE, "antigravity", "pandas", "yaml"):  # also in the place of a library
        (here / name).mkdir()
        (here / name / "__init__.py").write_text(SET_UP.format(canary=str(canary)))
    (here / "setup.py").write_text(SET_UP.format(canary=str(canary)))
    return {
        "model": f"{PACKAGE}:Net",
        "opt": f"sam+{PACKAGE}:opt",
        "dataset": f"{PACKAGE}:data",
        "init": f"{PACKAGE}:weights",
        "recipe": f"{PACKAGE}:recipe",
    }


def large_arguments(here: Path, canary: Path) -> dict:
    """A listed backbone of a size that no machine holds, and data to download."""
    del here, canary
    return {
        "model": "vit_mini",
        "model_args": {"depth": 10**6, "width": 10**9, "heads": 10**9, "drop_path": 0.5},
        "opt": "optax:adamw",
        "dataset": "tfds:mnist",
        "data": {"dir": "/nowhere", "workers": 10**6},
    }


def data_record(name: str) -> dict:
    """The description of a data set of that name."""
    scale = {"mean": [0.5] * 3, "std": [0.5] * 3}
    return {"name": name, **scale, "class_names": [name] * 10, "image_shape": None,
            "skeleton": None}  # fmt: skip


PLANTED = [logging_path, package_path, large_arguments]


@pytest.fixture(params=PLANTED)
def planted(request, tmp_path, monkeypatch, weights):
    """The folder, with runs in `runs`, a table of them, and a canary."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    canary = tmp_path / "canary"
    canary.write_text(CANARY)
    Image.new("RGB", (8, 8)).save(here / "image.png")
    cells = made_runs.cells(STUDY, here / "runs", 1, 2)
    made_runs.finish_all(cells, here / "runs")
    config = request.param(here, canary)
    resolved = {"num_classes": 10, "image_size": 32, "precision": "float32", "drop_path": None}
    if request.param is large_arguments:
        resolved |= {"num_classes": 10**9, "image_size": 10**6}
    for folder in (here / "runs").glob("digits-*"):
        path = folder / "config.json"
        stored = json.loads(path.read_text())
        kept = {} if "opt0" in folder.name else {"opt": stored["config"]["opt"]}
        stored["config"] |= config | kept  # two optimizers, so that there is something to compare
        stored["resolved"] |= resolved
        stored |= {"study": config["dataset"]}
        path.write_text(json.dumps(stored))
        (folder / "checkpoints").symlink_to(weights)
        (folder / "dataset.json").write_text(json.dumps(data_record(config["dataset"])))
    study = {"name": config["model"], "backbones": [config["model"]], "target": 0.5}
    (here / "runs/study.json").write_text(json.dumps(study))
    (here / "runs/populations.json").write_text(json.dumps({config["model"]: config}))
    known = set(sys.modules)  # another test of this process may have opened a data set
    yield here
    assert canary.read_text() == CANARY
    assert not {PACKAGE, "antigravity"} & set(sys.modules)
    new = set(sys.modules) - known
    assert not [name for name in new if name.startswith("tensorflow_datasets")]


def first_run(here: Path) -> str:
    return str(sorted((here / "runs").glob("digits-*"))[0])


TABLE = "runs/results.parquet"
QUICK = ("--resamples", "10", "--output", "report")
# What is run in the folder, and the exit codes that are documented for it.
COMMANDS = {
    "analyze": (["analyze", "runs", *QUICK, "--patterns", "yes"], {0, 2}),
    "analyze-one": (["analyze", "RUN", *QUICK], {0, 2}),
    "analyze-table": (["analyze", TABLE, *QUICK], {0, 2}),
    "recommend": (["recommend", "--model", "vit_mini", "--runs", "runs"], {0}),
    "recommend-table": (["recommend", "--model", "vit_mini", "--runs", TABLE], {0}),
    "patterns": (["patterns", "runs", "--jobs", "1"], {0}),
    "patterns-processes": (["patterns", "runs", "--jobs", "2", "--output", "p.csv"], {0}),
    "export-weights": (["export-weights", "RUN", "--out", "out.safetensors"], {2}),
    "predict": (["predict", "RUN", "image.png", "--out", "out"], {2}),
    "import-weights": (["import-weights", "RUN", "--model", "vit_mini", "--out", "out"], {2}),
    "train-init": (["train", "--model", "vit_mini", "--init", "RUN", "--workdir", "new"], {2}),
    "train-resume": (["train", "--model", "vit_mini", "--workdir", "RUN"], {2}),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_nothing_of_a_planted_folder_runs(planted, name, capsys):
    arguments, codes = COMMANDS[name]
    if TABLE in arguments:
        frame = pandas.DataFrame(
            [
                {"model": "logging:basicConfig", "optimizer": opt, "status": "finished",
                 "phase": "final", "test_accuracy": score, "num_classes": 10, "seed": 0,
                 "dataset": f"{PACKAGE}:data", "run": "..", "epochs": 1}
                for opt, score in (("sgd", 0.5), (f"{PACKAGE}:opt", 0.6), ("adamw", 0.7))
            ]
        )  # fmt: skip
        frame.to_parquet(TABLE)
    arguments = [first_run(planted) if word == "RUN" else word for word in arguments]
    code = main(arguments)
    said = capsys.readouterr()
    assert code in codes, said.err
    assert code == 0 or said.err.strip()
    assert "Traceback" not in said.err
    if name.startswith("patterns"):
        assert "stand in for them" in " ".join(said.err.split())


@pytest.mark.parametrize("resumed", ["a planted run", "a run beside planted ones"])
@pytest.mark.parametrize("command", ["sweep", "probe"])
def test_nothing_runs_of_a_planted_folder_that_a_sweep_resumes(
    planted, command, resumed, monkeypatch, capsys
):
    if resumed == "a planted run":
        cells, codes = made_runs.cells(STUDY, "runs", 1, 2), {2}
    else:
        cells, codes = made_runs.cells(STUDY, "runs", 2, 3)[3:], {0, 2}
        made_runs.finish_all(cells, planted / "runs")
    monkeypatch.setattr(sweep, "plan", lambda *_, **__: cells)
    monkeypatch.setattr(sweep, "_open_pool", lambda *_: studies.Pretended(1, pytest.fail))
    Path("study.toml").write_text('backbones = ["net1"]\noptimizers = ["opt0"]\n')
    arguments = {
        "sweep": ["sweep", "study.toml", "--workdir", "runs", "--population", "auto"],
        "probe": ["probe", "--model", "net1", "--workdir", "runs"],
    }
    code = main(arguments[command])
    said = capsys.readouterr().err
    assert code in codes, said
    assert "Traceback" not in said
    if resumed == "a planted run":
        assert "does not belong to its folder" in " ".join(said.split())
    else:
        assert (planted / TABLE).exists()


@pytest.mark.parametrize("command", ["patterns", "analyze", "sweep"])
def test_files_in_the_current_folder_replace_no_library(tmp_path, weights, command):
    """The installed command, and the processes that it starts, in a folder with a `jax.py`."""
    bocb = Path(sys.executable).with_name("bocb")
    if not bocb.exists():
        pytest.skip("bocb is not installed beside this Python")
    canary, here = tmp_path / "canary", tmp_path / "here"
    canary.write_text(CANARY)
    here.mkdir()
    package_path(here, canary)
    for name in ("jax", "numpy", "joblib"):
        (here / f"{name}.py").write_text(SET_UP.format(canary=str(canary)))
    made_runs.finish_all(made_runs.cells(STUDY, here, 1, 2), here)
    for folder in here.glob("digits-*"):
        (folder / "checkpoints").symlink_to(weights)
    (here / "study.toml").write_text(
        'name = "s"\nbackbones = ["vit_mini"]\noptimizers = ["sgd"]\n[search]\nkind = "default"\n'
    )
    arguments = {
        "patterns": ["patterns", ".", "--jobs", "2"],
        "analyze": ["analyze", ".", "--no-report", "--resamples", "10"],
        "sweep": ["sweep", "study.toml", "--workdir", ".", "--dry-run", "--quick"],
    }[command]
    done = subprocess.run(
        [bocb, *arguments], cwd=here, capture_output=True, text=True, timeout=120,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert canary.read_text() == CANARY, done.stderr


# --- By construction ------------------------------------------------------------------------------

# Functions that follow import paths or open data sets, and the rooms that read runs and tables.
FOLLOW = {"resolve", "create_model", "model_card", "create_optimizer", "optimizer_info",
          "open_dataset", "import_module", "exec", "eval", "loads_pickle"}  # fmt: skip
READERS = (
    "bocb_jax/analyze.py", "bocb_jax/results.py", "bocb_jax/run_files.py", "bocb_jax/coupling/",
    "bocb_jax/patterns/", "bocb_jax/report/", "bocb_jax/storage/", "bocb_jax/commands/patterns.py",
    "bocb_jax/commands/recommend.py", "bocb_jax/prediction/", "models/recorded.py",
    "bocb_jax/study/scheduler.py", "bocb_jax/study/estimate.py",
)  # fmt: skip


@pytest.mark.parametrize("name", sorted(f for f in FILES if f.startswith(READERS)))
def test_what_reads_runs_follows_no_names(name):
    called = {
        getattr(node.func, "attr", getattr(node.func, "id", ""))
        for node in ast.walk(TREES[name])
        if isinstance(node, ast.Call)
    }
    paths = {"bocb_jax/storage/"}  # where `resolve` is of paths
    follow = FOLLOW - {"resolve"} if name.startswith(tuple(paths)) else FOLLOW
    assert not called & follow
