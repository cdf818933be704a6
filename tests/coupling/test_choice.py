"""What a choice costs: the published table's figures, hand computations, what failed."""

import dataclasses
import itertools

import numpy as np
import pandas
import pytest
from helpers.score_tables import one_seed_table, table_of
from scipy import stats

from bocb_jax.coupling import camps, choice
from bocb_jax.coupling.best import compare_with_best
from bocb_jax.coupling.contrasts import category_of
from bocb_jax.coupling.features import features_of
from bocb_jax.coupling.noise import estimate_noise
from bocb_jax.coupling.portfolio import portfolio
from bocb_jax.coupling.scores import from_published

CLASSIC = ["AlexNet", "VGG-13", "R-50", "DN-121", "MobV2", "Eff-B0", "RVGG-A1"]


@pytest.fixture(scope="module")
def cifar():
    return from_published("cifar100")


@pytest.fixture(scope="module")
def families(cifar):
    return features_of(cifar.backbones)["family"]


def with_status(table, statuses):
    """The table with other statuses, and without the scores of what did not finish."""
    runs = table.runs.assign(status=statuses)
    return dataclasses.replace(
        table, runs=runs.assign(score=runs["score"].where(runs["status"] == "finished"))
    )


def test_price_of_general_advice_on_the_published_table(cifar, families):
    found = choice.price(cifar, families, estimate_noise(cifar))
    assert set(found["general"]) == {"Adan"}
    printed = dict(zip(CLASSIC, [3.32, 2.66, 3.45, 0, 1.03, 1.45, 0.68], strict=True))
    assert found["price"][CLASSIC].round(2).to_dict() == printed
    assert found["price"].drop(CLASSIC).round(2).max() == 0.16
    assert found["price_low"].isna().all()


def test_stakes_on_the_published_table(cifar):
    found = choice.stakes(cifar)
    assert found.at["CNX-T", "worst"] == "SGD-M"
    assert round(found.at["CNX-T", "largest"], 1) == 24.6
    assert found.at["CNX-T", "beyond"][:2] == ("SGD-M", "SGDP")
    assert found.at["VGG-13", "beyond"] == ("AdaGrad",)


def test_portfolio_of_the_published_table(cifar, families):
    found = portfolio(choice.costs_of(cifar), families)
    assert found["optimizers"][1] == ("Adan",)
    assert found["optimizers"][2] == ("SGDP", "Adan")
    assert found["optimizers"][3] == ("Adan", "AdaBound", "AdaBelief")
    assert found["mean"].round(2).tolist()[:3] == [0.65, 0.22, 0.12]
    assert found["worst"].round(2).tolist()[:3] == [3.45, 1.28, 0.71]
    assert (round(found["left_out"][2], 2), round(found["left_out_worst"][2], 2)) == (0.30, 2.42)


def test_camps_of_the_published_table(cifar, families):
    kinds = category_of(cifar.optimizers)
    found = camps.preference(cifar, kinds, estimate_noise(cifar))
    assert (found["points"][CLASSIC] > 0).all()
    assert found["points"].drop(CLASSIC).gt(0).sum() == 1
    sides = camps.find_camps(found, families, camps.classic_of(cifar.backbones))
    assert sides.members["SGD-like"] == (*CLASSIC, "AF-12")
    # All five families of classic CNNs above all seven others: one of 12 choose 5 orders.
    assert sides.p_value == pytest.approx(1 / 792)
    assert sides.families == (5, 7)


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_the_interval_of_a_preference_holds_where_optimizers_lie_apart(count):
    rng, held = np.random.default_rng(count), []
    names = [f"o{i}" for i in range(2 * count)]
    kinds = pandas.Series(["a"] * count + ["b"] * count, index=names)
    true = np.concatenate([60 + 10.0 * np.arange(count), 65 + 10.0 * np.arange(count)])
    middle = np.median(true[:count]) - np.median(true[count:])
    for _ in range(20):
        scores = true[:, None] + 0.5 * rng.standard_normal((2 * count, 20))
        table = dataclasses.replace(one_seed_table(scores), noise=0.5)
        found = camps.preference(table, kinds, estimate_noise(table))
        held.append((found["points_low"] <= middle) & (middle <= found["points_high"]))
    assert np.mean(held) >= 0.95 - 3 * np.sqrt(0.95 * 0.05 / 400)


