"""Runs that start from pre-trained weights: by backbone, optimizer of pre-training, and weights.

A score table has one column for each set of weights, "resnet50 (pre-trained with lamb)". Here the
columns of one backbone are put together again by the optimizer that trained their weights.
"""

import dataclasses
import re

import numpy as np
import pandas

from bocb_jax.coupling.score_table import ScoreTable

# Columns of `ScoreTable.runs` where runs start from trained weights; all are texts.
START_COLUMNS = (
    "base_backbone",  # the backbone, whatever its weights
    "pretrained_with",  # the optimizer that trained them
    "start",  # the weights themselves: runs that share it started from the same ones
)


_PRETRAINED = re.compile(r"( \(|, )pre-trained with [^,()]+(?=\)$)")


def with_pretraining(backbone: str, optimizer: str) -> str:
    """Return what tables call a backbone that an optimizer pre-trained.

    >>> with_pretraining("vit_s", "lamb"), with_pretraining("vit_s (layer norm)", "lamb")
    ('vit_s (pre-trained with lamb)', 'vit_s (layer norm, pre-trained with lamb)')
    """
    start = f"{backbone[:-1]}, " if backbone.endswith(")") else f"{backbone} ("
    return f"{start}pre-trained with {optimizer})"


def without_pretraining(backbone: str) -> str:
    """Undo `with_pretraining`; other names stay as they are."""
    found = _PRETRAINED.search(backbone)
    if found is None:
        return backbone
    return backbone[: found.start()] + ")" * (found[1] == ", ")


def tables_by_backbone(table: ScoreTable) -> dict[str, ScoreTable]:
    """Return each backbone's table of optimizers x optimizers of pre-training.

    Backbones with fewer than two of either are left out, and so are runs whose weights are of no
    known optimizer.

    Args:
      table: whose runs have `START_COLUMNS`; without them the result is empty.

    Returns:
      By backbone: a table whose "backbones" are the optimizers of pre-training. One "seed" is one
      run; `start` remains.
    """
    runs = table.runs
    if not {*START_COLUMNS} <= {*runs.columns}:
        return {}
    runs = runs[runs["pretrained_with"].notna() & runs["base_backbone"].notna()]
    found = {}
    for backbone, part in runs.groupby("base_backbone", sort=False):
        scored = part[part["score"].notna()]
        if min(scored["pretrained_with"].nunique(), scored["optimizer"].nunique()) < 2:
            continue
        part = part.assign(backbone=part["pretrained_with"].astype(str))
        found[str(backbone)] = dataclasses.replace(
            table, runs=part.reset_index(drop=True), trials=None, equal=table.equal
        )
    return found


@dataclasses.dataclass(frozen=True)
class Replicates:
    """The runs of one backbone as independent repetitions of its cells."""

    # Optimizers x optimizers of pre-training. In `within` each figure is measured from the mean of
    # its start, and so tells about the interaction alone; in `raw` it is as measured, and tells
    # about the optimizers of pre-training as well.
    within: ScoreTable
    raw: ScoreTable
    by: str  # what is repeated: "starts" (pre-training and fine-tuning), "seeds", or "nothing"
    starts: int  # sets of weights


def replicates_of(table: ScoreTable) -> Replicates:
    """Return the repetitions of one table of `tables_by_backbone`.

    Where every optimizer of pre-training has two starts at least, one start is one repetition: the
    seeds of fine-tuning from one set of weights say nothing about other weights of that optimizer.
    Otherwise the seeds are the repetitions, and what they show holds for these weights.
    """
    runs = table.runs
    starts = runs.groupby("backbone", sort=False)["start"].nunique()
    total = int(runs["start"].nunique())
    if starts.min() < 2:
        by = "nothing" if table.one_seed or starts.max() > 1 else "seeds"
        runs = runs.assign(seed=np.arange(len(runs)))
        if starts.max() > 1:  # some repeated, others not: cells are means, and no noise is known
            runs = _means(runs, ["backbone", "optimizer"])
        plain = dataclasses.replace(table, runs=runs)
        return Replicates(plain, plain, by, total)
    means = _means(runs, ["backbone", "start", "optimizer"])
    codes = means.groupby("backbone", sort=False)["start"].transform(
        lambda s: pandas.factorize(s)[0]
    )
    means = means.assign(seed=codes.to_numpy())
    return Replicates(
        dataclasses.replace(table, runs=_without_starts(means)),
        dataclasses.replace(table, runs=means),
        "starts",
        total,
    )


def _means(runs: pandas.DataFrame, keys: list[str]) -> pandas.DataFrame:
    """Return one row a group: the mean score; diverged where no run of it finished."""
    order = runs.drop_duplicates(keys)
    scores = runs.groupby(keys, sort=False)["score"].mean()
    finished = (runs["status"] == "finished").groupby([runs[k] for k in keys], sort=False).any()
    at = pandas.MultiIndex.from_frame(order[keys])
    status = np.where(finished.reindex(at), "finished", order["status"])
    return order.assign(score=scores.reindex(at).to_numpy(), status=status, spread=np.nan)


def _without_starts(means: pandas.DataFrame) -> pandas.DataFrame:
    """Remove what a start adds to all of its scores.

    Of n optimizers this takes one degree of freedom; deviations within a cell are widened by
    sqrt(n / (n - 1)), so that their variance is that of the interaction of start and optimizer.
    """
    keys = [means["backbone"], means["optimizer"]]
    # Only optimizers with a score from every start of their cell are compared: a start without its
    # failures would look better than it is.
    complete = means["score"].notna().groupby(keys, sort=False).transform("all")
    known = means["score"].where(complete)
    starts = known.groupby([means["backbone"], means["start"]], sort=False)
    number = starts.transform("count")
    shifted = known - starts.transform("mean")
    shifted += known.groupby(means["backbone"], sort=False).transform("mean")
    cell = shifted.groupby(keys, sort=False).transform("mean")
    widened = cell + (shifted - cell) * np.sqrt(number / np.maximum(number - 1, 1))
    return means.assign(score=widened.where(complete, means["score"]))
