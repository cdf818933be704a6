"""Patterns in trained weights, layer by layer: alpha, entropy, norm, components, stable rank.

A layer is a matrix of weights, or a convolution kernel: one matrix of input by output channels for
every position in it, whose eigenvalues are pooled. That, the factor of 1/2 on the
eigenvalues of a convolution, and the smallest eigenvalue that counts (1e-5) are
WeightWatcher's (Martin, Peng and Mahoney, arXiv 2002.06716), with which alpha agrees.
"""

import concurrent.futures
import dataclasses
from collections.abc import Mapping

import numpy as np
import threadpoolctl

from bocb_jax.patterns import tridiagonal
from bocb_jax.patterns.depth import network_order
from bocb_jax.patterns.tail import NO_TAIL, fit_tail

BINS = 100  # of the histogram of weights, equally wide from the smallest to the largest
COMPONENTS = 10  # the k of the top-k principal components
SMALLEST_EIGENVALUE = 1e-5
_AT_ONCE = 1 << 15  # weights that are sorted into bins together: they stay in the cache
# Below alpha 2 a layer is held to be over-trained, above 6 under-trained.
THRESHOLDS = (2.0, 6.0)


@dataclasses.dataclass(frozen=True)
class Layer:
    """Figures of one layer; NaN where it is too small for one."""

    layer: str  # the user's name, without ".kernel" or ".weight"
    depth: int  # 0 is where the image comes in
    kind: str  # "dense" or "convolution"
    shape: tuple[int, ...]  # as it is stored
    alpha: float
    xmin: float  # in units of the scaled eigenvalues
    tail: int  # eigenvalues in the tail
    distance: float  # Kolmogorov-Smirnov distance of tail and power law
    entropy: float  # nats, of the histogram of the weights
    l2_norm: float  # Frobenius norm of all its weights
    pca_ratio: float  # share of the variance in the first COMPONENTS principal components
    stable_rank: float  # sum of the eigenvalues by the largest


def layer_name(name: str, ndim: int) -> tuple[str, bool] | None:
    """The name of the layer that an array belongs to, and whether its output axis comes first.

    Kernels as Flax stores them have the output last (..., in, out), PyTorch's have it first
    (out, in, ...). Biases, norms, tokens and tables are no layers: None.
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
    """A layer's weights as (positions, out, in) in float64; one position for a dense layer."""
    array = np.asarray(array)
    if output_first:
        out, into = array.shape[:2]
        slices = array.reshape(out, into, -1).transpose(2, 0, 1)
        return np.ascontiguousarray(slices, np.float64)
    *_, into, out = array.shape
    # A product does not care which of its factors is transposed: no copy, only float64.
    return np.asarray(array.reshape(-1, into, out), np.float64).transpose(0, 2, 1)


