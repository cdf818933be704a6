"""Metrics of weights, against WeightWatcher, powerlaw, SciPy and the definitions."""

import json

import numpy as np
import pytest
import scipy.linalg
import scipy.stats
from helpers import power_law_weights
from hypothesis import given
from hypothesis import strategies as st

from bocb_jax.patterns.depth import network_order
from bocb_jax.patterns.spectra import (
    BINS,
    COMPONENTS,
    analyze_layer,
    analyze_weights,
    matrices,
    random_weights,
)
from bocb_jax.patterns.tail import NO_TAIL, fit_tail
from bocb_jax.patterns.tridiagonal import eigenvalues, reduce


@pytest.mark.parametrize("net", power_law_weights.NETS)
def test_alpha_of_every_layer_matches_weightwatcher(net):
    golden = json.loads(power_law_weights.GOLDEN.read_text())[net]
    found = analyze_weights(power_law_weights.weights(net))
    assert [layer.layer for layer in found] == list(golden)
    for layer in found:
        alpha, xmin, distance, stable_rank, *by_powerlaw = golden[layer.layer]
        assert layer.alpha == pytest.approx(alpha, rel=1e-2), layer.layer
        assert layer.xmin == pytest.approx(xmin, rel=1e-4), layer.layer
        assert layer.distance == pytest.approx(distance, abs=1e-4), layer.layer
        assert layer.stable_rank == pytest.approx(stable_rank, rel=1e-5), layer.layer
        # powerlaw 2.0.0 searches for exponents between 1 and 3 only.
        for other in by_powerlaw if alpha < 3 else ():
            assert layer.alpha == pytest.approx(other, rel=1e-2), layer.layer


def scan(values):
    """Fit a tail by the definition: try one start after the other."""
    values = np.sort(values)
    best = np.inf, None, None
    for start in range(len(values) - 1):
        tail = values[start:]
        n = len(tail)
        alpha = 1 + n / np.sum(np.log(tail / tail[0]))
        law = scipy.stats.pareto(alpha - 1, scale=tail[0]).cdf(tail)
        distance = np.abs(law - np.arange(n) / n).max()
        if distance < best[0]:
            best = distance, alpha, start
    return best


@given(st.integers(0, 10**6), st.integers(20, 300), st.floats(0.3, 20), st.floats(1e-4, 1e4))
def test_tail_matches_a_scan_of_all_starts(seed, n, exponent, scale):
    generator = np.random.default_rng(seed)
    values = scale * (generator.pareto(exponent, n) + generator.uniform(0, 2, n) + 1e-3)
    distance, alpha, start = scan(values)
    found = fit_tail(generator.permutation(values))
    assert found.distance == pytest.approx(distance, rel=1e-6)
    assert (found.alpha, found.count) == (pytest.approx(alpha, rel=1e-6), n - start)


def test_tail_finds_a_planted_exponent():
    for alpha in (1.5, 2.5, 4.0, 8.0):
        values = 3 * (1 + np.random.default_rng(1).pareto(alpha - 1, 4000))
        found = fit_tail(values)
        # Four standard errors of the maximum-likelihood exponent.
        assert abs(found.alpha - alpha) < 4 * (alpha - 1) / np.sqrt(found.count)


def test_tails_too_short_or_flat():
    assert fit_tail(np.arange(1.0, 8.0)) is NO_TAIL
    assert fit_tail(np.full(50, 2.0)) is NO_TAIL
    assert fit_tail(np.full(50, np.inf)) is NO_TAIL
    short = np.arange(1.0, 13.0)
    found = fit_tail(short)
    tail = short[short >= found.xmin]
    assert len(tail) >= 8
    assert found.alpha == pytest.approx(1 + (len(tail) - 1) / np.log(tail / tail[0]).sum())


@pytest.mark.parametrize(
    "shape", [(40, 24), (24, 40), (30, 12, 3, 3), (12, 40, 2, 1), (16, 1, 3, 3)]
)
def test_metrics_match_their_definitions(shape):
    array = np.random.default_rng(3).standard_t(4, shape)
    found = analyze_layer("x", 0, array, True)
    counts, _ = np.histogram(array, bins=BINS)
    assert found.entropy == pytest.approx(scipy.stats.entropy(counts), abs=2e-3)
    assert found.l2_norm == pytest.approx(np.linalg.norm(array), rel=1e-12)
    slices = array.reshape(*shape[:2], -1).transpose(2, 0, 1)
    spectral = max(np.linalg.norm(m, 2) for m in slices)
    assert found.stable_rank == pytest.approx((np.linalg.norm(array) / spectral) ** 2)
    filters = array.reshape(shape[0], -1)
    variances = scipy.linalg.svdvals(filters - filters.mean(axis=0)) ** 2
    assert found.pca_ratio == pytest.approx(variances[:COMPONENTS].sum() / variances.sum())


