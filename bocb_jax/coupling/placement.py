"""Published backbones that resemble one of your own, by what each optimizer loses on them."""

import numpy as np
import pandas

from bocb_jax import paper
from bocb_jax.paper.categories import published_category, to_paper


def place(regret: pandas.Series) -> pandas.DataFrame:
    """Return the published backbones, the most similar first.

    Both sides are regrets over the same few optimizers: points behind the best of them. The
    published scores are those of CIFAR-100 after 200 epochs, so similarity is only a hint.

    Args:
      regret: points by optimizer, under this project's names; optimizers that the paper lacks and
        missing values are left out.

    Returns:
      Index: the paper's backbones. Columns: the regret with each optimizer, and distance (root mean
      square of the differences, points). Empty with fewer than two optimizers in common.
    """
    regret = regret.dropna()
    common = [opt for opt in regret.index if published_category(opt) and "@" not in opt]
    if len(common) < 2:
        return pandas.DataFrame(columns=["distance"])
    scores = paper.table("cifar100").loc[[to_paper(opt) for opt in common]]
    known = (scores.max() - scores).T.set_axis(common, axis=1)
    own = regret[common] - regret[common].min()
    distance = np.sqrt(((known - own) ** 2).mean(axis=1))
    return known.assign(distance=distance).sort_values("distance", kind="stable")
