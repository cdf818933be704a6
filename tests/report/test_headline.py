"""The first sentences: what they say of tables that were once judged wrongly, and of noise."""

import dataclasses
import json
import re
import shlex

import numpy as np
import pytest
from helpers import synthetic_runs
from helpers.score_tables import one_seed_table

from bocb_jax.coupling import analyze, recommend
from bocb_jax.coupling.scores import from_csv, from_results
from bocb_jax.report import advice, document, headline, markdown, summary, wording
from bocb_jax.report.heat_map_data import build_heat_map
from bocb_jax.report.more_runs import Sweep, more_runs
from bocb_jax.report.sections import backbones, build_document, tiles, tuning

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


def test_general_advice_that_fails_hides_no_interval_and_is_no_measured_cost(analyzed):
    # sgd is best on all but net6, where it is 3 points behind, and net7, where it diverges.
    rng = np.random.default_rng(5)
    scores = 80 - 3.0 * np.arange(4)[:, None, None] + 0.1 * rng.standard_normal((4, 8, 3))
    scores[:2, 6] = scores[1::-1, 6]
    scores[0, 7] = np.nan
    found = analyzed(scores)
    (line,) = (line for line in summary.verdict(found) if line.startswith("General advice"))
    price, low, high = found.price.loc["net6", ["price", "price_low", "price_high"]]
    assert line == (
        "General advice (sgd, the best optimizer on other families of backbones) costs "
        f"{price:.1f} points on net6 ({low:.1f} to {high:.1f}) and everything on net7, where it "
        "does not finish, and nothing on the other 6."
    )
    rows = {row["backbone"]: row for row in advice.backbone_rows(found)}
    assert [rows[f"net{i}"]["fails"] for i in range(8)] == [False] * 7 + [True]
    table = backbones.build(found, list(rows.values()), ()).blocks[0]
    assert [row["price"] >= 0 for row in table.rows] == [True] * 7 + [False]
    assert table.rows[7]["general"] == "sgd, which does not finish"
    shown = [tile for tile in tiles.build(found) if "general advice" in tile[1]]
    note = f"sgd on net6 ({low:.1f} to {high:.1f}); on net7 it does not finish"
    assert shown == [
        (f"{price:.1f} points", f"behind, the highest price of general advice: {note}")
    ]


def test_an_upper_end_is_the_most_that_general_advice_costs(analyzed):
    rng = np.random.default_rng(6)
    scores = 80 + 3 * rng.standard_normal((4, 5, 2))
    found = analyzed(scores)
    (line,) = (line for line in summary.verdict(found) if line.startswith("General advice"))
    price, high = found.price.drop("net1")[["price", "price_high"]].max()
    assert line.endswith(f", and at most {high:.1f} ({price:.1f} in these figures) on the other 4.")


@pytest.mark.parametrize("others", [np.nan, 80.0])
def test_what_diverged_is_to_be_avoided_beside_equal_or_single_scores(analyzed, others):
    scores = np.full((3, 2, 2), 80.0)
    scores[1:2, 0], scores[2, 0] = others, np.nan
    said = summary.backbone_sentence(analyzed(scores), "net0")
    assert "avoid " in said
    assert "lamb (no run finished)" in said


def test_a_missed_target_is_said_once(analyzed):
    found = analyzed(80 + np.random.default_rng(7).standard_normal((3, 2, 2)))
    runs = found.table.runs
    lost = (runs["optimizer"] == "lamb") & (runs["backbone"] == "net0")
    runs = runs.assign(
        score=runs["score"].mask(lost), status=runs["status"].mask(lost, "not_reached")
    )
    found = analyze(dataclasses.replace(found.table, runs=runs), resamples=50)
    said = summary.backbone_sentence(found, "net0")
    assert said.count("lamb") == 1
    assert "avoid lamb (no run reached the target)" in said


def test_exceptions_are_named_for_the_backbones_that_have_them(analyzed):
    scores = 80 + 0.05 * np.random.default_rng(8).standard_normal((6, 4, 3))
    scores[0, 0] = np.nan
    scores[1, 1] = np.nan
    scores[1, 2] = np.nan
    (line,) = (line for line in summary.verdict(analyzed(scores)) if "choice is free" in line)
    assert line.startswith(
        "The choice is free on net3; free, but for sgd, on net0; free, but for adamw, on net1 and "
        "net2: at least two thirds of the optimizers are shown"
    )


