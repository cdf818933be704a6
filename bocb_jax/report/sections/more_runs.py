"""Which further runs would decide what is undecided."""

from bocb_jax.coupling.result import Analysis
from bocb_jax.report.document import Block, Section, Text
from bocb_jax.report.more_runs import Sweep, more_runs


def build(analysis: Analysis, sweep: Sweep | None) -> Section:
    """Return the section on further runs, with the commands that start them."""
    blocks: list[Block] = []
    for wanted in more_runs(analysis, sweep):
        blocks.append(Text((wanted.sentence,)))
        if wanted.command:
            blocks.append(Text((wanted.command,), code=True))
    return Section("more", "What more runs would decide", tuple(blocks))
