"""Labels that say why a cell failed, as far as its training losses tell."""

from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.outliers import Outliers
from bocb_jax.coupling.rounding import significant
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
    medians, others = losses.median(), losses.count()
    matrix = table.measured()
    failed = table.failed()
    named = ((outliers.labels == "outlier") | failed).stack()
    pairs = pandas.MultiIndex.from_frame(table.runs[["optimizer", "backbone"]])
    rows = []
    for cell in _summaries(table.runs[named.reindex(pairs).to_numpy(bool)]).itertuples():
        optimizer, backbone = cell.Index
        loss = losses.at[optimizer, backbone]
        name, reason = _label(cell, loss, medians[backbone], int(others[backbone]))
        rows.append(
            {
                "backbone": backbone,
                "optimizer": optimizer,
                "label": name,
                "reason": reason,
                "score": matrix.at[optimizer, backbone],
                "regret": regret.at[optimizer, backbone],
                "train_loss": loss,
                "n": cell.n,
            }
        )
    columns = ["backbone", "optimizer", "label", "reason", "score", "regret", "train_loss", "n"]
    frame = pandas.DataFrame(rows, columns=columns)
    return frame.sort_values("regret", ascending=False, kind="stable", ignore_index=True)


def _summaries(runs: pandas.DataFrame) -> pandas.DataFrame:
    """Return n, diverged, finished, statuses and start (first training loss) of every cell."""
    finished = runs["status"] == "finished"
    columns = {
        "diverged": runs["status"] == "diverged",
        "finished": finished,
        "start": runs["first_train_loss"].where(finished),
    }
    cells = runs.assign(**columns).groupby(["optimizer", "backbone"], sort=False)
    return cells.agg(
        n=("status", "size"),
        diverged=("diverged", "sum"),
        finished=("finished", "sum"),
        statuses=("status", "unique"),
        start=("start", "mean"),
    )


def _label(cell: Any, loss: float, median: float, others: int) -> tuple[str, str]:
    if 2 * cell.diverged >= cell.n:
        return "diverged", f"{cell.diverged} of {cell.n} runs diverged"
    if not cell.finished:
        return "did not finish", ", ".join(_REASONS.get(s, s) for s in sorted(cell.statuses))
    if not np.isfinite(loss):
        return "unclear", "the training loss is not known"
    if np.isfinite(cell.start) and loss >= STUCK * cell.start:
        said = f"training loss {significant(loss)}, {significant(cell.start)} in the first epoch"
        return "never left the start", said
    against = (
        f"training loss {significant(loss)}, median {significant(median)} over {others} optimizers"
    )
    if others < 3:
        return "unclear", f"{against}, which are too few"
    if loss > max(UNDERFITTED_FACTOR * median, median + UNDERFITTED_NATS):
        return "under-fitted", against
    if loss <= median:
        return "over-fitted", against
    return "unclear", against
