"""Runs of a table grouped by cell, as arrays, and the noise between the seeds of a cell."""

import dataclasses
import functools

import numpy as np
import pandas
from scipy import sparse

from bocb_jax.coupling.score_table import ScoreTable

# Cells that a table may have for sections whose cost grows faster than the table: axes, clusters,
# and tests of all pairs.
MOST_CELLS = 20_000
# Numbers that the resamples of a table may hold together; a larger table gets fewer of them.
_MOST_NUMBERS = 2**26
_FEWEST_RESAMPLES = 50


@dataclasses.dataclass(frozen=True)
class Cells:
    """Scores of a table as arrays, sorted by cell, and the additive model of their means.

    Attributes:
      values: (runs,) scores.
      counts: (cells,) runs of each cell, all at least 1.
      optimizer, backbone: (cells,) indices of row and column.
      shape: number of optimizers, of backbones.
      inverse: (optimizers + backbones, same), a generalized inverse of the normal equations of the
        additive model, in which a cell weighs as many runs as it has.
      rank: number of free parameters of the additive model.
    """

    values: np.ndarray
    counts: np.ndarray
    optimizer: np.ndarray
    backbone: np.ndarray
    shape: tuple[int, int]
    inverse: np.ndarray
    rank: int

    @property
    def starts(self) -> np.ndarray:
        """(cells,) index in `values` of each cell's first run."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    @property
    def degrees_of_freedom(self) -> tuple[int, int]:
        """Of the interaction, and of the noise within cells."""
        cells = len(self.counts)
        return cells - self.rank, len(self.values) - cells

    @property
    def leverage(self) -> np.ndarray:
        """(cells,) share of each cell's own noise that the additive fit absorbs, 0 to 1."""
        column = self.shape[0] + self.backbone
        own = np.diag(self.inverse)
        both = self.inverse[self.optimizer, column]
        return self.counts * (own[self.optimizer] + own[column] + 2 * both)

    @functools.cached_property
    def _weighted_members(self) -> sparse.csr_array:
        """(optimizers + backbones, cells): the runs that a cell adds to its row and its column."""
        cells = len(self.counts)
        groups = np.concatenate([self.optimizer, self.shape[0] + self.backbone])
        indices = groups, np.tile(np.arange(cells), 2)
        return sparse.csr_array((np.tile(self.counts, 2), indices), (sum(self.shape), cells))

    def means(self, values: np.ndarray) -> np.ndarray:
        """Average (..., runs) values to (..., cells)."""
        return np.add.reduceat(values, self.starts, axis=-1) / self.counts

    def interaction(self, means: np.ndarray) -> np.ndarray:
        """Return the residuals (..., cells) of the additive fit to means (..., cells)."""
        terms = self._terms(means)
        column = self.shape[0] + self.backbone
        return means - terms[..., self.optimizer] - terms[..., column]

    def _terms(self, means: np.ndarray) -> np.ndarray:
        """Return row and column terms (..., optimizers + backbones) of the additive fit."""
        flat = means.reshape(-1, means.shape[-1])
        # The common level would cost digits: it is far larger than the differences.
        level = flat.mean(axis=1, keepdims=True)
        terms = (self._weighted_members @ (flat - level).T).T @ self.inverse
        terms[:, : self.shape[0]] += level
        return terms.reshape(*means.shape[:-1], -1)

    def effects(self) -> tuple[float, np.ndarray, np.ndarray]:
        """Return mean, row effects and column effects of the additive fit, each set with mean 0."""
        fitted = self._terms(self.means(self.values))
        # A row or a column without any score has no effect.
        fitted[np.setdiff1d(np.arange(self.shape[0]), self.optimizer)] = np.nan
        fitted[self.shape[0] + np.setdiff1d(np.arange(self.shape[1]), self.backbone)] = np.nan
        rows, columns = fitted[: self.shape[0]], fitted[self.shape[0] :]
        centers = np.nanmean(rows), np.nanmean(columns)
        return float(sum(centers)), rows - centers[0], columns - centers[1]

    def grid(self, values: np.ndarray) -> np.ndarray:
        """Spread (cells,) values to (optimizers, backbones), NaN where there is no cell."""
        full = np.full(self.shape, np.nan)
        full[self.optimizer, self.backbone] = values
        return full