def spectra(slices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues of a layer, and the variances of its filters along their principal components.

    The samples of the components are the output units, each a vector of its in * positions weights;
    the mean over units is taken off.

    Args:
      slices: from `matrices`.

    Returns:
      Squared singular values of every matrix, pooled, shape (positions * min(out, in),), and the
      variances times the number of units, ascending; neither is below 0.
    """
    positions, out, into = slices.shape
    if positions == 1:
        return _of_units(slices[0] @ slices[0].T) if out <= into else _of_inputs(slices[0])
    pooled, total = [], 0
    for matrix in slices:
        gram = matrix @ matrix.T if out <= into else matrix.T @ matrix
        total = total + gram
        pooled.append(tridiagonal.eigenvalues(*tridiagonal.reduce(gram)))
    if out <= into:
        variances = _of_units(total)[1]  # products of units add up over the positions
    else:
        filters = slices.transpose(1, 0, 2).reshape(out, positions * into)
        small = out <= filters.shape[1]
        variances = (_of_units(filters @ filters.T) if small else _of_inputs(filters))[1]
    return np.maximum(np.concatenate(pooled), 0), variances


def _of_units(gram):
    """Eigenvalues of a Gram matrix of units, and of the same with the mean over units taken off.

    Taking it off leaves nothing along the vector of ones: with that as first axis, all but the
    first row and column of the tridiagonal form are as they were.
    """
    ones = np.full(len(gram), len(gram) ** -0.5)
    diagonal, beside = tridiagonal.reduce(gram, ones)
    values = tridiagonal.eigenvalues(diagonal, beside)
    centered = tridiagonal.eigenvalues(diagonal[1:], beside[1:])
    return np.maximum(values, 0), np.maximum(centered, 0)


def _of_inputs(matrix):
    """The same of a matrix with more units (rows) than inputs, by the products of its inputs.

    Taking off the mean changes these along that mean alone.
    """
    mean = matrix.mean(axis=0)
    size = np.linalg.norm(mean)
    first = mean / size if size > 0 else np.eye(len(mean))[0]
    diagonal, beside = tridiagonal.reduce(matrix.T @ matrix, first)
    values = tridiagonal.eigenvalues(diagonal, beside)
    diagonal[0] -= len(matrix) * size**2
    return np.maximum(values, 0), np.maximum(tridiagonal.eigenvalues(diagonal, beside), 0)


def entropy(weights: np.ndarray) -> float:
    """-sum p ln p over a histogram of BINS equal bins from the smallest weight to the largest.

    Counted in the weights' own precision, float32 or float64; NaN for an infinite range.
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
    counts = np.zeros(BINS + 1, np.int64)  # the largest weight alone may fall into one more
    for begin in range(0, len(weights), _AT_ONCE):
        places = weights[begin : begin + _AT_ONCE] - weights.dtype.type(low)
        places *= scale
        counts += np.bincount(places.astype(np.intp), minlength=BINS + 1)
    counts[BINS - 1] += counts[BINS]
    counts = counts[:BINS]
    shares = counts[counts > 0] / len(weights)
    return float(max(0.0, -np.sum(shares * np.log(shares))))


def pca_ratio(variances: np.ndarray, size: float, components: int = COMPONENTS) -> float:
    """Share of the variance of a layer's filters in the first principal components.

    Args:
      variances: from `spectra`, ascending.
      size: sum of the squares of the layer's weights.
      components: how many.

    Returns:
      In [0, 1]; NaN where the filters are all the same.
    """
    total = variances.sum()
    if not total > 1e-12 * size:
        return float("nan")
    return float(min(1.0, variances[-components:].sum() / total))


def analyze_layer(name: str, depth: int, array: np.ndarray, output_first: bool) -> Layer:
    """All figures of one layer; those that need finite weights are NaN where some are not."""
    array = np.asarray(array)
    if array.dtype not in (np.float32, np.float64):
        array = array.astype(np.float32)
    about = name, depth, "convolution" if array.ndim > 2 else "dense", array.shape
    nothing = float("nan")
    nowhere = Layer(*about, *dataclasses.astuple(NO_TAIL), nothing, nothing, nothing, nothing)
    if not array.size:
        return nowhere
    slices = matrices(array, output_first)
    flat = slices.ravel(order="K")  # without a copy
    size = float(np.vdot(flat, flat))
    if not np.isfinite(size):
        return nowhere
    values, variances = spectra(slices)
    scaled = values * (0.5 if about[2] == "convolution" else 1)
    found = fit_tail(scaled[scaled > SMALLEST_EIGENVALUE])
    largest = values.max()
    return Layer(
        *about,
        *(found.alpha, found.xmin, found.count, found.distance),
        entropy=entropy(array),
        l2_norm=float(np.sqrt(size)),
        pca_ratio=pca_ratio(variances, size),
        stable_rank=float(values.sum() / largest) if largest > 0 else nothing,
    )


def analyze_weights(
    arrays: Mapping[str, np.ndarray], *, ordered: bool = False, threads: int = 2
) -> list[Layer]:
    """The figures of every layer of one set of weights, by depth.

    Args:
      arrays: by name with dots, in Flax's or PyTorch's layout; biases, norms, tokens and tables are
        passed over.
      ordered: the arrays come in the order of the network; else their names decide.
      threads: layers that are worked on at a time.
    """
    found = {}
    for name, array in arrays.items():
        which = layer_name(name, np.ndim(array))
        if which and np.asarray(array).dtype.kind not in "iub":
            found[which[0]] = array, which[1]
    names = list(found) if ordered else network_order(list(found))
    jobs = [(name, depth, *found[name]) for depth, name in enumerate(names)]
    # Large ones first, so that no thread is left with the largest at the end.
    jobs.sort(key=lambda job: -np.size(job[2]))
    # Matrices are small and many: one core a layer is quicker than many cores for each.
    with (
        threadpoolctl.threadpool_limits(1, user_api="blas"),
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
    ):
        layers = list(pool.map(lambda job: analyze_layer(*job), jobs))
    return sorted(layers, key=lambda layer: layer.depth)


def random_weights(arrays: Mapping[str, np.ndarray], seed: int = 0) -> dict[str, np.ndarray]:
    """Gaussian weights of the same names and shapes with variance 1 / fan-in, in float32.

    Stands in for the initialization where that is not known.
    """
    made = {}
    for name, array in arrays.items():
        which = layer_name(name, np.ndim(array))
        if which:
            shape = np.shape(array)
            out = shape[0] if which[1] else shape[-1]
            # By the layer's name, so that it is the same whatever else the file holds.
            generator = np.random.default_rng([seed, *name.encode()])
            made[name] = generator.normal(0, np.sqrt(out / np.prod(shape)), shape).astype(
                np.float32
            )
    return made
