"""Performance profiles by hand."""

import pytest
from helpers.score_tables import one_seed_table

from bocb_jax.coupling import ranking


def test_profiles_by_hand():
    found = ranking.profile(one_seed_table([[80, 70], [79, 75], [60, 75]]))
    assert found.by_regret.loc[0.0].tolist() == [0.5, 0.5, 0.5]
    assert found.by_regret.loc[1.0].tolist() == [0.5, 1.0, 0.5]
    assert found.by_regret.loc[5.0].tolist() == [1.0, 1.0, 0.5]
    # The third optimizer is the best on one backbone and 20 points off on the other.
    assert found.scores.loc["o2", "regret"] == pytest.approx(0.5)
    assert found.scores.loc["o1", "regret"] == pytest.approx(0.95, abs=0.01)
    assert found.by_error_ratio.iloc[0].tolist() == [0.5, 0.5, 0.5]
