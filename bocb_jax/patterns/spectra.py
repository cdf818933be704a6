"""Metrics of trained weights, layer by layer: alpha, entropy, norm, PCA ratio, stable rank.

A layer is a matrix of weights, or a convolution kernel. A kernel counts as one matrix of output by
input channels for each of its positions, and their eigenvalues are pooled. The pooling, the factor
of 1/2 on the eigenvalues of a convolution and the smallest eigenvalue that counts (1e-5) are
WeightWatcher's (Martin, Peng and Mahoney, arXiv 2002.06716), so alpha agrees with it.
"""

import concurrent.futures
import dataclasses
from collections.abc import Mapping

import numpy as np
import threadpoolctl

from bocb_jax.patterns import tridiagonal
from bocb_jax.patterns.depth import network_order
from bocb_jax.patterns.tail import fit_tail

BINS = 100  # of the histogram of weights, equally wide from the smallest to the largest
COMPONENTS = 10  # principal components that `pca_ratio` counts
MIN_EIGENVALUE = 1e-5
# WeightWatcher calls layers with an alpha below the first over-trained, above the second
# under-trained.
ALPHA_THRESHOLDS = (2.0, 6.0)
_CHUNK = 1 << 15  # weights that are binned together, so that they stay in the cache


@dataclasses.dataclass(frozen=True)
class Layer:
    """Metrics of one layer; NaN where the layer is too small for a metric."""

    layer: str  # name in the file, without ".kernel" or ".weight"
    depth: int  # position along the network; 0 is the first layer
    kind: str  # "dense" or "convolution"
    shape: tuple[int, ...]  # as stored
    alpha: float  # exponent of the power law in the tail of the eigenvalues
    xmin: float  # where the tail starts, in units of the scaled eigenvalues
    tail: int  # number of eigenvalues in the tail
    distance: float  # Kolmogorov-Smirnov distance between tail and power law
    entropy: float  # nats, of the histogram of the weights
    l2_norm: float  # Frobenius norm of all its weights
    pca_ratio: float  # share of the variance in the first COMPONENTS principal components
    stable_rank: float  # sum of the eigenvalues divided by the largest


METRICS = tuple(
    field.name
    for field in dataclasses.fields(Layer)
    if field.name not in ("layer", "depth", "kind", "shape")
)
MAIN_METRICS = ("alpha", "entropy", "l2_norm", "pca_ratio", "stable_rank")  # shown to people


def layer_name(name: str, ndim: int) -> tuple[str, bool] | None:
    """Return the layer that an array belongs to, and whether its output axis comes first.

    Flax stores kernels with the output axis last (..., in, out), PyTorch with it first
    (out, in, ...).

    Args:
      name: of the array, with dots.
      ndim: number of axes of the array.

    Returns:
      None for biases, norms, tokens and tables.
    """
    owner, _, leaf = name.rpartition(".")
    if ndim < 2:
        return None
    if leaf in ("kernel", "w"):
        return owner or name, False
    if leaf == "weight":
        return owner or name, True
    if leaf.endswith("_weight"):
        return name.removesuffix("_weight"), True
    return None


