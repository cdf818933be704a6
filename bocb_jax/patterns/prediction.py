"""Do figures of trained weights tell failed cells apart, on families of backbones not seen?

The weights are those of finished runs, so a figure that does accompanies failure. To call it a
prediction in time, weights from early in training would be needed, which runs do not keep.
"""

from collections.abc import Sequence

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling.significance import holm

FEWEST = 5  # failed cells, and others, that an area under the curve takes
FEWEST_FAMILIES = 2  # with failed cells in them, so that one can be left out


def predict(
    cells: pandas.DataFrame,
    figures: Sequence[str],
    families: pandas.Series,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pandas.DataFrame | None:
    """Areas under the curve (ROC) of failed against other cells, in and out of the sample.

    What is compared is the distance of a cell's figure to the median of its backbone: backbones
    differ in their figures, and in how often they fail. Whether failed cells have the larger or the
    smaller figures is learnt on all families but one and used on that one, in turn. The p-value is
    the share of permutations of "failed" within the backbones that do as well on families left out.

    Args:
      cells: one row a cell: backbone, failed, and the figures.
      figures: names of columns.
      families: of every backbone (index).
      resamples: permutations.
      seed: of the permutations.

    Returns:
      Index figure: auc, direction ("larger" or "smaller" in failed cells), auc_out_of_family,
      p_value, p_holm, n, failed, families (with failed cells). None with too few cells: fewer than
      5 of either kind, or failures in one family only.
    """
    from sklearn.metrics import roc_auc_score  # half a second that most tables need not wait for

    rows, random = {}, np.random.default_rng(seed)
    for figure in figures:
        part = cells[np.isfinite(cells[figure].astype(float))]
        failed = part["failed"].to_numpy(bool)
        blocks = families.reindex(part["backbone"]).to_numpy()
        where = len(set(blocks[failed]))
        if min(failed.sum(), (~failed).sum()) < FEWEST or where < FEWEST_FAMILIES:
            continue
        grouped = part.groupby("backbone")[figure]
        values = (part[figure] - grouped.transform("median")).to_numpy(float)
        area = roc_auc_score(failed, values)
        backbone = part["backbone"].to_numpy()
        labels = np.stack([failed, *(_within(failed, backbone, random) for _ in range(resamples))])
        areas = _out_of_family(values, labels, blocks)
        rows[figure] = {
            "auc": max(area, 1 - area),
            "direction": "larger" if area >= 0.5 else "smaller",
            "auc_out_of_family": areas[0],
            "p_value": float((areas >= areas[0] - 1e-12).mean()),
            "n": len(part),
            "failed": int(failed.sum()),
            "families": where,
        }
    if not rows:
        return None
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("figure")
    frame.insert(4, "p_holm", holm(frame["p_value"]))
    return frame


def _within(failed, backbone, random):
    """The labels, permuted within every backbone."""
    # Sorted by backbone and then at random: a permutation of every block.
    order = np.lexsort((np.arange(len(failed)), backbone))
    shuffled = np.lexsort((random.random(len(failed)), backbone))
    permuted = np.empty_like(failed)
    permuted[order] = failed[shuffled]
    return permuted


def _areas(values, labels):
    """The area for each row of labels (rows, cells); 0.5 where only one kind is there."""
    count = labels.sum(axis=1)
    pairs = count * (labels.shape[1] - count)
    wins = labels @ stats.rankdata(values) - count * (count + 1) / 2
    return np.divide(wins, pairs, out=np.full(len(labels), 0.5), where=pairs > 0)


def _out_of_family(values, labels, blocks):
    """The area for each row of labels with the direction learnt on the other families."""
    names = np.unique(blocks)
    members = blocks[:, None] == names
    signs = np.stack(
        [np.where(_areas(values[~own], labels[:, ~own]) >= 0.5, 1, -1) for own in members.T], 1
    )
    found = np.empty(len(labels))
    kinds, which = np.unique(signs, axis=0, return_inverse=True)
    for number, sign in enumerate(kinds):  # few: families mostly agree
        chosen = which.ravel() == number
        found[chosen] = _areas(values * (members @ sign), labels[chosen])
    return found