@pytest.mark.parametrize("n", [1, 2, 9, 80])
def test_one_reduction_gives_the_eigenvalues_of_two_matrices(n):
    generator = np.random.default_rng(n)
    matrix = generator.normal(size=(n, n + 5))
    gram = matrix @ matrix.T
    first = generator.normal(size=n)
    first /= np.linalg.norm(first)
    diagonal, off_diagonal = reduce(gram.copy(), first)
    scale = np.linalg.norm(gram) * 1e-13
    expected = np.linalg.eigvalsh(gram)
    np.testing.assert_allclose(eigenvalues(diagonal, off_diagonal), expected, atol=scale)
    np.testing.assert_allclose(eigenvalues(*reduce(gram.copy())), expected, atol=scale)
    # Subtracting a multiple of `first` changes the first entry of the diagonal alone.
    expected = np.linalg.eigvalsh(gram - 3 * np.outer(first, first))
    diagonal[0] -= 3
    np.testing.assert_allclose(eigenvalues(diagonal, off_diagonal), expected, atol=scale)
    # Projecting `first` out removes the first row and column.
    projection = np.eye(n) - np.outer(first, first)
    expected = np.linalg.eigvalsh(projection @ gram @ projection)
    expected = np.delete(expected, np.abs(expected).argmin())
    np.testing.assert_allclose(eigenvalues(diagonal[1:], off_diagonal[1:]), expected, atol=scale)


def test_pca_ratio_of_a_tall_layer():
    array = np.random.default_rng(4).normal(size=(300, 200)) * np.linspace(0.1, 3, 200)
    variances = np.linalg.eigvalsh(np.cov(array.T))[::-1]
    found = analyze_layer("x", 0, array, True).pca_ratio
    assert found == pytest.approx(variances[:COMPONENTS].sum() / variances.sum(), rel=1e-6)


def test_both_layouts_are_the_same_layer():
    torch = np.random.default_rng(5).normal(size=(32, 16, 3, 3)).astype(np.float32)
    flax = torch.transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(matrices(torch, True), matrices(flax, False))
    one = analyze_weights({"a.weight": torch})[0]
    other = analyze_weights({"a.kernel": flax})[0]
    assert (one.alpha, one.entropy) == (other.alpha, other.entropy)


def test_scale_changes_only_the_norm():
    array = np.random.default_rng(6).normal(size=(64, 48))
    one, ten = (analyze_layer("x", 0, k * array, True) for k in (1, 10))
    for name in ("alpha", "entropy", "pca_ratio", "stable_rank"):
        # Rounding may move weights across the edges of bins.
        assert getattr(one, name) == pytest.approx(getattr(ten, name), rel=1e-3)
    assert ten.l2_norm == pytest.approx(10 * one.l2_norm)


def test_non_layers_are_skipped_and_non_finite_layers_are_nan():
    arrays = {
        "pos_embed": np.ones((1, 9, 4)),
        "norm.weight": np.ones(4),
        "fc.bias": np.ones(4),
        "fc.weight": np.full((20, 20), np.nan),
        "zero.weight": np.zeros((20, 20)),
    }
    found = {layer.layer: layer for layer in analyze_weights(arrays)}
    assert set(found) == {"fc", "zero"}
    assert np.isnan(found["fc"].alpha)
    assert np.isnan(found["zero"].alpha)
    assert found["zero"].entropy == 0 == found["zero"].l2_norm


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_entropy_at_any_scale_and_precision(dtype):
    weights = np.linspace(-1, 1, 100 * 64).reshape(100, 64).astype(dtype)
    assert analyze_layer("x", 0, weights, True).entropy == pytest.approx(np.log(BINS), abs=1e-3)
    for factor in (1e-40, 1e38) if dtype != np.float16 else ():
        found = analyze_layer("x", 0, weights * dtype(factor), True).entropy
        assert found == pytest.approx(np.log(BINS), abs=1e-3)
    wide = np.array([[-1, 1], [1, -1]], dtype) * np.finfo(dtype).max
    assert analyze_layer("x", 0, wide, True).entropy in (pytest.approx(np.log(2)), NAN)


NAN = pytest.approx(np.nan, nan_ok=True)


def test_random_weights_are_reproducible_with_variance_one_over_fan_in():
    arrays = {"a.kernel": np.zeros((3, 3, 64, 32)), "b.weight": np.zeros((10, 500)), "c": 0}
    one, two = random_weights(arrays), random_weights(dict(reversed(arrays.items())))
    assert set(one) == {"a.kernel", "b.weight"}
    np.testing.assert_array_equal(one["a.kernel"], two["a.kernel"])
    assert one["a.kernel"].var() * 3 * 3 * 64 == pytest.approx(1, rel=0.05)
    assert one["b.weight"].var() * 500 == pytest.approx(1, rel=0.1)


@pytest.mark.parametrize("net", power_law_weights.NETS)
def test_names_reveal_the_order_of_layers(net):
    names = list(power_law_weights.NETS[net]())
    assert network_order(sorted(names)) == names


def test_downsampling_comes_between_the_stages():
    order = [
        "downsample_layers.0.conv", "stages.0.0.dwconv", "stages.0.0.pwconv1",
        "stages.0.0.pwconv2", "stages.0.2.dwconv", "stages.0.10.dwconv", "downsample_layers.1.conv",
        "stages.1.0.dwconv", "head",
    ]  # fmt: skip
    assert network_order(sorted(order)) == order
    order = ["conv0", "denseblock1.denselayer2.conv1", "denseblock1.denselayer10.conv1"]
    order += ["transition1.conv", "denseblock2.denselayer1.conv1", "classifier"]
    assert network_order(sorted(order)) == order
