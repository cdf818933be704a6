"""What the weights behind a table of scores look like: one run per cell, beside initialization."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import p_text
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.patterns import prediction
from bocb_jax.patterns.checkpoints import analyze_checkpoints
from bocb_jax.patterns.spectra import ALPHA_THRESHOLDS, MAIN_METRICS
from bocb_jax.storage.files import is_plain_name

# Metrics that are asked whether they tell failed cells apart.
PREDICTORS = ("alpha", "entropy", "stable_rank")
AUTO_BYTES, AUTO_CELLS = 1e9, 500  # the most that `--patterns auto` reads


@dataclasses.dataclass(frozen=True)
class WeightPatterns:
    """Metrics of weights by layer, by cell and by optimizer."""

    layers: pandas.DataFrame  # from `analyze_checkpoints`
    # one row per cell: backbone, optimizer, failed, layers (their number), init ("own",
    # "gaussian"), and the median over the layers of each of MAIN_METRICS, with _init
    cells: pandas.DataFrame
    # index optimizer: n (layers), backbones, failed (cells), the median over all its layers of
    # each of MAIN_METRICS, with _init, and below, above (shares of the layers whose alpha is
    # outside of the thresholds)
    optimizers: pandas.DataFrame
    predictions: pandas.DataFrame | None  # from `prediction.predict`, for PREDICTORS
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return all but the layers as JSON-able records."""
        frames = {"cells": self.cells, "optimizers": self.optimizers.reset_index()}
        if self.predictions is not None:
            frames["predictions"] = self.predictions.reset_index()
        records = {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in frames.items()
        }
        return {"sentences": list(self.sentences), "predictions": None, **records}


