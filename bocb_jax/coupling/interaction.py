"""Tests of the interaction of backbone and optimizer, also where the noise is unequal.

An F test that pools the noise of all cells takes one noisy cell for coupling: a single cell ten
times as noisy as the others makes it reject in a quarter of tables without any.
"""

import dataclasses

import numpy as np
import pandas
from scipy import sparse, stats

from bocb_jax.coupling import noncentral
from bocb_jax.coupling.cells import Cells, cells_of, cells_of_table, noise_variance
from bocb_jax.coupling.rounding import p_text
from bocb_jax.coupling.score_table import ScoreTable

# Variances count as equal only where a test of that finds nothing even at this level. A lower one
# (0.1) misses a noisy cell of three seeds so often that F then rejects in 8 % instead of 5 %.
_EQUAL_LEVEL = 0.3
_EQUAL_LEVEL_OF_TWO = 0.5  # with two seeds a cell, where a noisy cell shows even less
# Bounds of the bootstrap: multiplications in all, and numbers at once. Below so many draws no
# p-value of 0.01 could come out.
_MOST_OPERATIONS = 4e9
_MOST_NUMBERS = 2**20
_FEWEST_DRAWS = 99
# Added to the diagonal of correlation-like matrices, so that rounding cannot make them singular.
_RIDGE = 1e-12


@dataclasses.dataclass(frozen=True)
class InteractionTest:
    """Test of the additive model: every optimizer is ahead by as much on every backbone."""

    method: str  # "F", "parametric bootstrap" or "given noise"
    # Mean square of the interaction, over the variance of the noise; in the bootstrap each cell
    # counts in units of its own noise.
    statistic: float
    degrees_of_freedom: tuple[float, float]  # of the interaction, of the noise (infinite if given)
    p_value: float
    # Whether the cells may share one variance (Bartlett's statistic against draws); None if the
    # noise is given.
    equal_variances_p: float | None
    draws: int  # of the bootstrap, else 0
    cells: int  # that the test uses
    left_out: int  # cells of one run, which the bootstrap cannot use
    floored: int  # cells whose seeds agree exactly
    description: str  # of method and choice, in a sentence or two


def interaction_test(
    table: ScoreTable, *, resamples: int = 2000, seed: int = 0
) -> InteractionTest | None:
    """Test whether backbone and optimizer interact.

    With seeds: F where all cells may have one variance, else the parametric bootstrap of the
    variance-weighted interaction (Krishnamoorthy, Lu and Mathew 2007). Without: F with the noise
    that the table gives for each figure.

    Args:
      table: the scores; runs that did not finish have none.
      resamples: draws of the bootstrap; large tables get fewer.
      seed: of the draws.

    Returns:
      None if the noise is not known or zero, or the additive model leaves no degree of freedom.
    """
    cells = cells_of_table(table)
    if noise_variance(cells) is None:
        return _with_given_noise(table)
    kept = np.repeat(cells.counts > 1, cells.counts)
    part = cells_of(
        cells.values[kept],
        np.repeat(cells.optimizer, cells.counts)[kept],
        np.repeat(cells.backbone, cells.counts)[kept],
        cells.shape,
    )
    variances, floored = _variances(part)
    if variances is None or cells.degrees_of_freedom[0] < 1:
        return None
    rng = np.random.default_rng(seed)
    equal_p = _equal_variances_p(variances, part.counts, resamples, rng)
    level = _EQUAL_LEVEL_OF_TWO if np.median(part.counts) < 3 else _EQUAL_LEVEL
    if equal_p > level:
        return _pooled(cells, equal_p)
    if part.degrees_of_freedom[0] < 1:
        return None
    draws = _affordable(part.shape, resamples)
    statistic, p_value = _bootstrap(part, variances, draws, rng)
    left_out = len(cells.counts) - len(part.counts)
    return InteractionTest(
        method="parametric bootstrap",
        statistic=statistic / part.degrees_of_freedom[0],
        degrees_of_freedom=(part.degrees_of_freedom[0], part.degrees_of_freedom[1]),
        p_value=p_value,
        equal_variances_p=equal_p,
        draws=draws,
        cells=len(part.counts),
        left_out=left_out,
        floored=floored,
        description=_described_bootstrap(equal_p, draws, left_out, floored),
    )


