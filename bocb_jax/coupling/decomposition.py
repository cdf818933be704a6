"""Two-way decomposition of scores: what is the backbone's, the optimizer's, and their coupling.

Least squares for the shares and their tests, median polish for the picture: there one failed cell
does not bend its row and its column.
"""

import dataclasses

import numpy as np
import pandas

from bocb_jax.coupling import noncentral
from bocb_jax.coupling.scores import ScoreTable

_CHUNK = 2**22  # numbers that one pass of a permutation or bootstrap may hold


@dataclasses.dataclass(frozen=True)
class Tukey:
    """Tukey's test for one degree of freedom of interaction, for tables of one seed a cell.

    It sees coupling that is a multiple of (optimizer effect x backbone effect), and no other.
    """

    f: float
    degrees_of_freedom: tuple[int, int]
    p_value: float
    coefficient: float  # of the product of backbone and optimizer effects
    share: float  # of the interaction's sum of squares, that this one product explains


@dataclasses.dataclass(frozen=True)
class Decomposition:
    """score = mean + optimizer + backbone + interaction + noise, by least squares."""

    # index: "optimizer", "backbone", "interaction" and, with seeds, "noise". Columns:
    # sum_of_squares (type II), degrees_of_freedom, mean_square, f, p_value;
    # share (the three systematic terms together 1; noise taken out where it is known), share_low,
    # share_high (bootstrap over seeds), share_of_means (noise left in);
    # omega_squared (of all variance, noise included); partial_omega_squared with _low and _high
    # (noncentral F). NaN where one seed a cell cannot give it.
    terms: pandas.DataFrame
    mean: float
    optimizer_effects: pandas.Series  # deviations from the mean, in the unit
    backbone_effects: pandas.Series
    interaction: pandas.DataFrame  # what the additive fit leaves, optimizers x backbones
    interaction_std: float  # root mean square of the interaction, noise taken out if known
    interaction_std_low: float | None  # interval; None without seeds
    interaction_std_high: float | None
    noise_std: float | None  # between seeds within a cell; None without seeds
    permutation_p: float | None  # Freedman-Lane; None without seeds
    permutations: int
    tukey: Tukey | None  # None where the table is too small
    runs: int
    cells: int  # with a score
    replicated_cells: int  # with two or more
    missing_cells: int
    dropped: tuple[str, ...]  # optimizers left out of this decomposition


@dataclasses.dataclass(frozen=True)
class Cells:
    """Scores of a table as arrays, sorted by cell.

    Attributes:
      values: (runs,) scores.
      counts: (cells,) runs of each cell, all at least 1.
      optimizer, backbone: (cells,) numbers of row and column.
      shape: number of optimizers, of backbones.
      basis: (cells, rank) orthonormal; spans the additive model, rows weighted by sqrt(counts).
      coefficients: (optimizers + backbones, rank) from coordinates in `basis` to row and column
        terms of the additive model.
    """

    values: np.ndarray
    counts: np.ndarray
    optimizer: np.ndarray
    backbone: np.ndarray
    shape: tuple[int, int]
    basis: np.ndarray
    coefficients: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """(cells,) where each cell's runs begin."""
        return np.concatenate([[0], np.cumsum(self.counts)[:-1]])

    @property
    def degrees_of_freedom(self) -> tuple[int, int]:
        """Of the interaction, and of the noise within cells."""
        cells = len(self.counts)
        return cells - self.basis.shape[1], len(self.values) - cells

    def means(self, values: np.ndarray) -> np.ndarray:
        """(..., runs) values to (..., cells) means."""
        return np.add.reduceat(values, self.starts, axis=-1) / self.counts

    def interaction(self, means: np.ndarray) -> np.ndarray:
        """(..., cells) means to (..., cells) residuals of the additive fit."""
        weights = np.sqrt(self.counts)
        weighted = means * weights
        return (weighted - (weighted @ self.basis) @ self.basis.T) / weights

    def grid(self, values: np.ndarray) -> np.ndarray:
        """(cells,) to (optimizers, backbones), NaN where there is no cell."""
        full = np.full(self.shape, np.nan)
        full[self.optimizer, self.backbone] = values
        return full


