"""Rules for outliers by hand."""

import pytest
from helpers.score_tables import one_seed_table

from bocb_jax.coupling import outliers
from bocb_jax.errors import UserError


def test_every_rule_by_hand():
    table = one_seed_table([[70], [71], [72], [73], [66]])
    found = outliers.find_outliers(table, "paper_marks(2)")
    # Median 71, MAD 1: the cut is 71 - max(2, 1.4826).
    assert found.cuts["b0"] == 69
    assert found.labels["b0"].tolist() == ["top4", "top4", "top4", "best", "outlier"]
    assert outliers.find_outliers(table, "regret(1.5)").labels["b0"].tolist().count("outlier") == 3
    assert outliers.find_outliers(table, "paper_eq1").cuts["b0"] == 73 - 2
    with pytest.raises(
        UserError, match=r"no rule 'best' for outliers\. There are: paper_marks, paper_eq1"
    ):
        outliers.find_outliers(table, "best")