def cells_of(
    values: np.ndarray, optimizer: np.ndarray, backbone: np.ndarray, shape: tuple[int, int]
) -> Cells:
    """Group runs by cell, and fit the additive model to the cells that have runs.

    Args:
      values: (runs,) finite scores.
      optimizer, backbone: (runs,) indices of row and column.
      shape: number of optimizers, of backbones.
    """
    optimizer, backbone = np.asarray(optimizer), np.asarray(backbone)
    number = optimizer * shape[1] + backbone
    order = np.argsort(number, kind="stable")
    cell, counts = np.unique(number, return_counts=True)
    rows, columns = np.divmod(cell, shape[1])
    runs = np.zeros(shape)
    runs[rows, columns] = counts
    inverse, rank = _inverse(runs)
    return Cells(
        values=np.asarray(values, float)[order],
        counts=counts,
        optimizer=rows,
        backbone=columns,
        shape=(shape[0], shape[1]),
        inverse=inverse,
        rank=rank,
    )


def _inverse(runs: np.ndarray) -> tuple[np.ndarray, int]:
    """Invert the normal equations of the additive model, and return the model's rank as well.

    The longer side is eliminated, so the cost is that of the eigenvalues of the shorter one:
    a design matrix would have cells x (optimizers + backbones) numbers, 15 GiB for 1,000 x 1,000.

    Args:
      runs: (optimizers, backbones) counts.
    """
    rows, columns = runs.shape
    if rows < columns:
        turned, rank = _inverse(runs.T)
        order = np.r_[columns : rows + columns, :columns]
        return turned[np.ix_(order, order)], rank
    totals = runs.sum(axis=1)
    reciprocal = np.divide(1.0, totals, out=np.zeros(rows), where=totals > 0)
    scaled = reciprocal[:, None] * runs
    left = np.diag(runs.sum(axis=0)) - runs.T @ scaled
    # Of every part of the table that no cell connects with the rest, one column is redundant;
    # a column without runs is a part of its own, and so is a row, which is no column's matter.
    linked = sparse.csgraph.connected_components(runs.T @ runs > 0, directed=False)[0]
    sizes, vectors = np.linalg.eigh(left)
    kept = vectors[:, linked:]
    short = (kept / sizes[linked:]) @ kept.T
    across = -scaled @ short
    inverse = np.block([[np.diag(reciprocal) - across @ scaled.T, across], [across.T, short]])
    return inverse, int((totals > 0).sum()) + columns - linked


def cells_of_table(table: ScoreTable) -> Cells:
    """Group the runs of a table that have a score."""
    runs = table.runs[table.runs["score"].notna()]
    return cells_of(
        runs["score"].to_numpy(float),
        pandas.Index(table.optimizers).get_indexer(runs["optimizer"]),
        pandas.Index(table.backbones).get_indexer(runs["backbone"]),
        (len(table.optimizers), len(table.backbones)),
    )


def noise_variance(cells: Cells) -> float | None:
    """Return the pooled variance within cells; None if no cell has two runs.

    0, and not some rounding, where the runs of every cell agree.
    """
    degrees = cells.degrees_of_freedom[1]
    if degrees == 0:
        return None
    within = cells.values - np.repeat(cells.means(cells.values), cells.counts)
    variance = float((within**2).sum() / degrees)
    return variance if variance > 1e-24 * (cells.values**2).mean() else 0.0


def resampled_means(cells: Cells, resamples: int, rng: np.random.Generator) -> np.ndarray | None:
    """Return (resamples, cells) means of seeds drawn with replacement within cells.

    Residuals are widened by sqrt(n / (n - 1)), without which n = 3 seeds give intervals a fifth
    too narrow. Cells of one run borrow residuals from all others; None if no cell has two runs.
    Tables of more than some 30,000 cells get fewer resamples, which bounds the memory.
    """
    if noise_variance(cells) is None:
        return None
    means = cells.means(cells.values)
    n = np.repeat(cells.counts, cells.counts)
    residuals = cells.values - np.repeat(means, cells.counts)
    residuals = residuals * np.sqrt(n / np.maximum(n - 1, 1))
    pool = residuals[n > 1]
    resamples = min(resamples, max(_FEWEST_RESAMPLES, _MOST_NUMBERS // len(means)))
    drawn = np.empty((resamples, len(means)))
    for cell, (start, count) in enumerate(zip(cells.starts, cells.counts, strict=True)):
        own = residuals[start : start + count] if count > 1 else pool
        drawn[:, cell] = own[rng.integers(len(own), size=(resamples, count))].mean(axis=1)
    return means + drawn