def _variances(cells: Cells) -> tuple[np.ndarray | None, int]:
    """Return each cell's variance, and how many cells had none and take the smallest other one.

    Seeds that agree exactly (scores of few digits, a saturated backbone) would weigh infinitely;
    all that they show is a variance below what the others have. None if all cells are such.
    """
    means = cells.means(cells.values)
    squares = (cells.values - np.repeat(means, cells.counts)) ** 2
    variances = np.add.reduceat(squares, cells.starts) / (cells.counts - 1)
    zero = variances <= (1e-9 * np.abs(cells.values).max()) ** 2
    if zero.all():
        return None, len(variances)
    return np.where(zero, variances[~zero].min(), variances), int(zero.sum())


def _equal_variances_p(
    variances: np.ndarray, counts: np.ndarray, draws: int, rng: np.random.Generator
) -> float:
    """Return the p-value of equal variances: the smaller of two tests, doubled.

    Bartlett's statistic sees that many variances differ, the largest share of the sum (Cochran's
    C) a single noisy cell. Both are compared with draws, because Bartlett's chi-square needs more
    seeds than 3.
    """
    degrees = counts - 1.0

    def statistics(variances: np.ndarray) -> np.ndarray:
        squares = variances * degrees
        total = squares.sum(axis=-1)
        bartlett = degrees.sum() * np.log(total) - np.log(variances) @ degrees
        return np.stack([bartlett, squares.max(axis=-1) / total])

    observed, larger = statistics(variances), np.zeros(2)
    step = max(1, _MOST_NUMBERS // len(degrees))
    draws = min(draws, max(_FEWEST_DRAWS, 32 * step))
    for start in range(0, draws, step):
        size = (min(step, draws - start), len(degrees))
        drawn = statistics(rng.chisquare(degrees, size) / degrees)
        larger += (drawn >= observed[:, None]).sum(axis=1)
    return float(min(1, 2 * (1 + larger.min()) / (1 + draws)))


def _pooled(cells: Cells, equal_p: float) -> InteractionTest | None:
    noise = noise_variance(cells)
    between, within = cells.degrees_of_freedom
    residuals = cells.interaction(cells.means(cells.values))
    if not noise:
        return None
    f = float((cells.counts * residuals**2).sum()) / between / noise
    return InteractionTest(
        method="F",
        statistic=f,
        degrees_of_freedom=(between, within),
        p_value=noncentral.f_p_value(f, between, within),
        equal_variances_p=equal_p,
        draws=0,
        cells=len(cells.counts),
        left_out=0,
        floored=0,
        description=(
            "F test with the noise pooled over all cells, whose variances differ no more than "
            f"seeds let expect ({p_text(equal_p)})."
        ),
    )


def _with_given_noise(table: ScoreTable) -> InteractionTest | None:
    """Return F with the noise that the table gives, for one figure a cell."""
    runs = table.runs[table.runs["score"].notna()]
    spread = table.figure_noise()
    known = (spread > 0).to_numpy()
    runs, spread = runs[known], spread[known]
    rows = pandas.Index(table.optimizers).get_indexer(runs["optimizer"])
    columns = pandas.Index(table.backbones).get_indexer(runs["backbone"])
    shape = len(table.optimizers), len(table.backbones)
    values = runs["score"].to_numpy(float)
    cells = cells_of(values, rows, columns, shape)
    between = cells.degrees_of_freedom[0]
    if between < 1:
        return None
    means, weights = np.zeros(shape), np.zeros(shape)
    means[rows, columns] = values - values.mean()
    weights[rows, columns] = spread.to_numpy(float) ** -2
    squares = float(_Fit(weights > 0).squares(means, weights))
    return InteractionTest(
        method="given noise",
        statistic=squares / between,
        degrees_of_freedom=(between, np.inf),
        p_value=float(stats.chi2.sf(squares, between)),
        equal_variances_p=None,
        draws=0,
        cells=len(cells.counts),
        left_out=int((~known).sum()),
        floored=0,
        description="F test with the noise that is given for each figure: no cell has two seeds.",
    )


# -- the parametric bootstrap ----------------------------------------------------------------------


class _Fit:
    """Additive fits to grids (..., optimizers, backbones) of which each has weights of its own."""

    def __init__(self, present: np.ndarray) -> None:
        """Find what the cells connect.

        Args:
          present: (optimizers, backbones) whether there is a cell.
        """
        self._turned = present.shape[0] < present.shape[1]
        if self._turned:
            present = present.T
        # Rows are eliminated. Of the columns that cells connect, one term is set to 0.
        number, part = sparse.csgraph.connected_components(
            present.T.astype(float) @ present > 0, directed=False
        )
        fixed = [int(np.flatnonzero(part == i)[0]) for i in range(number)]
        self._free = np.setdiff1d(np.arange(present.shape[1]), fixed)

    def squares(self, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return the weighted sums of squared residuals.

        Args:
          values: (..., optimizers, backbones), finite.
          weights: the same shape, 0 where there is no cell.
        """
        if self._turned:
            values, weights = values.swapaxes(-1, -2), weights.swapaxes(-1, -2)
        totals = weights.sum(axis=-1, keepdims=True)
        shares = weights / np.where(totals > 0, totals, 1)
        centered = values - (shares * values).sum(axis=-1, keepdims=True)
        if len(self._free):
            own = weights[..., self._free]
            left = -own.swapaxes(-1, -2) @ shares[..., self._free]
            diagonal = np.arange(len(self._free))
            left[..., diagonal, diagonal] += own.sum(axis=-2)
            right = (own * centered[..., self._free]).sum(axis=-2)
            # Weights differ by many powers of ten: without the scale, digits would be lost.
            scale = 1 / np.sqrt(left[..., diagonal, diagonal])
            left = left * scale[..., :, None] * scale[..., None, :]
            left[..., diagonal, diagonal] += _RIDGE
            terms = scale * np.linalg.solve(left, (right * scale)[..., None])[..., 0]
            among = shares[..., self._free] @ terms[..., None]
            centered[..., self._free] -= terms[..., None, :]
            centered = centered + among
        return (weights * centered**2).sum(axis=(-1, -2))


def _affordable(shape: tuple[int, int], resamples: int) -> int:
    cells, short = shape[0] * shape[1], min(shape)
    most = int(_MOST_OPERATIONS / (cells * short + short**3 / 3 + 100 * cells))
    return min(resamples, max(_FEWEST_DRAWS, most))


def _bootstrap(
    cells: Cells, variances: np.ndarray, draws: int, rng: np.random.Generator
) -> tuple[float, float]:
    """Return the weighted sum of squares of the interaction, and its p-value.

    A draw has the table's gaps and counts, no interaction, and in every cell the variance that its
    seeds show; its weights come from variances that are drawn too.
    """
    rows, columns = np.unique(cells.optimizer), np.unique(cells.backbone)
    shape = len(rows), len(columns)
    at = np.searchsorted(rows, cells.optimizer), np.searchsorted(columns, cells.backbone)
    degrees = cells.counts - 1.0
    errors = variances / cells.counts  # of the means
    present = np.zeros(shape, bool)
    present[at] = True
    fit = _Fit(present)

    def squares(means: np.ndarray, errors: np.ndarray) -> np.ndarray:
        grids = np.zeros((2, *means.shape[:-1], *shape))
        grids[0][..., at[0], at[1]] = means
        grids[1][..., at[0], at[1]] = 1 / errors
        return fit.squares(*grids)

    means = cells.means(cells.values)
    observed = float(squares(means - means.mean(), errors))
    step, larger = max(1, _MOST_NUMBERS // present.size), 0
    for start in range(0, draws, step):
        size = (min(step, draws - start), len(errors))
        drawn = rng.standard_normal(size) * np.sqrt(errors)
        found = squares(drawn, errors * rng.chisquare(degrees, size) / degrees)
        larger += int((found >= observed).sum())
    return observed, (1 + larger) / (1 + draws)


def _described_bootstrap(equal_p: float, draws: int, left_out: int, floored: int) -> str:
    text = (
        "Parametric bootstrap in which every cell counts by its own noise (Krishnamoorthy, Lu and "
        f"Mathew 2007; {draws} draws), because the variances of the cells may differ "
        f"({p_text(equal_p)})."
    )
    if left_out:
        cells = "1 cell of one run is" if left_out == 1 else f"{left_out} cells of one run are"
        text += f" {cells} left out."
    if floored:
        cells = (
            "The seeds of 1 cell agree" if floored == 1 else f"The seeds of {floored} cells agree"
        )
        text += f" {cells} exactly: the smallest variance of the others stands in."
    return text
