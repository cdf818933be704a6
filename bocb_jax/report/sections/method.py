"""How to read a report: the definitions behind its words."""

from bocb_jax.coupling.costs import FAR
from bocb_jax.coupling.result import Analysis
from bocb_jax.report import wording
from bocb_jax.report.document import Section, Text


def build(analysis: Analysis) -> Section:
    """Return the section on the method."""
    lines = (
        "Coupling is what remains of a cell's score after the overall mean, the effect of its "
        "backbone and the effect of its optimizer are taken off: an optimizer that is better "
        "everywhere shows no coupling.",
        "Regret is the distance of a cell to the best optimizer of its backbone.",
        f"Distances of up to {wording.equal_distance(analysis.table)} count as equal; an optimizer "
        f"more than {FAR} times that behind the best of a backbone is one to avoid there.",
        "General advice for a backbone is the optimizer with the lowest mean regret on backbones "
        "of other families; its price is its regret on that backbone.",
        "SGD-like optimizers scale their step with the gradient, at a fixed rate and with momentum "
        "(the paper's category a without what takes only the gradient's direction); adaptive ones "
        "are its category b. What leads is judged by these two kinds; the best optimizer may be of "
        "neither, such as AdaGrad.",
        f"Marks: {analysis.outliers.rule}: {wording.sentence(analysis.outliers.description)}",
        f"Intervals are at {100 * analysis.confidence:g} %, from {analysis.resamples} resamples "
        f"with seed {analysis.seed}.",
        "A run that did not finish, for whatever reason, has no score.",
        "Backbones differ in many ways at once, so nothing here names a cause.",
        "After Li et al., Unveiling the Backbone-Optimizer Coupling Bias in Visual Representation "
        "Learning, 2024, arXiv 2410.06373.",
    )
    return Section("method", "How to read this", (Text(lines, listed=True),))
