"""The decomposition against statsmodels, by invariances, and on tables with planted coupling."""

import dataclasses

import hypothesis
import numpy as np
import pandas
import pytest
import scipy.special
import statsmodels.api
import statsmodels.formula.api
from helpers.score_tables import cells_of, random_scores, table_of
from hypothesis import strategies as st

from bocb_jax.coupling import decomposition, noncentral
from bocb_jax.coupling.cells import cells_of as group
from bocb_jax.coupling.cells import noise_variance
from bocb_jax.coupling.scores import from_published

TABLES = 1000


# -- against statsmodels, by hand ------------------------------------------------------------------


@hypothesis.given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(2, 5), st.integers(2, 5), st.integers(2, 3)),
    missing=st.integers(0, 3),
)
@hypothesis.settings(max_examples=10, deadline=None)
def test_type_two_sums_of_squares_agree_with_statsmodels(seed, shape, missing):
    rng = np.random.default_rng(seed)
    values = random_scores(rng, shape, interaction=1.0)
    # Single runs are missing: unbalanced, but every cell keeps one.
    for _ in range(missing):
        values[rng.integers(shape[0]), rng.integers(shape[1]), 0] = np.nan
    table = table_of(values)
    ours = decomposition.decompose(table, resamples=20).terms
    model = statsmodels.formula.api.ols(
        "score ~ C(optimizer) * C(backbone)", table.runs.dropna(subset="score")
    ).fit()
    theirs = statsmodels.api.stats.anova_lm(model, typ=2)
    theirs.index = ["optimizer", "backbone", "interaction", "noise"]
    for ours_name, theirs_name in (("sum_of_squares", "sum_sq"), ("f", "F"), ("p_value", "PR(>F)")):
        np.testing.assert_allclose(
            ours[ours_name].iloc[:3], theirs[theirs_name].iloc[:3], rtol=1e-6, atol=1e-9
        )
    assert (ours["degrees_of_freedom"] == theirs["df"]).all()


def test_a_table_by_hand():
    fit = decomposition.decompose(
        table_of(np.array([[1.0, 2, 6], [3, 4, 8], [5, 9, 10]])[..., None])
    )
    # Row means 3, 5, 8 and column means 3, 5, 8 around 16/3; nine cells.
    squares = fit.terms["sum_of_squares"].round(9).to_dict()
    assert squares["optimizer"] == pytest.approx(38)
    assert squares["backbone"] == pytest.approx(38)
    assert squares["interaction"] == pytest.approx(80 - 76 + 0)
    assert fit.mean == pytest.approx(16 / 3)
    assert fit.optimizer_effects.tolist() == pytest.approx([-7 / 3, -1 / 3, 8 / 3])
    assert fit.interaction.iloc[0, 0] == pytest.approx(1 / 3)
    assert fit.interaction_std == pytest.approx(np.sqrt(4 / 9))


def test_median_polish_by_hand():
    # Tukey's way, rows first; one failed cell stays where it is.
    additive = np.add.outer([0.0, 1, 5], [70.0, 80, 90])
    additive[1, 2] -= 40
    left = decomposition.median_polish(pandas.DataFrame(additive)).to_numpy()
    expected = np.zeros((3, 3))
    expected[1, 2] = -40
    np.testing.assert_allclose(left, expected, atol=1e-9)


# -- invariances -----------------------------------------------------------------------------------


@hypothesis.given(seed=st.integers(0, 10**6), missing=st.integers(0, 4))
@hypothesis.settings(max_examples=10, deadline=None)
def test_order_of_rows_and_columns_and_a_constant_change_nothing(seed, missing):
    rng = np.random.default_rng(seed)
    values = random_scores(rng, (5, 4, 2), interaction=1.0)
    for _ in range(missing):
        values[rng.integers(5), rng.integers(4)] = np.nan
    rows, columns = rng.permutation(5), rng.permutation(4)
    one = decomposition.decompose(table_of(values), resamples=5)
    other = decomposition.decompose(
        table_of(
            values[rows][:, columns] + 12.5, [f"o{i}" for i in rows], [f"b{i}" for i in columns]
        ),
        resamples=5,
    )
    fixed = ["sum_of_squares", "f", "share", "omega_squared", "partial_omega_squared_high"]
    np.testing.assert_allclose(one.terms[fixed], other.terms[fixed], rtol=1e-6, atol=1e-8)
    assert other.mean == pytest.approx(one.mean + 12.5)
    aligned = other.interaction.reindex(one.interaction.index)[one.interaction.columns]
    np.testing.assert_allclose(one.interaction, aligned, atol=1e-8)
    polished = decomposition.median_polish(table_of(values).matrix())
    again = decomposition.median_polish(table_of(values[rows][:, columns] + 12.5).matrix())
    np.testing.assert_allclose(polished.to_numpy()[rows][:, columns], again, atol=1e-8)