def matrices(array: np.ndarray, output_first: bool) -> np.ndarray:
    """Return a layer's weights as (positions, out, in) in float64.

    Args:
      array: (..., in, out), or (out, in, ...) with `output_first`. A dense layer has one position.
      output_first: the layout of the array.
    """
    array = np.asarray(array)
    if output_first:
        out, into = array.shape[:2]
        slices = array.reshape(out, into, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(slices, np.float64)
    *_, into, out = array.shape
    # Matrix products accept transposed views, so nothing is copied but for the cast.
    return np.asarray(array.reshape(-1, into, out), np.float64).transpose(0, 2, 1)


def spectra(slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a layer's eigenvalues, and its filters' variances along their principal components.

    The samples of the principal component analysis are the output units, each a vector of
    in * positions weights; their mean is subtracted.

    Args:
      slices: from `matrices`, shape (positions, out, in).

    Returns:
      The squared singular values of all matrices, shape (positions * min(out, in),), and the
      variances times the number of units, ascending. None is negative.
    """
    positions, out, into = slices.shape
    if positions == 1:
        return _from_gram(slices[0] @ slices[0].T) if out <= into else _from_tall(slices[0])
    pooled = []
    total = np.zeros(())
    for matrix in slices:
        gram = matrix @ matrix.T if out <= into else matrix.T @ matrix
        total = total + gram
        pooled.append(tridiagonal.eigenvalues(*tridiagonal.reduce(gram)))
    if out <= into:
        variances = _from_gram(total)[1]  # Gram matrices of units add up over the positions
    else:
        filters = slices.transpose(1, 0, 2).reshape(out, positions * into)
        wide = out <= filters.shape[1]
        variances = (_from_gram(filters @ filters.T) if wide else _from_tall(filters))[1]
    return np.maximum(np.concatenate(pooled), 0), variances


def _from_gram(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues of a Gram matrix of units (n, n), and those after centering.

    Centering (subtracting the mean over units) leaves nothing along the vector of ones. With that
    vector as first axis, it removes the first row and column of the tridiagonal form.
    """
    ones = np.full(len(gram), len(gram) ** -0.5)
    diagonal, off_diagonal = tridiagonal.reduce(gram, ones)
    values = tridiagonal.eigenvalues(diagonal, off_diagonal)
    centered = tridiagonal.eigenvalues(diagonal[1:], off_diagonal[1:])
    return np.maximum(values, 0), np.maximum(centered, 0)


def _from_tall(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the same for a matrix (units, inputs) with more units than inputs.

    The Gram matrix is that of the inputs; centering changes it along the mean unit alone.
    """
    mean = matrix.mean(axis=0)
    size = np.linalg.norm(mean)
    first_axis = mean / size if size > 0 else np.eye(len(mean))[0]
    diagonal, off_diagonal = tridiagonal.reduce(matrix.T @ matrix, first_axis)
    values = tridiagonal.eigenvalues(diagonal, off_diagonal)
    diagonal[0] -= len(matrix) * size**2
    centered = tridiagonal.eigenvalues(diagonal, off_diagonal)
    return np.maximum(values, 0), np.maximum(centered, 0)


def entropy(weights: np.ndarray) -> float:
    """Return -sum p ln p, in nats, over BINS equal bins from the smallest weight to the largest.

    Args:
      weights: of any shape, in float32 or float64; binned in that precision if their range allows.

    Returns:
      NaN if the range overflows.
    """
    weights = np.ravel(weights)
    low, high = float(weights.min()), float(weights.max())
    if not high > low:
        return 0.0
    limits = np.finfo(weights.dtype)
    if not 1e3 * float(limits.tiny) < high - low < float(limits.max) / 2:
        weights = weights.astype(np.float64)
    scale = weights.dtype.type(BINS / (high - low))
    if not np.isfinite(scale) or scale == 0:
        return float("nan")
    counts = np.zeros(BINS + 1, np.int64)  # the largest weight may fall into one bin more
    for begin in range(0, len(weights), _CHUNK):
        scaled = weights[begin : begin + _CHUNK] - weights.dtype.type(low)
        scaled *= scale
        counts += np.bincount(scaled.astype(np.intp), minlength=BINS + 1)
    counts[BINS - 1] += counts[BINS]
    counts = counts[:BINS]
    shares = counts[counts > 0] / len(weights)
    return float(max(0.0, -np.sum(shares * np.log(shares))))


def pca_ratio(variances: np.ndarray, size: float, components: int = COMPONENTS) -> float:
    """Return the share of the variance of a layer's filters in the first principal components.

    Args:
      variances: from `spectra`, ascending.
      size: sum of the squares of the layer's weights.
      components: how many to count.

    Returns:
      In [0, 1]; NaN if all filters are the same.
    """
    total = variances.sum()
    if not total > 1e-12 * size:
        return float("nan")
    return float(min(1.0, variances[-components:].sum() / total))


def analyze_layer(name: str, depth: int, array: np.ndarray, output_first: bool) -> Layer:
    """Return the metrics of one layer; all are NaN if a weight is not finite.

    Args:
      name, depth: of the layer.
      array, output_first: its weights and their layout, as for `matrices`.
    """
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    kind = "convolution" if array.ndim > 2 else "dense"
    about = name, depth, kind, array.shape
    nan = float("nan")
    unknown = Layer(
        *about, alpha=nan, xmin=nan, tail=0, distance=nan, entropy=nan, l2_norm=nan, pca_ratio=nan,
        stable_rank=nan,
    )  # fmt: skip
    if not array.size:
        return unknown
    slices = matrices(array, output_first)
    flat = slices.ravel(order="K")  # does not copy
    size = float(np.vdot(flat, flat))
    if not np.isfinite(size):
        return unknown
    values, variances = spectra(slices)
    scaled = values * (0.5 if kind == "convolution" else 1)
    tail = fit_tail(scaled[scaled > MIN_EIGENVALUE])
    largest = values.max()
    return dataclasses.replace(
        unknown,
        alpha=tail.alpha,
        xmin=tail.xmin,
        tail=tail.count,
        distance=tail.distance,
        entropy=entropy(array),
        l2_norm=float(np.sqrt(size)),
        pca_ratio=pca_ratio(variances, size),
        stable_rank=float(values.sum() / largest) if largest > 0 else nan,
    )


def analyze_weights(
    arrays: Mapping[str, np.ndarray], *, ordered: bool = False, threads: int = 2
) -> list[Layer]:
    """Return the metrics of every layer of one set of weights, by depth.

    Args:
      arrays: by dotted name, in Flax's or PyTorch's layout; biases, norms, tokens and tables are
        skipped.
      ordered: whether the arrays come in the order of the network; if not, their names decide.
      threads: number of layers to analyze at once.
    """
    found = {}
    for name, array in arrays.items():
        layer = layer_name(name, np.ndim(array))
        if layer and np.asarray(array).dtype.kind not in "iub":
            found[layer[0]] = array, layer[1]
    names = list(found) if ordered else network_order(list(found))
    jobs = [(name, depth, *found[name]) for depth, name in enumerate(names)]
    # Largest first, so that no thread starts on a large layer last.
    jobs.sort(key=lambda job: -np.size(job[2]))
    # There are many small matrices: one core per layer is faster than all cores on each.
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        layers = list(pool.map(lambda job: analyze_layer(*job), jobs))
    return sorted(layers, key=lambda layer: layer.depth)


def random_weights(arrays: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Return Gaussian weights of the same names and shapes, of variance 1 / fan-in, in float32.

    They stand in for the initialization where it is not known. Arrays that are no layers are left
    out.
    """
    made = {}
    for name, array in arrays.items():
        layer = layer_name(name, np.ndim(array))
        if layer:
            shape = np.shape(array)
            out = shape[0] if layer[1] else shape[-1]
            # Seeded by the name, so that a layer does not depend on what else the file holds.
            generator = np.random.default_rng([seed, *name.encode()])
            made[name] = generator.normal(0, np.sqrt(out / np.prod(shape)), shape).astype(
                np.float32
            )
    return made