def test_freedom_counts_what_lies_on_the_limit_and_what_failed():
    table = one_seed_table([[90.0], [89.0], [88.9], [80.0]])
    table = with_status(table, ["finished"] * 3 + ["diverged"])
    noise = estimate_noise(table)
    found = choice.freedom(table, compare_with_best(table, noise), noise)
    assert found.loc["b0", ["n", "freedom"]].tolist() == [4, 0.5]
    assert found.at["b0", "word"] is None
    curve = choice.freedom_curve(table)["b0"]
    assert curve.tolist() == [0.25, 0.5, 0.75]
    assert curve.index.to_numpy() == pytest.approx([0, 1, 1.1])


@pytest.mark.parametrize(("regrets", "word"), [
    ([0, 0.1, 0.2, 0.1], "free"), ([0, 8, 9, 7], "bound"), ([0, 0.1, 8, 9], "mixed"),
    ([0, 1, 1, 1], "undecided"),
])  # fmt: skip
def test_words_with_known_noise(regrets, word):
    table = dataclasses.replace(one_seed_table(90 - np.array(regrets)[:, None]), noise=0.1)
    noise = estimate_noise(table)
    found = choice.freedom(table, compare_with_best(table, noise), noise)
    assert found.at["b0", "word"] == word
    assert np.isnan(found.at["b0", "seeds"])  # decided, or not to be decided: exactly 1 behind


def test_the_seeds_that_would_decide_decide():
    regrets = np.array([0, 0.5, 0.6, 0.5])[:, None]
    table = dataclasses.replace(one_seed_table(90 - regrets), noise=0.3)
    noise = estimate_noise(table)
    found = choice.freedom(table, compare_with_best(table, noise), noise)
    assert found.at["b0", "word"] == "undecided"
    for seeds, word in ((0, "free"), (-1, "undecided")):
        count = int(found.at["b0", "seeds"]) + seeds
        more = table_of(np.repeat((90 - regrets)[..., None], count, axis=2))
        # Means stay what they are, and noise too.
        known = noise.assign(sd=0.3, df=np.inf)
        again = choice.freedom(more, compare_with_best(more, known), known)
        assert again.at["b0", "word"] == word


def test_wilson_interval_is_scipys():
    for finished, runs in ((0, 3), (3, 3), (8, 10), (1, 40)):
        expected = stats.binomtest(finished, runs).proportion_ci(0.95, "wilson")
        found = choice.wilson(np.array([float(finished)]), np.array([float(runs)]), 0.95)
        assert (found[0][0], found[1][0]) == pytest.approx(tuple(expected))


def test_what_failed_costs_as_much_as_the_worst_and_what_crashed_is_not_known():
    table = with_status(
        one_seed_table([[90.0], [70.0], [60.0], [50.0]]),
        ["finished", "finished", "diverged", "crashed"],
    )
    costs = choice.costs_of(table)["b0"]
    assert costs.iloc[:3].tolist() == [0, 20, 20]
    assert np.isnan(costs.iloc[3])
    assert choice.stakes(table).at["b0", "failed"] == ("o2",)
    found = choice.reliability(table).set_index("optimizer")
    assert found["share"].to_dict() == {"o0": 1, "o1": 1, "o2": 0}


@pytest.mark.parametrize(("seeds", "word"), [(3, "undecided"), (4, "bound")])
def test_four_runs_that_diverge_show_that_an_optimizer_fails(seeds, word):
    # If two thirds of the runs finished, three would diverge with 1 / 27, more than 2.5 percent.
    table = table_of(np.full((4, 1, seeds), 80.0))
    lost = table.runs["optimizer"] != "o0"
    table = with_status(table, np.where(lost, "diverged", "finished"))
    noise = estimate_noise(dataclasses.replace(table, noise=0.1))
    found = choice.freedom(table, compare_with_best(table, noise), noise)
    assert found.at["b0", "word"] == word


def test_price_needs_four_backbones_and_other_families():
    table = one_seed_table(np.arange(12.0).reshape(4, 3))
    lone = pandas.Series(["a", "b", "c"], index=table.backbones)
    assert choice.price(table, lone, estimate_noise(table)).empty
    table = one_seed_table([[9.0, 9, 1, 9, 9], [8, 8, 9, 8, 8]])
    groups = pandas.Series(["a", "a", "b", "c", "d"], index=table.backbones)
    found = choice.price(table, groups, estimate_noise(table))
    assert found["general"].tolist()[2] == "o0"
    assert found["price"].tolist()[2] == 8
    # Seen from the others, o1 loses 1 on two or three and gains 8 on b2.
    assert found["general"].tolist()[0] == "o1"
    assert found["price"].tolist()[0] == 1


