"""What the weights of a table's runs look like: one run a cell, beside its random start."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling.analysis import Analysis
from bocb_jax.coupling.scores import ScoreTable
from bocb_jax.patterns import prediction
from bocb_jax.patterns.checkpoints import analyze_checkpoints
from bocb_jax.patterns.spectra import THRESHOLDS
from bocb_jax.report.style import label

FIGURES = ("alpha", "entropy", "l2_norm", "pca_ratio", "stable_rank")
ASKED = ("alpha", "entropy", "stable_rank")  # whether they tell failed cells apart
CHEAP_BYTES, CHEAP_CELLS = 1e9, 500  # what is read without being asked for


@dataclasses.dataclass(frozen=True)
class Weights:
    """Figures of weights, layer by layer, cell by cell and optimizer by optimizer."""

    layers: pandas.DataFrame  # of `analyze_checkpoints`
    # a row a cell: backbone, optimizer, failed, layers, init, and each of FIGURES as the median
    # over the layers, with _init
    cells: pandas.DataFrame
    # index optimizer: n (layers), backbones, failed (cells), FIGURES with _init as medians over all
    # its layers, below and above (shares of layers with an alpha outside of the thresholds)
    optimizers: pandas.DataFrame
    predictions: pandas.DataFrame | None  # of `prediction.predict`, for ASKED
    sentences: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All but the layers, as records of JSON types."""
        frames = {"cells": self.cells, "optimizers": self.optimizers.reset_index()}
        if self.predictions is not None:
            frames["predictions"] = self.predictions.reset_index()
        records = {
            name: frame.astype(object).where(frame.notna(), None).to_dict("records")
            for name, frame in frames.items()
        }
        return {"sentences": list(self.sentences), "predictions": None, **records}


def find(table: ScoreTable, workdir: str | Path) -> dict[tuple[str, str], Path]:
    """Of each cell the run with the middle score among those that have weights in a folder."""
    found = {}
    for key, cell in table.runs.groupby(["backbone", "optimizer"], sort=False):
        cell = cell.sort_values("score", kind="stable", na_position="first")
        # The name of a folder, not a way out of it.
        names = [str(name) for name in cell["run"] if name and Path(str(name)).name == str(name)]
        folders = [Path(workdir, name) for name in names]
        folders = [folder for folder in folders if (folder / "checkpoints" / "best").is_dir()]
        if folders:
            found[key] = folders[len(folders) // 2]
    return found


def size(folders: dict[tuple[str, str], Path]) -> int:
    """Bytes of the weights of some runs."""
    best = (folder / "checkpoints" / "best" for folder in folders.values())
    return sum(file.stat().st_size for path in best for file in path.rglob("*") if file.is_file())


def read(
    analysis: Analysis,
    folders: dict[tuple[str, str], Path],
    *,
    jobs: int | None = None,
    progress: bool = False,
) -> Weights:
    """Analyses the weights of some cells.

    Args:
      analysis: of the table that they are cells of.
      folders: from `find`.
      jobs, progress: as for `analyze_checkpoints`.

    Raises:
      UserError: some weights cannot be read, or are not what their record says.
    """
    layers = analyze_checkpoints(folders.values(), jobs=jobs, progress=progress)
    cell_of = {str(folder): key for key, folder in folders.items()}
    keys = layers["source"].map(cell_of)
    layers = layers.assign(backbone=keys.str[0], optimizer=keys.str[1])
    return summarize(analysis, layers)


def summarize(analysis: Analysis, layers: pandas.DataFrame) -> Weights:
    """The medians of layers, and what they say of failure.

    Args:
      analysis: of the table that the layers' backbones and optimizers are those of.
      layers: of `analyze_checkpoints`.
    """
    gone = analysis.table.failed() | (analysis.marks.marks == "outlier")
    columns = [*FIGURES, *(f"{name}_init" for name in FIGURES)]
    grouped = layers.groupby(["backbone", "optimizer"], sort=False)
    cells = grouped[columns].median()
    cells.insert(0, "failed", [bool(gone.at[o, b]) for b, o in cells.index])
    cells.insert(1, "layers", grouped.size())
    cells.insert(2, "init", grouped["init"].agg(lambda kinds: ", ".join(sorted(set(kinds)))))
    # Median over the layers of each layer's own distance to its start.
    ratios = pandas.DataFrame(
        {
            name: np.log(
                layers[name].clip(lower=1e-12) / layers[f"{name}_init"].clip(lower=1e-12)
            ).to_numpy(float)
            for name in ASKED
        }
    )
    ratios = ratios.groupby(
        [layers["backbone"].to_numpy(), layers["optimizer"].to_numpy()]
    ).median()
    ratios.index.names = ["backbone", "optimizer"]
    ratios = ratios.reindex(cells.index).assign(failed=cells["failed"]).reset_index()
    families = analysis.taxonomy["family"]
    families = families.fillna(pandas.Series(families.index, families.index))
    found = prediction.predict(
        ratios, ASKED, families, resamples=analysis.resamples, seed=analysis.seed
    )
    cells = cells.reset_index()
    order = {name: row for row, name in enumerate(_by_regret(analysis))}
    cells = cells.sort_values("optimizer", key=lambda names: names.map(order), kind="stable")
    return Weights(
        layers,
        cells.sort_values("backbone", kind="stable", ignore_index=True),
        _optimizers(layers, cells, columns, order),
        found,
        tuple(_sentences(cells, found)),
    )


def _by_regret(analysis: Analysis) -> list[str]:
    return analysis.optimizers["mean_regret"].sort_values(kind="stable").index.tolist()


def _optimizers(layers, cells, columns, order) -> pandas.DataFrame:
    low, high = THRESHOLDS
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


def _sentences(cells: pandas.DataFrame, found: pandas.DataFrame | None) -> list[str]:
    failed = int(cells["failed"].sum())
    backbones = cells["backbone"].nunique()
    lines = [
        f"One run a cell: {len(cells)} cells of {backbones} "
        f"{'backbone' if backbones == 1 else 'backbones'}, {failed} of them failed (outliers, or "
        "no run finished). The weights are those best on validation, so a run that diverged shows "
        "them from before that."
    ]
    if found is None:
        where = cells[cells["failed"]]["backbone"].nunique()
        return [
            *lines,
            "Whether alpha, entropy or stable rank tell failed cells apart cannot be said from "
            f"these data: {failed} failed of {len(cells)} cells, on {where} of {backbones} "
            f"backbones. It takes {prediction.FEWEST} failed and {prediction.FEWEST} other cells, "
            f"with failures in {prediction.FEWEST_FAMILIES} families of backbones.",
        ]
    for name, row in found.iterrows():
        holds = row["p_holm"] < 0.05 and row["auc_out_of_family"] > 0.5
        verdict = (
            "accompanies failure: against its random start it is "
            f"{row['direction']} in failed cells, with an"
            if holds
            else "is not shown to go with failure:"
        )
        lines.append(
            f"{label(name).replace('_', ' ').capitalize()} {verdict} area under the curve of "
            f"{row['auc']:.2f} in the sample and {row['auc_out_of_family']:.2f} on families left "
            f"out ({row['failed']} failed of {row['n']} cells, failures in {row['families']} "
            f"families; p = {row['p_holm']:.2g} by permutation within backbones, Holm)."
        )
    lines.append(
        "None of this is a prediction in time: these are weights from the end of the runs, and an "
        "area of 0.5 is a coin's."
    )
    return lines