def cells_of(values, optimizer, backbone, shape) -> Cells:
    """Arranges runs by cell and finds the additive model of the cells there are.

    Args:
      values: (runs,) finite scores.
      optimizer, backbone: (runs,) numbers of row and column.
      shape: number of optimizers, of backbones.
    """
    optimizer, backbone = np.asarray(optimizer), np.asarray(backbone)
    number = optimizer * shape[1] + backbone
    order = np.argsort(number, kind="stable")
    cell, counts = np.unique(number, return_counts=True)
    rows, columns = np.divmod(cell, shape[1])
    design = np.zeros((len(cell), sum(shape)))
    design[np.arange(len(cell)), rows] = 1
    design[np.arange(len(cell)), shape[0] + columns] = 1
    left, sizes, right = np.linalg.svd(design * np.sqrt(counts)[:, None], full_matrices=False)
    rank = int((sizes > 1e-9 * sizes.max(initial=1)).sum())
    return Cells(
        values=np.asarray(values, float)[order],
        counts=counts,
        optimizer=rows,
        backbone=columns,
        shape=tuple(shape),
        basis=left[:, :rank],
        coefficients=right[:rank].T / sizes[:rank],
    )


def cells_of_table(table: ScoreTable) -> Cells:
    """The runs of a table that have a score."""
    runs = table.runs[table.runs["score"].notna()]
    return cells_of(
        runs["score"].to_numpy(float),
        pandas.Index(table.optimizers).get_indexer(runs["optimizer"]),
        pandas.Index(table.backbones).get_indexer(runs["backbone"]),
        (len(table.optimizers), len(table.backbones)),
    )


def sums_of_squares(cells: Cells) -> dict[str, float]:
    """Type II sums of squares of optimizer, backbone, interaction and noise, over runs."""
    means = cells.means(cells.values)
    residuals = cells.interaction(means)
    interaction = float((cells.counts * residuals**2).sum())
    noise = float(((cells.values - np.repeat(means, cells.counts)) ** 2).sum())

    def without(group):
        # The fit of the other term alone; what adding this one gains is its sum of squares.
        totals = np.bincount(group, cells.counts)
        centers = np.bincount(group, cells.counts * means) / np.where(totals > 0, totals, 1)
        return float((cells.counts * (means - centers[group]) ** 2).sum()) - interaction

    return {
        "optimizer": max(without(cells.backbone), 0.0),
        "backbone": max(without(cells.optimizer), 0.0),
        "interaction": interaction,
        "noise": noise,
    }


def noise_variance(cells: Cells) -> float | None:
    """Pooled variance within cells; None if no cell has two runs."""
    degrees = cells.degrees_of_freedom[1]
    if degrees == 0:
        return None
    within = cells.values - np.repeat(cells.means(cells.values), cells.counts)
    return float((within**2).sum() / degrees)