def test_an_additive_table_with_gaps_has_no_interaction():
    values = np.add.outer([1.0, 2, 4, 8], [70.0, 75, 81])[..., None]
    values[0, 0] = values[2, 1] = np.nan
    fit = decomposition.decompose(table_of(values))
    assert fit.missing_cells == 2
    assert fit.terms.loc["interaction", "sum_of_squares"] == pytest.approx(0, abs=1e-8)
    np.testing.assert_allclose(fit.interaction.fillna(0), 0, atol=1e-9)
    np.testing.assert_allclose(np.diff(fit.optimizer_effects), [1, 2, 4])


@hypothesis.given(seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=30, deadline=None)
def test_additive_fit_of_any_table_agrees_with_least_squares(seed):
    # Gaps, unequal counts and parts that no cell connects; NumPy's least squares on a dense design.
    rng = np.random.default_rng(seed)
    shape = rng.integers(1, 7, 2)
    runs = rng.integers(1, 30)
    cells = group(
        70 + rng.standard_normal(runs), *(rng.integers(n, size=runs) for n in shape), tuple(shape)
    )
    design = np.zeros((len(cells.counts), shape.sum()))
    design[np.arange(len(design)), cells.optimizer] = 1
    design[np.arange(len(design)), shape[0] + cells.backbone] = 1
    weights = np.sqrt(cells.counts)
    means = cells.means(cells.values)
    terms, _, rank, _ = np.linalg.lstsq(design * weights[:, None], means * weights)
    assert cells.rank == rank
    np.testing.assert_allclose(cells.interaction(means), means - design @ terms, atol=1e-10)
    hat = design * weights[:, None] @ np.linalg.pinv(design * weights[:, None])
    np.testing.assert_allclose(cells.leverage, np.diag(hat), atol=1e-10)


def test_a_table_of_a_million_cells_needs_no_dense_design():
    rng = np.random.default_rng(0)
    planted = np.add.outer(rng.standard_normal(1000), rng.standard_normal(1000))
    cells = cells_of(planted[..., None])
    assert cells.inverse.shape == (2000, 2000)
    np.testing.assert_allclose(cells.interaction(cells.values), 0, atol=1e-9)


def test_small_tables():
    assert decomposition.decompose(table_of(np.ones((1, 4, 2)))) is None
    assert decomposition.decompose(table_of(np.ones((4, 1, 2)))) is None
    equal = decomposition.decompose(table_of(np.full((3, 3, 2), 70.0)), resamples=10)
    assert equal.interaction_std == pytest.approx(0, abs=1e-9)
    assert equal.tukey is None
    assert equal.permutation_p == 1


def test_seeds_that_agree_exactly_tell_no_noise():
    values = np.repeat(random_scores(np.random.default_rng(0), (4, 3, 1), 1.0, 0.0), 3, axis=2)
    fit = decomposition.decompose(table_of(values), resamples=10)
    assert fit.terms[["f", "p_value"]].isna().all().all()
    assert fit.permutation_p is None
    assert fit.terms.loc["interaction", "share"] > 0


def test_a_row_without_scores_changes_no_other():
    values = random_scores(np.random.default_rng(1), (4, 3, 2), 1.0)
    with_gap = np.concatenate([values, np.full((1, 3, 2), np.nan)])
    one, other = (decomposition.decompose(table_of(v), resamples=5) for v in (values, with_gap))
    np.testing.assert_allclose(
        one.terms.loc["interaction", "f"], other.terms.loc["interaction", "f"]
    )
    assert other.mean == pytest.approx(one.mean)
    assert np.isnan(other.optimizer_effects["o4"])


# -- planted coupling ------------------------------------------------------------------------------


def covered(tables, interaction, noise, shape=(5, 4, 3), seed=0):
    """How often the intervals of the ratio and of the points hold the truth."""
    rng = np.random.default_rng(seed)
    o, b, s = shape
    between, within, runs = (o - 1) * (b - 1), o * b * (s - 1), o * b * s
    hits = np.zeros(2)
    for _ in range(tables):
        cells = cells_of(random_scores(rng, shape, interaction, noise))
        squares = decomposition.sums_of_squares(cells)
        variance = noise_variance(cells)
        low, high = noncentral.f_interval(
            squares["interaction"] / between / variance, between, within, 0.95
        )
        hits[0] += low <= runs * (interaction / noise) ** 2 <= high
        low, high = noncentral.sum_of_squares_interval(
            squares["interaction"], variance, between, within, 0.95
        )
        hits[1] += low <= runs * interaction**2 <= high
    return hits / tables


@pytest.mark.parametrize(
    ("tables", "interaction"),
    [
        pytest.param(TABLES, 0.3, marks=pytest.mark.slow),
        pytest.param(TABLES, 2.0, marks=pytest.mark.slow),
        (100, 0.3),
        (100, 2.0),
    ],
)
def test_planted_coupling_lies_in_its_interval(tables, interaction):
    # The ratio's interval is exact, that in points close to it: 3 standard deviations of the count.
    ratio, points = covered(tables, interaction, noise=0.5)
    reach = 3 * np.sqrt(0.95 * 0.05 / tables)
    assert abs(ratio - 0.95) <= reach
    assert abs(points - 0.95) <= reach + 0.01


