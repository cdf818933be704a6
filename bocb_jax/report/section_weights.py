"""What a report says of the weights of the runs."""

from bocb_jax.report import plots
from bocb_jax.coupling.analysis import Analysis
from bocb_jax.report.document import Picture, Section, Table, Text, table_of
from bocb_jax.patterns.spectra import BINS, COMPONENTS, THRESHOLDS
from bocb_jax.report.style import label
from bocb_jax.patterns.cells import FIGURES, Weights

_TITLES = {
    "alpha": "alpha",
    "entropy": "entropy",
    "l2_norm": "norm",
    "pca_ratio": f"first {COMPONENTS} components",
    "stable_rank": "stable rank",
}


def build(analysis: Analysis, weights: Weights, pictures: set[str]) -> Section:
    """The section on weights.

    Args:
      analysis: of the table whose runs they are of.
      weights: their figures.
      pictures: names of those that there are.
    """
    names = [entry for entry in plots.ridge_names(analysis, weights) if entry[2] in pictures]
    alphas = [_picture(*entry) for entry in names if entry[1] == "alpha"]
    entropies = [_picture(*entry, folded=True) for entry in names if entry[1] == "entropy"]
    blocks = (
        Text(weights.sentences),
        *alphas,
        _optimizers(weights),
        _predictions(weights),
        *entropies,
        _cells(weights),
        Text((_definitions(),)),
    )
    return Section("weights", "What the weights look like", blocks)


def _picture(backbone: str, metric: str, name: str, *, folded: bool = False) -> Picture:
    title = f"{metric.capitalize()} over the layers of {label(backbone)}"
    words = (
        "A ridge an optimizer, from the best score to the worst; those that failed are grey and "
        "hatched; dashed: the weights that the run began with."
    )
    return Picture(name, title, words, folded)


def _pairs(kind: str = "number"):
    for name in FIGURES:
        yield name, _TITLES[name], kind
        yield f"{name}_init", "at the start", kind


def _optimizers(weights: Weights) -> Table:
    low, high = THRESHOLDS
    columns = (
        ("optimizer", "optimizer", "text"),
        *_pairs(),
        ("below", f"alpha under {low:g}", "percent", "share of the layers that have an alpha"),
        ("above", f"alpha over {high:g}", "percent", "share of the layers that have an alpha"),
        ("n", "n layers", "int"),
        ("backbones", "n backbones", "int"),
        ("failed", "failed", "int", "cells that are outliers or in which no run finished"),
    )
    caption = "Medians over all layers of all backbones, beside those of the random start."
    frame = weights.optimizers
    return table_of(frame, "Weights by optimizer", columns, caption, index="optimizer")


def _predictions(weights: Weights) -> Table:
    columns = (
        ("figure", "figure", "text"),
        ("direction", "in failed cells", "text"),
        ("auc", "area in the sample", "number", "under the curve (ROC)"),
        ("auc_out_of_family", "area, family left out", "number"),
        ("p_value", "p", "p"), ("p_holm", "p (Holm)", "p"),
        ("n", "n cells", "int"), ("failed", "failed", "int"), ("families", "in families", "int"),
    )  # fmt: skip
    caption = (
        "Median over the layers of the log ratio to the random start, counted from the median of "
        "the backbone. Areas of 0.5 are those of a coin; p by permutation within backbones."
    )
    title = "Do the weights tell failed cells apart?"
    return table_of(weights.predictions, title, columns, caption, index="figure")


def _cells(weights: Weights) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"), *_pairs(),
        ("layers", "n layers", "int"), ("failed", "failed", "text"),
        ("init", "random start", "text"),
    )  # fmt: skip
    frame = weights.cells.assign(failed=["yes" if f else "" for f in weights.cells["failed"]])
    caption = (
        "Medians over the layers. Random start: own, the weights that the run began with by its "
        "seed; gaussian, of variance 1 / fan-in, where these cannot be drawn."
    )
    return table_of(frame, "Weights by cell", columns, caption, folded=True)


def _definitions() -> str:
    low, high = THRESHOLDS
    return (
        "alpha: exponent of the power law in the tail of the eigenvalues, by maximum likelihood "
        f"with a chosen beginning; WeightWatcher calls layers under {low:g} over-trained and over "
        f"{high:g} under-trained. Entropy: of a histogram of {BINS} equal bins, in nats. Norm: "
        f"Frobenius. First {COMPONENTS} components: their share of the variance of the filters. "
        "Stable rank: sum of the eigenvalues by the largest."
    )
