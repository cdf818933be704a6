"""Do metrics of trained weights tell failed cells apart, on families of backbones left out?

The weights are from the end of the runs, so a metric that does so accompanies failure. Predicting
failure in time would take weights from early in training, which runs do not keep.
"""

from collections.abc import Sequence

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling.significance import holm

MIN_CELLS = 5  # failed, and others, that an area under the curve takes
MIN_FAMILIES = 2  # with failed cells in them, so that one can be left out


def predict(
    cells: pandas.DataFrame,
    metrics: Sequence[str],
    families: pandas.Series,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pandas.DataFrame | None:
    """Return areas under the ROC curve (AUC) of failed against other cells, for each metric.

    A cell's metric is taken relative to the median of its backbone, because backbones differ in
    their metrics and in how often they fail. Whether failed cells have the larger or the smaller
    values is learned on all families but one and applied to that one, for each family in turn. The
    p-value is the share of permutations of "failed" within the backbones whose AUC on families
    left out is at least as large.

    Args:
      cells: one row per cell: backbone, failed, and the metrics.
      metrics: names of columns.
      families: family of every backbone (index).
      resamples: number of permutations.
      seed: of the permutations.

    Returns:
      Index figure (the metric): auc, direction ("larger" or "smaller" in failed cells),
      auc_out_of_family, p_value, p_holm, n, failed, families (with failed cells). None if there
      are fewer than MIN_CELLS cells of either kind, or failures in fewer than MIN_FAMILIES
      families.
    """
    from sklearn.metrics import roc_auc_score  # takes half a second, and most tables do not need it

    rows, random = {}, np.random.default_rng(seed)
    for metric in metrics:
        part = cells[np.isfinite(cells[metric].astype(float))]
        failed = part["failed"].to_numpy(bool)
        family = families.reindex(part["backbone"]).to_numpy()
        failed_families = len(set(family[failed]))
        if min(failed.sum(), (~failed).sum()) < MIN_CELLS or failed_families < MIN_FAMILIES:
            continue
        grouped = part.groupby("backbone")[metric]
        values = (part[metric] - grouped.transform("median")).to_numpy(float)
        area = roc_auc_score(failed, values)
        backbone = part["backbone"].to_numpy()
        permuted = (_permute_within(failed, backbone, random) for _ in range(resamples))
        areas = _areas_out_of_family(values, np.stack([failed, *permuted]), family)
        rows[metric] = {
            "auc": max(area, 1 - area),
            "direction": "larger" if area >= 0.5 else "smaller",
            "auc_out_of_family": areas[0],
            "p_value": float((areas >= areas[0] - 1e-12).mean()),
            "n": len(part),
            "failed": int(failed.sum()),
            "families": failed_families,
        }
    if not rows:
        return None
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("figure")
    frame.insert(4, "p_holm", holm(frame["p_value"]))
    return frame


def _permute_within(
    failed: np.ndarray, backbone: np.ndarray, random: np.random.Generator
) -> np.ndarray:
    """Return the labels (cells,), permuted within every backbone."""
    # Both orders are sorted by backbone, the second at random inside each.
    order = np.lexsort((np.arange(len(failed)), backbone))
    shuffled = np.lexsort((random.random(len(failed)), backbone))
    permuted = np.empty_like(failed)
    permuted[order] = failed[shuffled]
    return permuted


def _areas(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the AUC for each row of labels (rows, cells); 0.5 where only one kind occurs."""
    count = labels.sum(axis=1)
    pairs = count * (labels.shape[1] - count)
    wins = labels @ stats.rankdata(values) - count * (count + 1) / 2
    return np.divide(wins, pairs, out=np.full(len(labels), 0.5), where=pairs > 0)


def _areas_out_of_family(values: np.ndarray, labels: np.ndarray, family: np.ndarray) -> np.ndarray:
    """Return the AUC for each row of labels, with the direction learned on the other families."""
    members = family[:, None] == np.unique(family)  # (cells, families)
    signs = np.stack(
        [np.where(_areas(values[~own], labels[:, ~own]) >= 0.5, 1, -1) for own in members.T], 1
    )
    areas = np.empty(len(labels))
    # Rows with the same signs share one ranking; there are few, since families mostly agree.
    kinds, which = np.unique(signs, axis=0, return_inverse=True)
    for number, sign in enumerate(kinds):
        chosen = which.ravel() == number
        areas[chosen] = _areas(values * (members @ sign), labels[chosen])
    return areas