def test_coupling_of_a_backbone_lies_in_its_interval():
    # One backbone is bound, the others are not: its own interval holds its own coupling.
    rng = np.random.default_rng(2)
    planted = np.zeros((6, 5))
    planted[:, 0] = [2, -2, 1, -1, 1, -1]
    planted -= planted.mean(1, keepdims=True)
    truth = np.sqrt((planted**2).mean(0))
    hits, tables = np.zeros(5), 60
    for _ in range(tables):
        values = 70 + planted[..., None] + 0.5 * rng.standard_normal((6, 5, 3))
        frame = decomposition.row_intervals(cells_of(values), "backbone", 0.95)
        hits += (frame["low"] <= truth + 1e-12) & (truth <= frame["high"])
    # 60 tables: 2.8 points a standard deviation.
    assert (hits / tables > 0.86).all()


@pytest.mark.parametrize("tables", [pytest.param(300, marks=pytest.mark.slow), 30])
def test_intervals_of_shares_cover_the_truth(tables):
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(tables):
        mean = random_scores(rng, (6, 5, 1), interaction=1.5, noise=0.0)
        true = decomposition.decompose(table_of(mean)).terms.loc["interaction", "share"]
        noisy = mean + 0.7 * rng.standard_normal((6, 5, 3))
        row = decomposition.decompose(table_of(noisy), resamples=200).terms.loc["interaction"]
        hits += row["share_low"] <= true <= row["share_high"]
    assert hits / tables > 0.95 - 3 * np.sqrt(0.95 * 0.05 / tables)


# -- shares ----------------------------------------------------------------------------------------


def test_shares_of_the_published_table():
    found = decomposition.shares(from_published("cifar100"), ("AdaGrad", "LARS"))
    figures = found.set_index(["scale", "failing"]).drop(columns="dropped").round(3)
    assert [[*key, *row] for key, row in zip(figures.index, figures.to_numpy(), strict=True)] == [
        ["points", "in", 0.216, 0.386, 0.397, 400],
        ["points", "out", 0.036, 0.797, 0.166, 360],
        ["log-odds", "in", 0.191, 0.478, 0.331, 400],
        ["log-odds", "out", 0.040, 0.815, 0.145, 360],
    ]
    # Log-odds with other means: SciPy's logit, and sums of squares of a complete table.
    odds = scipy.special.logit(from_published("cifar100").matrix().to_numpy() / 100)
    rows, columns = (odds.mean(axis=axis, keepdims=True) for axis in (1, 0))
    left = ((odds - rows - columns + odds.mean()) ** 2).sum() / ((odds - odds.mean()) ** 2).sum()
    assert found["interaction"][2] == pytest.approx(left)
    assert found["dropped"].tolist() == [(), ("AdaGrad", "LARS")] * 2


def test_shares_are_those_of_the_decomposition():
    table = table_of(random_scores(np.random.default_rng(0), (5, 4, 3), 1.0, 0.5))
    found = decomposition.shares(table, ())
    terms = decomposition.decompose(table, resamples=5).terms["share"]
    assert found["failing"].tolist() == ["in", "in"]
    np.testing.assert_allclose(found.loc[0, terms.index[:3]].to_numpy(float), terms.iloc[:3])
    losses = dataclasses.replace(table, score="train loss", unit="nats", higher_is_better=False)
    assert decomposition.shares(losses, ())["scale"].tolist() == ["nats"]
    assert decomposition.shares(table.select(optimizers=["o1"]), ()).empty


def test_given_noise_is_subtracted_from_shares():
    rng = np.random.default_rng(1)
    noisy = table_of(random_scores(rng, (20, 20, 1), 0.0, 1.0))
    raw = decomposition.shares(noisy, ())["interaction"]
    known = decomposition.shares(dataclasses.replace(noisy, noise=1.0), ())["interaction"]
    assert (raw > 0.02).all()
    # 361 degrees of freedom: a standard deviation is 7 % of what was subtracted.
    assert (known < raw / 3).all()


@pytest.mark.parametrize(
    ("tables", "shape"), [pytest.param(200, (12, 10, 3), marks=pytest.mark.slow), (20, (12, 10, 3))]
)
@pytest.mark.parametrize("share", [0.1, 0.4])
def test_runs_that_diverge_at_random_move_no_share(tables, shape, share):
    rng = np.random.default_rng(2)
    moved = []
    for _ in range(tables):
        values = random_scores(rng, shape, 1.5, 0.3)
        whole = decomposition.shares(table_of(values), ())
        left = decomposition.shares(
            table_of(np.where(rng.random(shape) < share, np.nan, values)), ()
        )
        names = ["optimizer", "backbone", "interaction"]
        moved.append((whole[names] - left[names]).abs().to_numpy().max())
    assert np.isfinite(moved).all()
    assert np.mean(np.array(moved) <= 0.05) >= 0.95
