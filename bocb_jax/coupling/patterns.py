"""Patterns in trained weights, layer by layer: NumPy and SciPy only.

A layer is a matrix of weights, or a convolution kernel: one matrix of input by output channels for
every position in it, whose eigenvalues are pooled. That, the factor of 1/2 on the
eigenvalues of a convolution, and the smallest eigenvalue that counts (1e-5) are
WeightWatcher's (Martin, Peng and Mahoney, arXiv 2002.06716), with which alpha agrees.
"""

import concurrent.futures
import dataclasses
from collections.abc import Mapping

import numpy as np
import scipy.linalg
import scipy.sparse.linalg
import threadpoolctl

from bocb_jax.coupling.depth import network_order
from bocb_jax.coupling.tail import NO_TAIL, fit_tail

BINS = 100  # of the histogram of weights, equally wide from the smallest to the largest
COMPONENTS = 10  # the k of the top-k principal components
SMALLEST_EIGENVALUE = 1e-5
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
    array = np.asarray(array, np.float64)
    if output_first:
        out, into = array.shape[:2]
        return np.ascontiguousarray(array.reshape(out, into, -1).transpose(2, 0, 1))
    *_, into, out = array.shape
    return np.ascontiguousarray(array.reshape(-1, into, out).transpose(0, 2, 1))


def eigenvalues(slices: np.ndarray) -> np.ndarray:
    """Squared singular values of every matrix, pooled: (positions * min(out, in),), unsorted."""
    _, out, into = slices.shape
    if min(out, into) == 1:
        return np.sum(slices**2, axis=(1, 2))
    if out > into:
        slices = slices.transpose(0, 2, 1)
    found = [
        scipy.linalg.eigvalsh(m @ m.T, overwrite_a=True, check_finite=False, driver="evr")
        for m in slices
    ]
    return np.maximum(np.concatenate(found), 0)


def entropy(weights: np.ndarray) -> float:
    """-sum p ln p over a histogram of BINS equal bins from the smallest weight to the largest."""
    weights = np.ravel(weights)
    low, high = float(weights.min()), float(weights.max())
    if not high > low:
        return 0.0
    # The bins of numpy.histogram but for rounding at their edges, several times as fast.
    places = ((weights - low) * (BINS / (high - low))).astype(np.intp)
    counts = np.bincount(np.minimum(places, BINS - 1), minlength=BINS)
    shares = counts[counts > 0] / len(weights)
    return float(max(0.0, -np.sum(shares * np.log(shares))))


def pca_ratio(slices: np.ndarray, components: int = COMPONENTS) -> float:
    """Share of the variance of a layer's filters in the first principal components.

    The samples are the output units, each a vector of its in * positions weights; the mean over
    units is taken off.
    """
    positions, out, into = slices.shape
    filters = slices.transpose(1, 0, 2).reshape(out, positions * into)
    if out > filters.shape[1]:
        filters = filters - filters.mean(axis=0)
        gram = filters.T @ filters
    else:
        # Taking off the mean afterwards spares a copy of a large layer.
        gram = filters @ filters.T
        mean = gram.mean(axis=0)
        gram += mean.mean() - mean - mean[:, None]
    total = np.trace(gram)
    if not total > 1e-12 * np.sum(filters**2):
        return float("nan")
    size = len(gram)
    if components >= size:
        return 1.0
    if size > 8 * components:
        start = np.random.default_rng(0).normal(size=size)
        top = scipy.sparse.linalg.eigsh(
            gram, components, v0=start, tol=1e-7, return_eigenvectors=False
        )
    else:
        top = scipy.linalg.eigvalsh(gram, subset_by_index=(size - components, size - 1))
    return float(min(1.0, np.sum(top) / total))


def analyze_layer(name: str, depth: int, array: np.ndarray, output_first: bool) -> Layer:
    """All figures of one layer; those that need finite weights are NaN where some are not."""
    kind = "convolution" if np.ndim(array) > 2 else "dense"
    slices = matrices(array, output_first)
    nothing = float("nan")
    if not slices.size or not np.isfinite(slices).all():
        figures = (*dataclasses.astuple(NO_TAIL), nothing, nothing, nothing, nothing)
        return Layer(name, depth, kind, tuple(np.shape(array)), *figures)
    values = eigenvalues(slices)
    scaled = values * (0.5 if kind == "convolution" else 1)
    found = fit_tail(scaled[scaled > SMALLEST_EIGENVALUE])
    largest = values.max()
    return Layer(
        name,
        depth,
        kind,
        tuple(np.shape(array)),
        *(found.alpha, found.xmin, found.count, found.distance),
        entropy=entropy(slices),
        l2_norm=float(np.sqrt(np.vdot(slices, slices))),
        pca_ratio=pca_ratio(slices),
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
