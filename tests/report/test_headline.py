"""The first sentences: what they say of tables that were once judged wrongly, and of noise."""

import dataclasses
import json
import shlex

import numpy as np
import pytest

from bocb_jax.coupling import analyze
from bocb_jax.coupling.scores import from_csv
from bocb_jax.report import headline, summary
from bocb_jax.report.more_runs import Sweep, more_runs

NAMES = ["sgd", "adamw", "lamb", "lion", "adan", "adagrad"]


@pytest.fixture
def analyzed(tmp_path):
    """Analyze (optimizers, backbones, seeds) scores; NaN diverged."""

    def analysis(scores, optimizers=None, backbones=None):
        scores = np.asarray(scores, float)
        scores = scores[:, :, None] if scores.ndim == 2 else scores
        lines = ["backbone,optimizer,seed,score,status"]
        for (o, b, s), value in np.ndenumerate(scores):
            backbone = (backbones or [f"net{i}" for i in range(scores.shape[1])])[b]
            ended = "diverged" if np.isnan(value) else "finished"
            shown = "" if np.isnan(value) else f"{value:.3f}"
            lines.append(f"{backbone},{(optimizers or NAMES)[o]},{s},{shown},{ended}")
        path = tmp_path / "scores.csv"
        path.write_text("\n".join(lines))
        return analyze(from_csv(path), resamples=50)

    return analysis


def test_an_optimizer_best_on_one_and_last_on_the_other_is_said_first(analyzed):
    # SGD-M, LION, AdamW, LAMB and Adan on R-50 and CNX-T, Table 1 of the paper.
    scores = [[78.76, 60.09], [75.28, 82.29], [75.56, 83.52], [77.19, 84.13], [77.08, 84.65]]
    names = ["SGD-M", "LION", "AdamW", "LAMB", "Adan"]
    found = analyzed(scores, names, ["R-50", "CNX-T"])
    lines = summary.verdict(found)
    assert lines[0] == "SGD-M is best on R-50, and 24.6 points behind on CNX-T."
    assert any("what general advice costs cannot be said" in line for line in lines)
    assert "avoid SGD-M (24.6 behind)" in summary.backbone_sentence(found, "CNX-T")


@pytest.mark.parametrize("shape", [(4, 3), (6, 12)])
def test_pure_noise_of_one_seed_gives_no_claim(analyzed, shape):
    scores = 80 + np.random.default_rng(0).standard_normal(shape)
    found = analyzed(scores)
    lines = summary.verdict(found)
    assert lines[0].startswith("There is one figure per cell and its noise is not known")
    assert not any(
        word in line
        for line in lines
        for word in ("lead on", "is free", "is bound", "is more than noise")
    )


def test_noise_with_seeds_is_called_noise(analyzed):
    scores = 80 + 0.3 * np.random.default_rng(1).standard_normal((5, 4, 3))
    lines = summary.verdict(analyzed(scores))
    assert "No coupling is shown" in " ".join(lines)
    assert not any("bound" in line.partition(":")[0] for line in lines if "undecided" not in line)


def test_one_diverged_seed_breaks_nothing_and_is_said(analyzed):
    scores = 80 + 0.1 * np.random.default_rng(2).standard_normal((4, 4, 3))
    scores[1, 2, 0] = np.nan
    found = analyzed(scores)
    assert summary.verdict(found)[0].startswith(("The choice is free on all 4", "No coupling"))
    assert "adamw: 1 of 3 runs diverged" in summary.backbone_sentence(found, "net2")
    scores[1, 2] = np.nan
    assert "avoid adamw (no run finished)" in summary.backbone_sentence(analyzed(scores), "net2")


def test_points_near_the_top_are_called_too_coarse(analyzed):
    scores = 99 + 0.3 * np.random.default_rng(3).standard_normal((4, 4, 2)).clip(-2, 2)
    found = analyzed(scores)
    assert headline.is_coarse(found.table)
    assert "log-odds stand beside points" in summary.verdict(found)[1]


def test_what_would_decide_is_a_command(analyzed):
    # 0.8 points apart with a noise of 0.4: neither within a point nor beyond it.
    rng = np.random.default_rng(4)
    scores = 80 - 0.5 * np.arange(4)[:, None, None] + 0.4 * rng.standard_normal((4, 4, 2))
    found = analyzed(scores)
    undecided = found.free[found.free["word"] == "undecided"]
    assert len(undecided)
    wanted = more_runs(found, Sweep("my study.toml", "runs/mine", 7))
    commands = [shlex.split(one.command) for one in wanted if one.command]
    assert commands
    for words in commands:
        assert words[:5] == ["bocb", "sweep", "my study.toml", "--workdir", "runs/mine"]
        options = dict(zip(words[5::2], words[6::2], strict=True))
        assert set(options["--backbones"].split(",")) <= set(undecided.index)
        seeds = json.loads(options["--final.seeds"])
        assert seeds[:3] == [0, 1, 8]
    assert all(not one.command for one in more_runs(found))


def test_a_command_trains_as_many_more_seeds_as_it_says(analyzed):
    # Net 3 has ten seeds, the others two, of which one diverged in a cell of each.
    rng = np.random.default_rng(4)
    scores = 80 - 0.5 * np.arange(4)[:, None, None] + 0.4 * rng.standard_normal((4, 4, 10))
    found = analyzed(scores)
    runs = found.table.runs
    runs = runs[(runs["backbone"] == "net3") | (runs["seed"].astype(int) < 3)].copy()
    lost = (runs["optimizer"] == "lamb") & (runs["seed"].astype(int) == 2)
    lost &= runs["backbone"] != "net3"
    runs.loc[lost, ["score", "status"]] = [np.nan, "diverged"]
    found = analyze(dataclasses.replace(found.table, runs=runs), resamples=50)
    commands = 0
    for wanted in more_runs(found, Sweep("study.toml", "runs", 5)):
        if not wanted.command:
            continue
        words = shlex.split(wanted.command)
        more, seeds = (
            int(wanted.sentence.split()[0]),
            json.loads(words[words.index("--final.seeds") + 1]),
        )
        known = 10 if "net3" in words[words.index("--backbones") + 1] else 3
        start = max(known, 6)
        assert seeds == [*range(known), *range(start, start + more)]
        commands += 1
    assert commands
