"""Pictures: drawn from every kind of table, ordered in grey print, reproducible to the byte."""

import itertools
import xml.etree.ElementTree as ElementTree

import matplotlib
import numpy as np
import pandas
import pytest
from helpers import synthetic_runs
from helpers.score_tables import one_seed_table
from matplotlib import colors

from bocb_jax.coupling import curves
from bocb_jax.coupling.analysis import analyze
from bocb_jax.coupling.choice import freedom_curve
from bocb_jax.coupling.scores import from_published, from_results
from bocb_jax.coupling.tuning import Budget
from bocb_jax.report import plots, style
from bocb_jax.report.plots import choice, decomposition, heat_map, optimizers, tuning

BACKBONES = ["resnet_mini", "vit_mini", "swin_mini", "mixer_mini", "vgg_mini"]
OPTIMIZERS = ["sgd", "adamw", "lamb", "lion", "adan"]


@pytest.fixture(scope="module")
def paper():
    return analyze(from_published("cifar100"), resamples=50)


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs")
    frame = synthetic_runs.results(BACKBONES, OPTIMIZERS, failing={(1, 0)})
    synthetic_runs.write_curves(frame, workdir)
    table = from_results(frame)
    return analyze(table, resamples=50), curves.read(table, workdir)


def luminance(colour):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
              for c in colors.to_rgb(colour)]  # fmt: skip
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def test_every_picture_is_drawn_as_svg_and_png(own, tmp_path):
    analysis, found = own
    drawers = plots.drawers(analysis, found)
    assert set(drawers) <= set(plots.NAMES)
    assert {"heat_map", "regret", "shares", "sensitivity", "training_curves"} <= set(drawers)
    for name, draw in drawers.items():
        picture = draw()
        for kind in ("svg", "png"):
            style.save(picture, tmp_path / f"{name}.{kind}")
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_data_give_the_same_file(paper, tmp_path):
    for name in ("a", "b"):
        style.save(decomposition.draw(paper.decomposition, None), tmp_path / f"{name}.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_heat_map_shows_every_score_and_mark(paper):
    axes = heat_map.draw(paper).axes[0]
    texts = [text.get_text() for text in axes.texts]
    assert len(texts) == 400
    assert sum("▼" in text for text in texts) == paper.outliers.count
    best = [text for text in texts if "★" in text]
    assert len(best) == (paper.outliers.labels == "best").to_numpy().sum()
    assert "★80.5" in best  # AdaBelief on R-50, Table 1 of the paper


def test_failed_cells_are_grey(own):
    analysis, _ = own
    (patch,) = heat_map.draw(analysis).axes[0].patches
    red, green, blue, _ = patch.get_facecolor()
    assert max(red, green, blue) - min(red, green, blue) < 0.05
    assert patch.get_hatch()


def test_colours_keep_their_order_in_grey_print():
    steps = [luminance(colour) for colour in style.colour_steps("cividis_r", 9)]
    assert all(a > b + 0.02 for a, b in itertools.pairwise(steps))
    by_category = sorted(luminance(style.CATEGORIES[key][0]) for key in "abcd")
    assert all(b > a * 1.3 for a, b in itertools.pairwise(by_category))
    markers = [marker for _, marker, _ in style.CATEGORIES.values()]
    assert len(set(markers)) == len(markers)
    dashes = [str(dash) for _, dash, _ in style.LINES]
    assert len(set(dashes)) == len(dashes)


@pytest.mark.parametrize(
    "colour", ["#ffffff", "#000000", "#7f7f7f", "#fde737", "#00204e", "#d55e00"]
)
def test_ink_has_contrast_on_every_colour(colour):
    ink = style.ink_on(*colors.to_rgb(colour))
    light, dark = sorted((luminance(ink), luminance(colour)), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5  # WCAG AA


def test_critical_difference_puts_ranks_where_they_are(paper):
    axes = optimizers.draw_critical_difference(paper.nemenyi).axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == list(paper.nemenyi.mean_ranks.index)
    drawn = next(line for line in axes.lines if len(line.get_xdata()) == len(names))
    np.testing.assert_allclose(drawn.get_xdata(), paper.nemenyi.mean_ranks)
    ruler = next(line for line in axes.lines if line.get_marker() == "|").get_xdata()
    assert ruler[1] - ruler[0] == pytest.approx(paper.nemenyi.critical_difference)


def test_strange_names_are_drawn_literally(paper, tmp_path):
    strange = ["$\\frac{", "<img src=x>", "a" * 200, "mit null", "深い"]
    frame = synthetic_runs.results(strange, OPTIMIZERS, rates=0, seeds=2)
    analysis = analyze(from_results(frame), resamples=20)
    for name, draw in plots.drawers(analysis).items():
        style.save(draw(), tmp_path / f"{name}.svg")
        tree = ElementTree.parse(tmp_path / f"{name}.svg")  # well-formed in spite of the names
        assert not [node for node in tree.iter() if node.tag.endswith("img")]
    texts = {node.text for node in ElementTree.parse(tmp_path / "heat_map.svg").iter()}
    assert "$\\frac{" in texts
    assert "<img src=x>" in texts


def test_sensitivity_is_the_distance_to_the_best_of_the_pair():
    table = from_results(synthetic_runs.results(["resnet_mini"], ["sgd", "adamw"], seeds=1))
    axes = tuning.draw_sensitivity(table).axes[0]
    heights = axes.lines[0].get_ydata()
    assert max(heights) == 0
    # The planted loss is 1 point a step from the middle; noise has a deviation of 0.2.
    np.testing.assert_allclose(sorted(heights), [-2, -2, -1, -1, 0], atol=1.5)
    assert "n=5" in axes.get_title(loc="left")


def test_pictures_do_not_change_matplotlibs_settings(paper):
    before = dict(matplotlib.rcParams)
    decomposition.draw(paper.decomposition, paper.decomposition_without_failures)
    assert dict(matplotlib.rcParams) == before


def test_a_table_of_two_by_two_is_drawn():
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw"], rates=0, seeds=1)
    for draw in plots.drawers(analyze(from_results(frame), resamples=20)).values():
        draw().canvas.draw()


def test_without_runs_there_are_no_training_curves(paper):
    assert "training_curves" not in plots.drawers(paper, pandas.DataFrame(columns=["backbone"]))


def test_budget_is_drawn_without_coupling_if_there_is_none():
    rows = [("net", "sgd", k, 90.0 + k, 0.1, 3) for k in (1, 2, 3)]
    names = ["backbone", "optimizer", "trials", "expected_best", "standard_error", "n"]
    curves = pandas.DataFrame(rows, columns=names)
    known = dict.fromkeys(Budget.__dataclass_fields__)
    budget = Budget(**known | {"curves": curves, "coupling": pandas.DataFrame()})
    table = one_seed_table([[70, 50], [75, 70]])
    assert len(tuning.draw_budget(budget, table).axes) == 1


def test_the_best_of_a_search_are_named_where_lower_is_better():
    frame = synthetic_runs.results(["a", "b"], [f"o{i}" for i in range(12)])
    frame["train_loss"] = 12.0 - frame["optimizer"].str[1:].astype(int)
    found = analyze(from_results(frame, "train loss"), resamples=20)
    assert found.budget is not None
    axes = tuning.draw_budget(found.budget, found.table).axes[0]
    named = [text.get_text() for text in axes.get_legend().get_texts()]
    assert named == [f"o{i}" for i in range(12)][::-1][: len(named)]
    assert len(named) < 12


def test_freedom_begins_below_what_counts_as_equal_and_below_most_distances():
    # Differences of 5 points and more, and of at most 0.05.
    for step in (5.0, 0.01):
        table = one_seed_table(80 - step * np.arange(12.0).reshape(6, 2))
        picture = choice.draw_freedom(freedom_curve(table), table)
        start = picture.axes[0].get_xlim()[0]
        assert start == pytest.approx(min(1.0, 6 * step) / 4)


def test_freedom_says_which_backbones_it_does_not_name():
    for backbones, said in ((36, False), (38, True)):
        table = one_seed_table(np.random.default_rng(0).normal(80, 3, (4, backbones)))
        picture = choice.draw_freedom(freedom_curve(table), table)
        text = picture.get_supxlabel()
        assert (f"of {backbones} backbones are only in grey" in text) == said
