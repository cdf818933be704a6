"""Labels of failed cells."""

import numpy as np
from helpers.score_tables import one_seed_table

from bocb_jax.coupling import failures, outliers


def test_every_label_by_hand():
    losses = [[0.5, 0.5], [0.55, 0.5], [1.5, 0.5], [0.4, 0.5], [3.9, 0.5], [np.nan, 0.5]]
    scores = [[80, 80], [79, 80], [60, 80], [61, 80], [5, 80], [1, 80]]
    status = [["finished"] * 2] * 5 + [["diverged", "finished"]]
    made = one_seed_table(
        scores, train_loss=losses, status=status, first_train_loss=np.full((6, 2), 4)
    )
    marked = outliers.find_outliers(made, "regret(2)")
    found = failures.label(made, marked, made.matrix().max() - made.matrix())
    assert found.set_index("optimizer")["label"].to_dict() == {
        "o2": "under-fitted", "o3": "over-fitted", "o4": "never left the start", "o5": "diverged",
    }  # fmt: skip
    assert found["regret"].is_monotonic_decreasing