def permutation_test(cells: Cells, permutations: int, rng: np.random.Generator) -> float | None:
    """Freedman-Lane test of the interaction: p-value, None if no cell has two runs.

    The residuals of the additive model over runs are permuted (Freedman and Lane 1983; Anderson and
    ter Braak 2003), and the F of interaction over noise is taken anew. The fitted part need not be
    added back: the projection takes it out again.
    """
    between, within = cells.degrees_of_freedom
    if within == 0 or between == 0:
        return None
    means = cells.means(cells.values)
    additive = means - cells.interaction(means)
    residuals = cells.values - np.repeat(additive, cells.counts)
    total = (residuals**2).sum()

    def ratio(values, total):
        means = cells.means(values)
        interaction = (cells.counts * cells.interaction(means) ** 2).sum(-1)
        noise = total - (cells.counts * means**2).sum(-1)
        return interaction / np.maximum(noise, 1e-12 * total)

    if not total > 1e-24 * (cells.values**2).sum():
        return 1.0
    observed = ratio(residuals, total)
    larger = 0
    step = max(1, _CHUNK // len(residuals))
    for start in range(0, permutations, step):
        count = min(step, permutations - start)
        drawn = rng.permuted(np.broadcast_to(residuals, (count, len(residuals))), axis=1)
        larger += int((ratio(drawn, total) >= observed * (1 - 1e-9)).sum())
    return (1 + larger) / (1 + permutations)


def resampled_means(cells: Cells, resamples: int, rng: np.random.Generator) -> np.ndarray | None:
    """(resamples, cells) means of seeds drawn with replacement within cells.

    Residuals are widened by sqrt(n / (n - 1)), without which n = 3 seeds give intervals a fifth
    too narrow. Cells of one run borrow residuals from all others; None if no cell has two runs.
    """
    variance = noise_variance(cells)
    if variance is None:
        return None
    means = cells.means(cells.values)
    n = np.repeat(cells.counts, cells.counts)
    residuals = cells.values - np.repeat(means, cells.counts)
    residuals = residuals * np.sqrt(n / np.maximum(n - 1, 1))
    pool = residuals[n > 1]
    drawn = np.empty((resamples, len(means)))
    for cell, (start, count) in enumerate(zip(cells.starts, cells.counts, strict=True)):
        own = residuals[start : start + count] if count > 1 else pool
        drawn[:, cell] = own[rng.integers(len(own), size=(resamples, count))].mean(axis=1)
    return means + drawn


def tukey_test(cells: Cells) -> Tukey | None:
    """Tukey's (1949) test on the cell means; None with too few cells."""
    means = cells.means(cells.values)
    residuals = cells.interaction(means)
    degrees = cells.degrees_of_freedom[0] - 1
    rows, columns = _effects(cells)[1:]
    whole = rows[cells.optimizer] * columns[cells.backbone]
    product = cells.interaction(whole)
    size = (cells.counts * product**2).sum()
    total = float((cells.counts * residuals**2).sum())
    rounding = 1e-20 * (cells.counts * means**2).sum()
    if degrees < 1 or not size > 1e-18 * (cells.counts * whole**2).sum() or not total > rounding:
        return None
    coefficient = float((cells.counts * product * residuals).sum() / size)
    explained = coefficient**2 * float(size)
    f = explained / max((total - explained) / degrees, 1e-300)
    return Tukey(
        f=f,
        degrees_of_freedom=(1, degrees),
        p_value=noncentral.f_p_value(f, 1, degrees),
        coefficient=coefficient,
        share=explained / total,
    )


def _effects(cells: Cells) -> tuple[float, np.ndarray, np.ndarray]:
    """Mean, row effects and column effects of the additive fit, each set with mean 0."""
    weighted = cells.means(cells.values) * np.sqrt(cells.counts)
    fitted = cells.coefficients @ (weighted @ cells.basis)
    # A row or a column without any score has no effect.
    fitted[np.setdiff1d(np.arange(cells.shape[0]), cells.optimizer)] = np.nan
    fitted[cells.shape[0] + np.setdiff1d(np.arange(cells.shape[1]), cells.backbone)] = np.nan
    rows, columns = fitted[: cells.shape[0]], fitted[cells.shape[0] :]
    centers = np.nanmean(rows), np.nanmean(columns)
    return float(sum(centers)), rows - centers[0], columns - centers[1]


def decompose(
    table: ScoreTable,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    dropped: tuple[str, ...] = (),
) -> Decomposition | None:
    """The two-way decomposition of a table.

    Returns:
      None for fewer than two optimizers or two backbones.
    """
    kept = [name for name in table.optimizers if name not in dropped]
    table = table.select(optimizers=kept) if dropped else table
    cells = cells_of_table(table)
    if min(len(np.unique(cells.optimizer)), len(np.unique(cells.backbone))) < 2:
        return None
    rng = np.random.default_rng(seed)
    noise = noise_variance(cells)
    terms = _terms(cells, noise, confidence)
    draws = resampled_means(cells, resamples, rng)
    if draws is not None:
        terms = _with_share_intervals(terms, cells, draws, noise, confidence)
    between, within = cells.degrees_of_freedom
    low = high = None
    runs = len(cells.values)
    squares = terms.loc["interaction", "sum_of_squares"]
    if noise is not None and between > 0:
        bounds = noncentral.sum_of_squares_interval(squares, noise, between, within, confidence)
        low, high = (float(np.sqrt(bound / runs)) for bound in bounds)
    mean, rows, columns = _effects(cells)
    observed = cells.grid(cells.means(cells.values))
    backbones = pandas.Index(table.backbones, name="backbone")
    optimizers = pandas.Index(table.optimizers, name="optimizer")
    return Decomposition(
        terms=terms,
        mean=mean,
        optimizer_effects=pandas.Series(rows, index=optimizers),
        backbone_effects=pandas.Series(columns, index=backbones),
        interaction=pandas.DataFrame(
            observed - (mean + rows[:, None] + columns), index=optimizers, columns=backbones
        ),
        interaction_std=float(np.sqrt(max(squares - between * (noise or 0.0), 0.0) / runs)),
        interaction_std_low=low,
        interaction_std_high=high,
        noise_std=None if noise is None else float(np.sqrt(noise)),
        permutation_p=permutation_test(cells, resamples, rng),
        permutations=resamples if noise is not None else 0,
        tukey=tukey_test(cells),
        runs=runs,
        cells=len(cells.counts),
        replicated_cells=int((cells.counts > 1).sum()),
        missing_cells=int(np.prod(cells.shape)) - len(cells.counts),
        dropped=tuple(dropped),
    )


def _terms(cells: Cells, noise: float | None, confidence: float) -> pandas.DataFrame:
    squares = sums_of_squares(cells)
    between, within = cells.degrees_of_freedom
    runs, rank = len(cells.values), cells.basis.shape[1]
    degrees = {
        "optimizer": rank - len(np.unique(cells.backbone)),
        "backbone": rank - len(np.unique(cells.optimizer)),
        "interaction": between,
        "noise": within,
    }
    if noise is None:
        del squares["noise"]
    terms = pandas.DataFrame(
        {"sum_of_squares": squares, "degrees_of_freedom": {name: degrees[name] for name in squares}}
    )
    systematic = ["optimizer", "backbone", "interaction"]
    used = terms.loc[systematic, "degrees_of_freedom"]
    terms["mean_square"] = terms["sum_of_squares"] / terms["degrees_of_freedom"].where(
        lambda d: d > 0
    )
    columns = ["f", "p_value", "share", "share_low", "share_high", "share_of_means"]
    columns += ["omega_squared", *(f"partial_omega_squared{end}" for end in ("", "_low", "_high"))]
    terms[columns] = np.nan
    raw = terms.loc[systematic, "sum_of_squares"]
    true = (raw - used * (noise or 0.0)).clip(lower=0)
    terms.loc[systematic, "share_of_means"] = raw / raw.sum() if raw.sum() > 0 else np.nan
    terms.loc[systematic, "share"] = true / true.sum() if true.sum() > 0 else np.nan
    if noise is None:
        return terms
    total = terms["sum_of_squares"].sum()
    for name in systematic:
        square, df = terms.loc[name, ["sum_of_squares", "degrees_of_freedom"]]
        if df < 1 or not total > 0:
            continue
        f = square / df / noise if noise > 0 else np.inf
        terms.loc[name, "f"] = f
        terms.loc[name, "p_value"] = noncentral.f_p_value(f, df, within)
        surplus = square - df * noise
        terms.loc[name, "omega_squared"] = max(surplus / (total + noise), 0.0)
        if noise > 0:
            terms.loc[name, "partial_omega_squared"] = max(surplus / (surplus + runs * noise), 0.0)
            low, high = noncentral.f_interval(f, df, within, confidence)
            terms.loc[name, "partial_omega_squared_low"] = low / (low + runs)
            terms.loc[name, "partial_omega_squared_high"] = high / (high + runs)
    return terms


def _with_share_intervals(terms, cells, draws, noise, confidence):
    """Percentiles of the shares over resampled seeds."""
    names = ["optimizer", "backbone", "interaction"]
    degrees = terms.loc[names, "degrees_of_freedom"].to_numpy(float)
    residuals = cells.interaction(draws)
    squares = {"interaction": (cells.counts * residuals**2).sum(axis=1)}
    for name, group in (("optimizer", cells.backbone), ("backbone", cells.optimizer)):
        members = np.zeros((len(group), group.max() + 1))
        members[np.arange(len(group)), group] = cells.counts
        totals = members.sum(axis=0)
        centers = (draws @ members) / np.where(totals > 0, totals, 1)
        around = (cells.counts * (draws - centers[:, group]) ** 2).sum(axis=1)
        squares[name] = around - squares["interaction"]
    # The means held noise before seeds were drawn, and hold it twice after.
    true = np.stack([squares[name] for name in names], axis=1) - 2 * degrees * noise
    true = np.clip(true, 0, None)
    shares = true / np.maximum(true.sum(axis=1, keepdims=True), 1e-300)
    tail = (1 - confidence) / 2
    terms.loc[names, "share_low"] = np.quantile(shares, tail, axis=0)
    terms.loc[names, "share_high"] = np.quantile(shares, 1 - tail, axis=0)
    return terms


def row_intervals(cells: Cells, axis: str, confidence: float) -> pandas.DataFrame:
    """Root mean square of the interaction, by optimizer or by backbone.

    Args:
      cells: the table.
      axis: "optimizer" or "backbone".
      confidence: of the interval.

    Returns:
      A row for each, columns rms (noise taken out), low, high (NaN without seeds). The noise is
      pooled over all cells.
    """
    group = cells.optimizer if axis == "optimizer" else cells.backbone
    size = cells.shape[axis == "backbone"]
    residuals = cells.interaction(cells.means(cells.values))
    # Of each cell's noise the additive fit takes its leverage.
    left = 1 - (cells.basis**2).sum(axis=1)
    squares = np.bincount(group, cells.counts * residuals**2, size)
    expected = np.bincount(group, left, size)
    runs = np.bincount(group, cells.counts, size)
    within = cells.degrees_of_freedom[1]
    noise = noise_variance(cells)
    rows = []
    for square, degrees, count, members in zip(
        squares, expected, runs, np.bincount(group, minlength=size), strict=True
    ):
        if count == 0 or members < 2:
            rows.append((np.nan, np.nan, np.nan))
        elif noise is None or degrees < 1e-9:
            rows.append((np.sqrt(square / count), np.nan, np.nan))
        else:
            scale = degrees / (members - 1)
            bounds = noncentral.sum_of_squares_interval(
                square / scale, noise, members - 1, within, confidence
            )
            true = max(square - degrees * noise, 0.0)
            rows.append(
                (np.sqrt(true / count), *(np.sqrt(scale * bound / count) for bound in bounds))
            )
    return pandas.DataFrame(rows, columns=["rms", "low", "high"])


def median_polish(matrix: pandas.DataFrame, *, sweeps: int = 100) -> pandas.DataFrame:
    """What is left of a table after medians of rows and columns are taken out in turn.

    Tukey (1977), rows first. Missing cells stay missing. Unlike the means of least squares, medians
    are not drawn to a failed cell: its whole loss stays in its own residual.
    """
    left = matrix.to_numpy(float)
    # A row without any score has no median.
    rows, columns = ~np.isnan(left).all(axis=1), ~np.isnan(left).all(axis=0)
    left = left[np.ix_(rows, columns)]
    for _ in range(sweeps if left.size else 0):
        before = left
        left = left - np.nanmedian(left, axis=1, keepdims=True)
        left = left - np.nanmedian(left, axis=0, keepdims=True)
        if np.nanmax(np.abs(left - before)) < 1e-9:
            break
    polished = pandas.DataFrame(np.nan, index=matrix.index, columns=matrix.columns)
    polished.iloc[np.flatnonzero(rows), np.flatnonzero(columns)] = left
    return polished