def find_runs(table: ScoreTable, workdir: str | Path) -> dict[tuple[str, str], Path]:
    """Return the run directory that represents each cell: (backbone, optimizer) -> path.

    It is the run with the median score among those of the cell that have a checkpoint in
    `workdir`; cells without one are left out.
    """
    found = {}
    for key, cell in table.runs.groupby(["backbone", "optimizer"], sort=False):
        cell = cell.sort_values("score", kind="stable", na_position="first")
        # Only plain names: "../other" would lead out of the folder.
        names = [str(name) for name in cell["run"] if is_plain_name(str(name))]
        folders = [Path(workdir, name) for name in names]
        folders = [folder for folder in folders if (folder / "checkpoints" / "best").is_dir()]
        if folders:
            found[key] = folders[len(folders) // 2]
    return found


def checkpoint_bytes(runs: Mapping[tuple[str, str], Path]) -> int:
    """Return the total size of the best checkpoints of some runs, in bytes."""
    best = (folder / "checkpoints" / "best" for folder in runs.values())
    return sum(file.stat().st_size for path in best for file in path.rglob("*") if file.is_file())


def analyze_runs(
    analysis: Analysis,
    runs: Mapping[tuple[str, str], Path],
    *,
    jobs: int | None = None,
    progress: bool = False,
) -> WeightPatterns:
    """Analyze the weights of some cells.

    Args:
      analysis: of the table that the cells belong to.
      runs: from `find_runs`.
      jobs, progress: as for `analyze_checkpoints`.

    Raises:
      UserError: some weights cannot be read, or do not fit the run's own record.
    """
    layers = analyze_checkpoints(runs.values(), jobs=jobs, progress=progress)
    cell_of = {str(folder): key for key, folder in runs.items()}
    keys = layers["source"].map(cell_of)
    layers = layers.assign(backbone=keys.str[0], optimizer=keys.str[1])
    return summarize(analysis, layers)


def summarize(analysis: Analysis, layers: pandas.DataFrame) -> WeightPatterns:
    """Return medians over the layers, and whether they tell failed cells apart.

    Args:
      analysis: of the table with the same names of backbones and optimizers.
      layers: from `analyze_checkpoints`.
    """
    failed = analysis.table.failed() | (analysis.outliers.labels == "outlier")
    columns = [*MAIN_METRICS, *(f"{name}_init" for name in MAIN_METRICS)]
    grouped = layers.groupby(["backbone", "optimizer"], sort=False)
    cells = grouped[columns].median()
    cells.insert(0, "failed", [bool(failed.at[o, b]) for b, o in cells.index])
    cells.insert(1, "layers", grouped.size())
    cells.insert(2, "init", grouped["init"].agg(lambda kinds: ", ".join(sorted(set(kinds)))))
    predictions = _predictions(analysis, layers, cells["failed"])
    cells = cells.reset_index()
    by_regret = analysis.optimizers["mean_regret"].sort_values(kind="stable").index
    order = {str(name): row for row, name in enumerate(by_regret)}
    cells = cells.sort_values("optimizer", key=lambda names: names.map(order), kind="stable")
    return WeightPatterns(
        layers,
        cells.sort_values("backbone", kind="stable", ignore_index=True),
        _optimizers(layers, cells, columns, order),
        predictions,
        tuple(_sentences(cells, predictions)),
    )


def _predictions(
    analysis: Analysis, layers: pandas.DataFrame, failed: pandas.Series
) -> pandas.DataFrame | None:
    """Whether the change since initialization goes with failure; `failed` is indexed by cell."""
    # The median over the layers of each layer's own log ratio to its initialization.
    ratios = pandas.DataFrame(
        {
            name: np.log(
                layers[name].clip(lower=1e-12) / layers[f"{name}_init"].clip(lower=1e-12)
            ).to_numpy(float)
            for name in PREDICTORS
        }
    )
    keys = [layers[name].to_numpy() for name in ("backbone", "optimizer")]
    ratios = ratios.groupby(keys).median()
    ratios.index.names = ["backbone", "optimizer"]
    ratios = ratios.reindex(failed.index).assign(failed=failed).reset_index()
    families = analysis.taxonomy["family"]
    families = families.fillna(pandas.Series(families.index, families.index))
    return prediction.predict(
        ratios, PREDICTORS, families, resamples=analysis.resamples, seed=analysis.seed
    )


def _optimizers(
    layers: pandas.DataFrame, cells: pandas.DataFrame, columns: list[str], order: Mapping[str, int]
) -> pandas.DataFrame:
    low, high = ALPHA_THRESHOLDS
    known = layers["alpha"].notna()
    shares = layers.assign(
        below=(layers["alpha"] < low).where(known).astype(float),
        above=(layers["alpha"] > high).where(known).astype(float),
    ).groupby("optimizer")
    by_cell = cells.groupby("optimizer")
    frame = layers.groupby("optimizer")[columns].median()
    frame.insert(0, "n", shares.size())
    frame.insert(1, "backbones", by_cell.size())
    frame.insert(2, "failed", by_cell["failed"].sum())
    frame = frame.assign(below=shares["below"].mean(), above=shares["above"].mean())
    return frame.loc[sorted(frame.index, key=lambda name: order.get(name, len(order)))]


def _sentences(cells: pandas.DataFrame, predictions: pandas.DataFrame | None) -> list[str]:
    failed = int(cells["failed"].sum())
    backbones = cells["backbone"].nunique()
    lines = [
        f"One run per cell: {len(cells)} cells of {backbones} "
        f"{'backbone' if backbones == 1 else 'backbones'}, {failed} of them failed (outliers, or "
        "no run finished). The weights are the best on validation, so those of a run that diverged "
        "are from before it did."
    ]
    if predictions is None:
        where = cells[cells["failed"]]["backbone"].nunique()
        return [
            *lines,
            "Whether alpha, entropy or stable rank tell failed cells apart cannot be said from "
            f"these data: {failed} failed of {len(cells)} cells, on {where} of {backbones} "
            f"backbones. It takes {prediction.MIN_CELLS} failed and {prediction.MIN_CELLS} other "
            f"cells, with failures in {prediction.MIN_FAMILIES} families of backbones.",
        ]
    for name, row in predictions.iterrows():
        holds = row["p_holm"] < 0.05 and row["auc_out_of_family"] > 0.5
        finding = (
            "accompanies failure: relative to initialization it is "
            f"{row['direction']} in failed cells, with an"
            if holds
            else "is not shown to go with failure:"
        )
        lines.append(
            f"{str(name).replace('_', ' ').capitalize()} {finding} AUC of {row['auc']:.2f} in the "
            f"sample and {row['auc_out_of_family']:.2f} on families left out ({row['failed']} "
            f"failed of {row['n']} cells, failures in {row['families']} families; "
            f"{p_text(row['p_holm'])} by permutation within backbones, Holm)."
        )
    lines.append(
        "None of this is a prediction in time: these are weights from the end of the runs, and an "
        "AUC of 0.5 is chance."
    )
    return lines
