"""Training curves of the runs behind a table of scores."""

import numpy as np
import pytest
from helpers import synthetic_runs

from bocb_jax.coupling import curves
from bocb_jax.coupling.scores import from_results


def test_curves_are_thinned_without_truncated_lines(tmp_path):
    frame = synthetic_runs.results(["a"], ["sgd"], rates=0, seeds=3)
    synthetic_runs.write_curves(frame, tmp_path, evaluations=500)
    table = from_results(frame)
    middle = table.runs.sort_values("score")["run"].iloc[1]
    with open(tmp_path / middle / "metrics.jsonl", "a") as file:
        file.write('{"step": 1, "epoch": 3, "validation_accu')
    found = curves.read(table, tmp_path)
    assert set(found["run"]) == {middle}  # the run with the median score
    assert len(found) == curves.POINTS
    assert found["epoch"].iloc[-1] == 20
    assert found["accuracy"].iloc[-1] == pytest.approx(
        table.runs.set_index("run").at[middle, "score"] * (1 - np.exp(-5)), rel=1e-6
    )
    assert curves.read(table, tmp_path / "nowhere").empty


def test_a_run_name_cannot_lead_out_of_the_folder(tmp_path):
    frame = synthetic_runs.results(["a"], ["sgd"], rates=0, seeds=1)
    synthetic_runs.write_curves(frame, tmp_path / "other")
    frame["run"] = "../other/" + frame["run"]
    (tmp_path / "runs").mkdir()
    assert curves.read(from_results(frame), tmp_path / "runs").empty
