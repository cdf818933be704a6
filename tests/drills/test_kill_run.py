"""A run that is killed has the bits of one that is not."""

import pytest
from drills import kill_run


@pytest.mark.slow
def test_kills_change_no_bit():
    kill_run.main(["--kills", "1"])  # 20 of them: python tests/drills/kill_run.py
