"""A run that is killed has the bits of one that is not."""

import kill_run


def test_kills_change_no_bit():
    kill_run.main(["--kills", "2"])  # 20 of them: python tests/kill_run.py
