"""Two tables beside one another: pairs, correlations against SciPy, planted agreement."""

import dataclasses

import numpy as np
import pandas
import pytest
from scipy import stats

from bocb_jax.coupling.agreement import compare, correlate
from bocb_jax.coupling.scores import from_published
from bocb_jax.errors import UserError
from bocb_jax.paper.categories import to_opt

MINIS = {
    "vgg_mini": "VGG-13", "resnet_mini": "R-50", "densenet_mini": "DN-121", "vit_mini": "DeiT-S",
    "convnext_mini": "CNX-T", "mixer_mini": "MLP-S", "caformer_mini": "CAF-12",
}  # fmt: skip


@pytest.fixture(scope="module")
def paper():
    return from_published("cifar100")


def renamed(table, backbones, optimizers=to_opt, score=lambda runs: runs["score"]):
    """The part of a table with these backbones, under other names and with other scores."""
    part = table.select(backbones=backbones.values())
    back = {theirs: ours for ours, theirs in backbones.items()}
    runs = part.runs.assign(
        backbone=part.runs["backbone"].map(back), optimizer=part.runs["optimizer"].map(optimizers)
    )
    return dataclasses.replace(part, runs=runs.assign(score=score(runs)))


def test_a_table_agrees_with_itself_under_the_names_of_small_twins(paper):
    found = compare(renamed(paper, MINIS), paper)
    frame = found.backbones
    assert frame["other_backbone"].to_dict() == {name: MINIS[name] for name in frame.index}
    assert set(frame.index) == set(MINIS)
    for column in ("preference", "camp", "general", "price"):
        pandas.testing.assert_series_equal(
            frame[column], frame[f"other_{column}"], check_names=False
        )
    assert found.preference.rho == pytest.approx(1)
    assert found.price.rho == pytest.approx(1)
    assert found.decided == found.same_camp > 0
    assert len(found.optimizers) == 20


def test_the_reverse_preference_is_found(paper):
    """Scores mirrored about their column's middle: what led falls behind."""

    def mirrored(runs):
        groups = runs.groupby("backbone")["score"]
        return groups.transform("min") + groups.transform("max") - runs["score"]

    found = compare(renamed(paper, MINIS, score=mirrored), paper)
    assert found.preference.rho < -0.9
    assert found.same_camp == 0 < found.decided


def test_only_what_both_have_counts(paper):
    few = ("SGD-M", "AdamW", "LAMB", "LION")
    own = renamed(paper.select(few), MINIS)
    found = compare(own, paper)
    assert found.optimizers == tuple(own.optimizers)
    among = paper.select(few, MINIS.values())
    again = compare(among, among).backbones
    ours = found.backbones.set_index("other_backbone")
    pandas.testing.assert_series_equal(ours["price"], again["price"], check_names=False)


def test_a_backbone_is_taken_once(paper):
    both = {"resnet18": "R-50", "resnet_mini": "VGG-13", "vit_mini": "DeiT-S"}
    assert list(compare(renamed(paper, both), paper).backbones["other_backbone"]) in (
        ["R-50", "DeiT-S"], ["DeiT-S", "R-50"],
    )  # fmt: skip


def test_tables_without_anything_in_common_are_refused(paper):
    own = renamed(paper, {"mynets:One": "R-50", "mynets:Two": "DeiT-S"})
    with pytest.raises(UserError, match="share 0 backbones and 20 optimizers"):
        compare(own, paper)


@pytest.mark.parametrize("n", [4, 6, 40])
def test_correlations_equal_scipys(n):
    rng = np.random.default_rng(n)
    x = pandas.Series(rng.normal(size=n)).round(1)  # with ties
    y = x + pandas.Series(rng.normal(size=n))
    found = correlate(x, y)
    assert found.rho == pytest.approx(stats.spearmanr(x, y).statistic)
    permuted = stats.permutation_test(
        (x,), lambda x: abs(stats.spearmanr(x, y).statistic), permutation_type="pairings",
        alternative="greater", n_resamples=999, rng=0,
    )  # fmt: skip
    p = permuted.pvalue  # exact for 720 orders and fewer
    by_chance = 4 * np.sqrt(p * (1 - p) / 999) if n > 6 else 1e-12
    assert found.p_value == pytest.approx(p, abs=by_chance)
    assert found.low < found.rho <= found.high
    assert found.high - found.low > 0.3 / n**0.5  # also where all are in order


def test_four_pairs_in_order_have_two_of_24_orders():
    x = pandas.Series([1.0, 2.0, 3.0, 4.0, np.nan])
    assert correlate(x, x**2).p_value == pytest.approx(2 / 24)
    assert correlate(x, 0 * x) is None
    assert correlate(x[:3], x[:3]) is None


@pytest.mark.parametrize("rho", [0.0, 0.6, 0.9])
def test_intervals_cover_the_truth(rho):
    rng = np.random.default_rng(1)
    truth = 6 / np.pi * np.arcsin(rho / 2)  # Spearman's of a bivariate normal distribution
    inside = 0
    for _ in range(400):
        x = rng.normal(size=16)
        y = rho * x + np.sqrt(1 - rho**2) * rng.normal(size=16)
        found = correlate(pandas.Series(x), pandas.Series(y), draws=1)
        inside += found.low <= truth <= found.high
    assert inside / 400 > 0.95 - 3 * np.sqrt(0.05 * 0.95 / 400)
