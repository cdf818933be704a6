"""How noisy the runs are, and which of them finish."""

import numpy as np

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import wording
from bocb_jax.report.document import Section, Table, table_from


def build(analysis: Analysis) -> Section:
    """Return the section on noise between seeds, and on reliability."""
    blocks = (_noise(analysis), _best(analysis), _reliability(analysis))
    return Section("noise", "Noise and reliability", blocks)


def _noise(analysis: Analysis) -> Table:
    columns = (
        ("backbone", "backbone", "text"),
        ("sd", f"standard deviation of a run, {analysis.table.distance_unit}", "rate"),
        ("df", "degrees of freedom", "int"),
        ("own_sd", "of its own seeds alone", "rate"),
        ("own_df", "degrees of freedom", "int"),
        ("source", "from", "text"),
    )
    caption = (
        "The backbone's own variance is drawn towards the common one as far as the backbones agree "
        "(Smyth 2004)."
    )
    frame = analysis.noise[analysis.noise["sd"].notna()]
    # Infinitely many degrees of freedom (a noise that is given) are an empty cell.
    frame = frame.replace({"df": {np.inf: np.nan}})
    frame = wording.distances(analysis.table, frame, "sd", "own_sd")
    return table_from(frame, "Noise between seeds", columns, caption, index="backbone", folded=True)


def _best(analysis: Analysis) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("regret", f"behind the best, {analysis.table.distance_unit}", "interval"),
        ("verdict", "shown to be", "text"), ("n", "n", "int"),
    )  # fmt: skip
    frame = analysis.best
    frame = frame[frame["high"].notna()].rename(
        columns={"low": "regret_low", "high": "regret_high"}
    )
    frame = wording.distances(analysis.table, frame, "regret")
    caption = (
        f"[low, high]: {100 * analysis.confidence:g} % intervals that hold together on a backbone "
        f"(Hsu 1996). Within or beyond {wording.equal_distance(analysis.table)} of the best."
    )
    return table_from(frame, "Comparison with the best", columns, caption, folded=True)


def _reliability(analysis: Analysis) -> Table:
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("runs", "runs", "int"), ("finished", "finished", "int"), ("share", "share", "percent"),
    )  # fmt: skip
    frame = analysis.reliability
    frame = frame[frame["share"] < 1].rename(columns={"low": "share_low", "high": "share_high"})
    caption = "Cells in which a run diverged; Wilson's interval of the share that finishes."
    return table_from(frame, "Reliability", columns, caption)
