"""The optimizer to try first on each backbone, and the evidence for it."""

from collections.abc import Sequence

import pandas

from bocb_jax.coupling.recommend import Advice
from bocb_jax.report.document import Section, Text, table_from

_SHRUNK = (
    "Scores are drawn towards how the optimizers do on the other backbones, as far as the noise "
    "between seeds warrants, and ordered by the result."
)


def build(recommended: Sequence[Advice]) -> Section:
    """Return the section of recommendations, for backbones with scores of their own."""
    rows, rules, unit = [], dict[str, None](), ""
    for advice in recommended:
        if not advice.exact:
            continue
        first, unit = advice.choices[0], advice.unit
        rules[advice.rule if advice.noise is None else _SHRUNK] = None
        rows.append(
            {
                "backbone": advice.backbone,
                "optimizer": first.optimizer,
                "learning_rate": first.learning_rate,
                "weight_decay": first.weight_decay,
                "rates": first.rates,
                "score": first.score,
                "behind": first.behind,
                "n": first.seeds,
                "next": ", ".join(f"{c.optimizer} ({c.behind:.2f})" for c in advice.choices[1:]),
                "mean_regret": first.mean_regret,
            }
        )
    columns = (
        ("backbone", "backbone", "text"),
        ("optimizer", "try first", "text"),
        ("learning_rate", "learning rate", "rate"),
        ("weight_decay", "weight decay", "rate"),
        ("rates", "both from", "text"),
        ("score", "score", "number"),
        ("behind", "behind the best", "number"),
        ("n", "n", "int", "scores averaged"),
        ("next", "then", "text"),
        ("mean_regret", "its mean regret", "number", "over all backbones"),
    )
    title = "The optimizer to try first on each backbone, and the evidence"
    caption = f"Distances in {unit}; in brackets that to the best."
    blocks = (
        Text(tuple(rules)),
        table_from(pandas.DataFrame(rows), title, columns, caption),
    )
    return Section("recommendation", "Try first", blocks)
