"""What the trained weights of the runs look like, layer by layer."""

from collections.abc import Collection, Iterator

from bocb_jax.coupling.result import Analysis
from bocb_jax.patterns.cells import WeightPatterns
from bocb_jax.patterns.spectra import ALPHA_THRESHOLDS, BINS, COMPONENTS, MAIN_METRICS
from bocb_jax.report import plots
from bocb_jax.report.document import Block, Picture, Section, Table, Text, table_from
from bocb_jax.report.style import label

_TITLES = {
    "alpha": "alpha",
    "entropy": "entropy",
    "l2_norm": "norm",
    "pca_ratio": f"first {COMPONENTS} components",
    "stable_rank": "stable rank",
}


def build(analysis: Analysis, patterns: WeightPatterns, drawn: Collection[str]) -> Section:
    """Return the section on weights.

    Args:
      analysis: of the table that the runs belong to.
      patterns: of the runs' weights.
      drawn: names of the pictures that were drawn.
    """
    ridges = [entry for entry in plots.ridge_plots(analysis, patterns) if entry[2] in drawn]
    blocks: tuple[Block, ...] = (
        Text(patterns.sentences),
        *(_picture(*entry) for entry in ridges if entry[1] == "alpha"),
        _optimizers(patterns),
        _predictions(patterns),
        *(_picture(*entry, folded=True) for entry in ridges if entry[1] == "entropy"),
        _cells(patterns),
        Text((_definitions(),)),
    )
    return Section("weights", "What the weights look like", blocks)


def _picture(backbone: str, metric: str, name: str, *, folded: bool = False) -> Picture:
    title = f"{metric.capitalize()} over the layers of {label(backbone)}"
    text = (
        "A ridge for each optimizer, from the best score to the worst; failed ones are grey and "
        "hatched. Dashed: the weights at initialization."
    )
    return Picture(name, title, text, folded)


def _metric_columns() -> Iterator[tuple[str, str, str]]:
    """Each metric beside its value at initialization."""
    for name in MAIN_METRICS:
        yield name, _TITLES[name], "number"
        yield f"{name}_init", "at the start", "number"


def _optimizers(patterns: WeightPatterns) -> Table:
    low, high = ALPHA_THRESHOLDS
    columns = (
        ("optimizer", "optimizer", "text"),
        *_metric_columns(),
        ("below", f"alpha under {low:g}", "percent", "share of the layers that have an alpha"),
        ("above", f"alpha over {high:g}", "percent", "share of the layers that have an alpha"),
        ("n", "n layers", "int"),
        ("backbones", "n backbones", "int"),
        ("failed", "failed", "int", "cells that are outliers or in which no run finished"),
    )
    caption = "Medians over all layers of all backbones, beside those at initialization."
    title = "Weights by optimizer"
    return table_from(patterns.optimizers, title, columns, caption, index="optimizer")


def _predictions(patterns: WeightPatterns) -> Table:
    columns = (
        ("figure", "metric", "text"),
        ("direction", "in failed cells", "text"),
        ("auc", "AUC in the sample", "number", "area under the ROC curve"),
        ("auc_out_of_family", "AUC, family left out", "number"),
        ("p_value", "p", "p"), ("p_holm", "p (Holm)", "p"),
        ("n", "n cells", "int"), ("failed", "failed", "int"), ("families", "in families", "int"),
    )  # fmt: skip
    caption = (
        "Median over the layers of the log ratio to initialization, relative to the median of the "
        "backbone. An AUC of 0.5 is chance; p by permutation within backbones."
    )
    title = "Do the weights tell failed cells apart?"
    return table_from(patterns.predictions, title, columns, caption, index="figure")


def _cells(patterns: WeightPatterns) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"), *_metric_columns(),
        ("layers", "n layers", "int"), ("failed", "failed", "text"),
        ("init", "initialization", "text"),
    )  # fmt: skip
    frame = patterns.cells.assign(failed=["yes" if f else "" for f in patterns.cells["failed"]])
    caption = (
        "Medians over the layers. Initialization: own, the weights that the run started from, "
        "drawn again from its seed; gaussian, of variance 1 / fan-in, where that is not possible."
    )
    return table_from(frame, "Weights by cell", columns, caption, folded=True)


def _definitions() -> str:
    low, high = ALPHA_THRESHOLDS
    return (
        "alpha: exponent of a power law fitted to the tail of the eigenvalues by maximum "
        "likelihood, with the start of the tail chosen by the fit; WeightWatcher calls layers "
        f"under {low:g} over-trained and over {high:g} under-trained. Entropy: of a histogram of "
        f"{BINS} equal bins, in nats. Norm: Frobenius. First {COMPONENTS} components: their share "
        "of the variance of the filters. Stable rank: sum of the eigenvalues divided by the "
        "largest."
    )
