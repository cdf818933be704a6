"""Labels that say why a cell failed, as far as its training losses tell."""

import numpy as np
import pandas

from bocb_jax.coupling.outliers import Outliers
from bocb_jax.coupling.score_table import ScoreTable

# Nothing was learnt if the loss of the last epoch is at least this share of the first epoch's.
STUCK = 0.95
# Under-fitted: training loss above the column's median by a quarter, and by at least 0.05 nats,
# because a quarter of a loss near zero says nothing.
UNDERFITTED_FACTOR, UNDERFITTED_NATS = 1.25, 0.05

LABELS = (
    "diverged",
    "did not finish",
    "never left the start",
    "under-fitted",
    "over-fitted",
    "unclear",
)

# Memory and time tell of the machine and of what the optimizer needs of it: Shampoo and SOAP keep
# and factor matrices, so that running out of either is often their own cost.
_REASONS = {
    "crashed": "crashed",
    "out_of_memory": "out of memory, which the optimizer's state may have filled",
    "timed_out": "out of time, which the optimizer's steps may have cost",
    "not_reached": "did not reach the target",
}


def label(table: ScoreTable, outliers: Outliers, regret: pandas.DataFrame) -> pandas.DataFrame:
    """Label every cell that is an outlier or has no finished run.

    Training losses are compared within a backbone, whose runs share a recipe: the median is over
    its optimizers.

    Args:
      table: the scores.
      outliers: of the table.
      regret: optimizers x backbones, from `regret_of`.

    Returns:
      Columns backbone, optimizer, label (one of `LABELS`), reason (with its figures), score,
      regret, train_loss, n (runs); worst regret first.
    """
    losses = (
        table.runs.groupby(["optimizer", "backbone"], sort=False)["train_loss"].mean().unstack()
    )
    losses = losses.reindex(index=table.optimizers, columns=table.backbones)
    medians = losses.median()
    matrix = table.matrix()
    failed = table.failed()
    named = ((outliers.labels == "outlier") | failed).stack()
    pairs = pandas.MultiIndex.from_frame(table.runs[["optimizer", "backbone"]])
    cells = table.runs[named.reindex(pairs).to_numpy(bool)]
    rows = []
    for (optimizer, backbone), runs in cells.groupby(["optimizer", "backbone"], sort=False):
        loss = losses.loc[optimizer, backbone]
        name, reason = _label(runs, loss, medians[backbone], int(losses[backbone].count()))
        rows.append(
            {
                "backbone": backbone,
                "optimizer": optimizer,
                "label": name,
                "reason": reason,
                "score": matrix.loc[optimizer, backbone],
                "regret": regret.loc[optimizer, backbone],
                "train_loss": loss,
                "n": len(runs),
            }
        )
    columns = ["backbone", "optimizer", "label", "reason", "score", "regret", "train_loss", "n"]
    frame = pandas.DataFrame(rows, columns=columns)
    return frame.sort_values("regret", ascending=False, kind="stable", ignore_index=True)


def _label(runs: pandas.DataFrame, loss: float, median: float, others: int) -> tuple[str, str]:
    diverged = int((runs["status"] == "diverged").sum())
    if 2 * diverged >= len(runs):
        return "diverged", f"{diverged} of {len(runs)} runs diverged"
    finished = runs[runs["status"] == "finished"]
    if finished.empty:
        return "did not finish", ", ".join(_REASONS.get(s, s) for s in sorted(set(runs["status"])))
    if not np.isfinite(loss):
        return "unclear", "the training loss is not known"
    start = finished["first_train_loss"].mean()
    if np.isfinite(start) and loss >= STUCK * start:
        return "never left the start", f"training loss {loss:.3g}, {start:.3g} in the first epoch"
    against = f"training loss {loss:.3g}, median {median:.3g} over {others} optimizers"
    if others < 3:
        return "unclear", f"{against}, which are too few"
    if loss > max(UNDERFITTED_FACTOR * median, median + UNDERFITTED_NATS):
        return "under-fitted", against
    if loss <= median:
        return "over-fitted", against
    return "unclear", against
