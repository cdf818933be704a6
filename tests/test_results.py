"""The table of results: a row a run, whatever became of it, from the folders alone."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas
import pytest
from helpers import made_runs

from bocb_jax import results, sweep
from bocb_jax.errors import UserError
from bocb_jax.study.spec import Final, Search, Study

STUDY = Study(
    name="made", backbones=("a",), optimizers=("b",), target=0.3,
    search=Search(lr_factors=(0.1, 1.0, 10.0)),
)  # fmt: skip


@pytest.fixture
def workdir(tmp_path):
    made_runs.finish_all(made_runs.cells(STUDY, tmp_path, 2, 3), tmp_path)
    (tmp_path / "study.json").write_text(json.dumps(STUDY.to_dict()))
    return tmp_path


def test_one_row_a_run_with_the_columns_that_are_promised(workdir):
    frame = results.read_runs(workdir)
    assert len(frame) == 2 * 3 * 4
    assert list(frame.columns[: len(results.COLUMNS)]) == list(results.COLUMNS)
    assert frame["run"].is_unique
    assert (frame["phase"] == "final").sum() == 6
    assert frame.loc[frame["phase"] == "search", "test_accuracy"].isna().all()
    assert frame.loc[frame["phase"] == "final", "test_accuracy"].notna().all()
    assert (frame["config.image_size"] == 16).all()
    assert set(frame["study"]) == {"made"}
    # What the config of a run leaves out at its default, a table has.
    assert (frame["config.test"] == (frame["phase"] == "final")).all()
    assert not frame["config.init_ema"].any()
    assert frame["config.step.ema_warmup"].isna().all()


def test_what_was_selected_is_the_best_of_each_search(workdir):
    frame = results.read_runs(workdir)
    trials = frame[frame["phase"] == "search"]
    best = trials.groupby(["model", "optimizer"])["validation_accuracy"].idxmax()
    assert set(trials.index[trials["selected"]]) == set(best)
    assert frame.loc[frame["phase"] == "final", "selected"].all()


def test_time_to_target_is_that_of_the_first_evaluation_there(workdir):
    for row in results.read_runs(workdir).itertuples():
        steps = [step for step in range(1, 11) if row.validation_accuracy * step / 10 >= 0.3]
        if steps:
            assert (row.steps_to_target, row.seconds_to_target) == (steps[0], float(steps[0]))
        else:
            assert pandas.isna(row.steps_to_target)


def test_other_tools_read_the_file_in_one_line(workdir):
    path = results.save(results.read_runs(workdir), workdir)
    frame = pandas.read_parquet(path)
    pandas.testing.assert_frame_equal(frame, results.load(path))
    pandas.testing.assert_frame_equal(frame, results.load(workdir))
    polars = pytest.importorskip("polars")
    assert polars.read_parquet(path)["run"].to_list() == list(frame["run"])
    duckdb = pytest.importorskip("duckdb")
    finals = duckdb.sql(f"SELECT * FROM '{path}' WHERE phase = 'final'").df()
    assert len(finals) == 6


def test_a_failed_and_an_unfinished_run_have_rows_too(workdir):
    first, second = sorted(workdir.glob("digits-*"))[:2]
    record = {"status": "out_of_memory", "error": "no room", "bytes_asked": 10**12}
    (first / "result.json").write_text(json.dumps(record))
    (second / "result.json").unlink()
    frame = results.read_runs(workdir).set_index("run")
    assert frame.loc[first.name, "status"] == "out_of_memory"
    assert frame.loc[first.name, "bytes_asked"] == 10**12
    assert frame.loc[second.name, "status"] == "unfinished"


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda runs: (runs[0] / "result.json").write_text("{"), "cannot be read .* was it edited"),
        (lambda runs: (runs[0] / "config.json").write_text("[]"), "holds no object"),
        (lambda runs: (runs[0] / "config.json").write_text("{}"), "there is no config"),
        (lambda runs: [shutil.rmtree(run) for run in runs], "There are no runs in"),
        (lambda runs: shutil.rmtree(runs[0].parent), "There is no folder"),
    ],
)
def test_what_cannot_be_read_is_a_sentence(workdir, spoil, message):
    spoil(sorted(workdir.glob("digits-*")))
    with pytest.raises(UserError, match=message) as caught:
        results.read_runs(workdir)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_a_sentence(tmp_path):
    (tmp_path / "a.parquet").write_text("none")
    with pytest.raises(UserError, match="is not a Parquet file"):
        results.load(tmp_path / "a.parquet")
    pandas.DataFrame({"x": [1]}).to_parquet(tmp_path / "b.parquet")
    with pytest.raises(UserError, match="no column model, optimizer, status"):
        results.load(tmp_path / "b.parquet")


# 20 x 20 pairs, 20 trials and 5 seeds each.
MANY = Study(
    name="many", backbones=("a",), optimizers=("b",),
    search=Search(kind="halton", trials=20), final=Final(seeds=(0, 1, 2, 3, 4)),
)  # fmt: skip


def steps(workdir, side):
    """Seconds of planning, of scanning and of rebuilding the table, and bytes at the most."""
    workdir, clock = Path(workdir), [time.perf_counter()]
    found = made_runs.cells(MANY, workdir, side, side)
    planned = [p for cell in found for p in cell.planned({})]
    clock.append(time.perf_counter())
    outcomes = sweep.scan(found, workdir)
    clock.append(time.perf_counter())
    frame = results.read_runs(workdir)
    results.save(frame, workdir)
    clock.append(time.perf_counter())
    assert len(outcomes) == len(frame) == side * side * 25
    assert len(planned) == side * side * 20
    taken = [b - a for a, b in itertools.pairwise(clock)]
    # Not `ru_maxrss`, which a process has from the one that started it.
    peak = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return *taken, int(peak.group(1)) * 1024


@pytest.mark.parametrize("side", [4, pytest.param(20, marks=pytest.mark.slow)])
def test_ten_thousand_runs(tmp_path, side):
    runs = made_runs.finish_all(made_runs.cells(MANY, tmp_path, side, side), tmp_path)
    assert runs == side * side * 25
    code = f"import test_results; print(*test_results.steps({str(tmp_path)!r}, {side}))"
    said = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        cwd=Path(__file__).parent, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    planning, scanning, rebuilding, memory = map(float, said.stdout.split())
    print(f"{runs} runs: planned in {planning:.1f} s, scanned in {scanning:.1f} s, table in "
          f"{rebuilding:.1f} s, {memory / 2**20:.0f} MiB")  # fmt: skip
    assert memory < 2 * 2**30


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300, 2.0**63, 1.5])
def test_a_whole_number_that_is_none_is_refused_without_a_warning(tmp_path, value):
    path = tmp_path / results.FILE
    row = {"model": "a", "optimizer": "sgd", "status": "finished", "seed": value}
    pandas.DataFrame([row]).to_parquet(path)
    with pytest.raises(UserError, match="its column seed is of another type"):
        results.load(path)