def test_a_single_backbone_of_a_camp_is_named(analyzed):
    scores = np.array([[80.0, 82, 81, 83], [70, 72, 71, 73], [69, 71, 70, 72], [np.nan] * 4])
    scores = scores[..., None] + 0.1 * np.random.default_rng(9).standard_normal((4, 4, 3))
    scores[1:3, 1:] = np.nan
    found = analyzed(scores, ["sgd", "adamw", "lamb", "adan"])
    assert not any("all 1 backbone" in line for line in summary.verdict(found))


def seconds_of(values, **changes):
    table = one_seed_table(values)
    return dataclasses.replace(
        table, score="time", unit="s", higher_is_better=False, chance=None, equal=np.nan, **changes
    )


@pytest.mark.parametrize(
    ("value", "fine", "text"),
    [(99.7, False, "100"), (99.2, False, "99"), (9.97, False, "10"), (1e-16, True, "0"),
     (-1e-16, False, "0"), (0.034, False, "0.034"), (1234.5, False, "1,234")],
)  # fmt: skip
def test_numbers_of_other_units(value, fine, text):
    table = seconds_of([[70, 500], [75, 700]])
    assert wording.number(table, value, fine=fine) == text


def test_no_number_is_minus_nothing():
    table = one_seed_table([[70, 50], [75, 70]])
    assert wording.number(table, -0.001) == "0.00"
    assert document.format_value(-0.001) == "0.00"
    ends = {"x_low": -0.001, "x_high": 0.2}
    assert document.format_value(0.1, "interval", ends, "x") == "0.10 [0.00, 0.20]"


def test_ratios_are_of_figures_that_are_shown_as_they_were_measured():
    table = seconds_of([[70, 7000], [77, 6000], [105, 6600]]).logarithms()
    first = recommend.recommend(table, "b1")
    assert first.choices[0].score == pytest.approx(6000)
    assert [choice.behind for choice in first.choices] == pytest.approx([0, 10])
    assert "Then o2: 10 % behind the best, n = 1." in recommend.sentences(first)
    assert recommend.recommend(table, "b0").avoid == ("o2 (50 % behind)",)
    found = analyze(table, resamples=20)
    assert found.column_statistics.at["b1", "worst"] == pytest.approx(7000)
    page = markdown.render(build_document(found), build_heat_map(found))
    assert re.search(r"\| o0 \| ★?70 \| .?7,000 \|", page)
    assert "in brackets that to the best" in page
    facts = dict(build_heat_map(found).cells[0][0]["facts"])
    assert facts["score"].endswith(" s")
    assert facts["behind the best"] == "10.00 %"
    table = backbones.build(found, advice.backbone_rows(found), ()).blocks[0]
    assert [row["largest"] for row in table.rows] == pytest.approx([50, 100 / 6])
    # The rule of outliers has its parameter in logarithms, and shares of variance are theirs.
    rest = [line for line in page.splitlines() if "MAD" not in line and "variance" not in line]
    assert not [line for line in rest if "log-ratio" in line]


def test_a_search_over_ratios_tells_percentages():
    frame = synthetic_runs.results(["a", "b", "c"], ["sgd", "adamw", "lamb"])
    table = from_results(frame)
    ratios = dataclasses.replace(table, unit="img/s").logarithms()
    found = analyze(ratios, resamples=20)
    assert found.budget.defaults is not None
    shown = {
        block.title: block
        for block in tuning.build(found, ()).blocks
        if isinstance(block, document.Table)
    }
    for row in shown["Without tuning"].rows:
        assert row["gap"] == pytest.approx(100 * (1 - row["score"] / row["best"]))
        assert np.isclose(table.trials["score"], row["best"]).any()
    assert f"{ratios.distances(found.budget.coupling['interaction_std'].iloc[0]):.2f} %" in (
        found.budget.verdict
    )
