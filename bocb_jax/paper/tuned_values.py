"""The paper's tuned learning rates and weight decays on CIFAR-100 (its Tables A4 and A5).

They are the rows of `published/hyperparameters.csv`. Standard library only.
"""

import collections
import dataclasses
import functools

from bocb_jax.paper import categories, taxonomy
from bocb_jax.paper.tables import rows

# Backbones without published values -> the one whose values stand in: the published backbone with
# the same recipe and input size; among several, the one with the most similar operator.
STAND_INS = {
    "densenet121": "resnet50",
    "repvgg_a1": "vgg13_bn",
    "convnextv2_t": "convnext_t",
    "unireplknet_t": "swin_t",
    "transnext_t": "vit_s",
    "caformer_s12": "convformer_s12",
}


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The paper's tuned values for a pair of backbone and optimizer."""

    learning_rate: float
    weight_decay: float
    backbone: str  # the backbone that they were tuned on, as this project names it
    exact: bool  # whether that is the backbone that was asked for


def tuned(model: str, opt: str) -> Tuned | None:
    """Return the tuned learning rate and weight decay of a pair on CIFAR-100.

    A backbone that the paper does not have (a small twin, another size) takes the values of its
    relative, by `taxonomy.find`; one without published values takes those of `STAND_INS`.

    Args:
      model: name of a backbone.
      opt: name of an optimizer.

    Returns:
      None where neither the pair nor one that stands in was published.
    """
    relative = taxonomy.find(model)
    if relative is None:
        return None
    base = taxonomy.backbones()[STAND_INS.get(relative.model, relative.model)]
    values = _values().get((base.column, categories.to_paper(opt)))
    if values is None:
        return None
    return Tuned(*values, backbone=base.model, exact=taxonomy.to_model(model) == base.model)


def most_frequent(opt: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return an optimizer's most frequent tuned learning rates and weight decays.

    Each is over the 16 published columns, ties in ascending order. Empty for an optimizer that the
    paper does not have. The version of an optimizer by its authors, such as "lars@openmixup",
    counts as the optimizer.
    """
    name = categories.to_paper(opt.partition("@")[0])
    pairs = [values for (_, optimizer), values in _values().items() if optimizer == name]
    rates, decays = (_modes(column) for column in zip(*pairs, strict=True)) if pairs else ((), ())
    return rates, decays


def _modes(values: tuple[float, ...]) -> tuple[float, ...]:
    counts = collections.Counter(values)
    return tuple(sorted(v for v, count in counts.items() if count == max(counts.values())))


@functools.cache
def _values() -> dict[tuple[str, str], tuple[float, float]]:
    """(backbone, optimizer) in the paper's names -> learning rate, weight decay."""
    return {
        (row["backbone"], row["optimizer"]): (
            float(row["learning_rate"]),
            float(row["weight_decay"]),
        )
        for row in rows("hyperparameters")
    }