def test_optimizers_known_on_few_backbones_are_no_general_advice():
    scores = np.full((3, 5), np.nan)
    scores[0], scores[1], scores[2, 0] = 80, 79, 99
    table = one_seed_table(scores)
    groups = pandas.Series(table.backbones, index=table.backbones)
    found = choice.price(table, groups, estimate_noise(table))
    assert set(found["general"]) == {"o0"}


def test_a_portfolio_by_brute_force():
    rng = np.random.default_rng(5)
    costs = pandas.DataFrame(rng.exponential(size=(7, 6)))
    costs -= costs.min()
    costs.iloc[2, 3] = np.nan
    groups = pandas.Series([0, 0, 1, 2, 2, 3])
    found = portfolio(costs, groups, largest=7)
    filled = costs.fillna(costs.max())
    for k in (1, 2, 3):
        chosen = list(found["optimizers"][k])
        best = min(
            filled.loc[list(rows)].min().mean() for rows in itertools.combinations(range(7), k)
        )
        assert filled.loc[chosen].min().mean() == pytest.approx(best)
    # With as many optimizers as lose nothing it ends.
    assert found["mean"].iloc[-1] == 0 < found["mean"].iloc[-2]
    assert found.index[-1] <= 6
    assert (found["left_out"] >= found["mean"] - 1e-12).all()


def test_a_portfolio_counts_what_is_not_known_as_the_worst():
    # o0 is known on one easy backbone of five, o1 on four, o2 on all.
    nan = np.nan
    costs = pandas.DataFrame(
        [[0, nan, nan, nan, nan], [1, 0, 0, 0, nan], [2, 3, 3, 3, 6.0], [4, 5, 6, 7, 8]],
        index=[f"o{i}" for i in range(4)], columns=[f"b{i}" for i in range(5)],
    )  # fmt: skip
    found = portfolio(costs, pandas.Series(costs.columns, index=costs.columns))
    assert found["optimizers"].tolist() == [("o1",), ("o1", "o2"), ("o1", "o2", "o3")]
    assert found.loc[1, ["mean", "worst", "worst_backbone"]].tolist() == [9 / 5, 8, "b4"]
    assert found["mean"][2] == 7 / 5
    apart = costs.where(np.eye(4, 5, dtype=bool))
    assert portfolio(apart, pandas.Series(costs.columns, index=costs.columns)).empty


def test_a_large_portfolio_is_greedy_and_says_so():
    rng = np.random.default_rng(6)
    costs = pandas.DataFrame(rng.exponential(size=(60, 40)))
    found = portfolio(costs, pandas.Series(range(40)))
    assert found["exhaustive"].tolist() == [True, True, True, False, False]
    assert (found["mean"].diff().dropna() < 0).all()


def few_finish(noise=None):
    """o1 diverged where only o0 finished, and is 10 points ahead of it on three backbones."""
    table = one_seed_table([[90.0, 70, 70, 70], [0, 80, 80, 80]])
    table = with_status(table, np.where(table.runs["score"] == 0, "diverged", "finished"))
    return dataclasses.replace(table, noise=noise)


def test_a_failure_costs_as_much_as_elsewhere_where_few_finish():
    table = few_finish()
    costs = choice.costs_of(table)
    assert costs.loc["o1"].tolist() == [10, 0, 0, 0]
    groups = pandas.Series(table.backbones, index=table.backbones)
    found = choice.price(table, groups, estimate_noise(table)).loc["b0"]
    assert found[["general", "price", "fails"]].tolist() == ["o1", 10, True]
    close = with_status(one_seed_table([[80.0], [79.9], [0]]), ["finished", "finished", "diverged"])
    assert choice.costs_of(close)["b0"].to_numpy() == pytest.approx([0, 0.1, 5])


def test_advice_that_failed_has_no_interval_of_its_price():
    table = few_finish(noise=0.1)
    groups = pandas.Series(table.backbones, index=table.backbones)
    found = choice.price(table, groups, estimate_noise(table))
    assert found.loc["b0", ["price_low", "price_high"]].isna().all()
    more = with_status(
        one_seed_table([[90.0, 70, 70, 70], [0, 80, 80, 80], [88, 79.95, 79.95, 79.95]]),
        ["diverged" if i == 4 else "finished" for i in range(12)],
    )
    more = dataclasses.replace(more, noise=0.1)
    assert choice.price(more, groups, estimate_noise(more)).at["b0", "general"] == "o1"
    found = choice.price(more, groups, estimate_noise(more))
    # o2 may be the advice as well, but its regret is not the price of o1.
    assert found.loc["b0", ["price_low", "price_high"]].isna().all()
