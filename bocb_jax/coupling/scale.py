"""On which scale scores are compared: as they are, in log-odds, or relative to the best."""

import dataclasses
import math
from typing import Any

from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.errors import UserError

# Above this ratio of the best scores of two backbones, regrets are relative to the best.
_SCALES_DIFFER = 3.0


@dataclasses.dataclass(frozen=True)
class Scale:
    """On which scale scores are compared, and what is known of their noise.

    Attributes:
      noise: standard deviation of one figure; None if not known.
      equal: difference that counts as equal; None for the unit's default.
      relative: whether regrets are ratios to the best of a backbone, and `noise` and `equal`
        shares of a score; None to decide by whether backbones differ in scale.
      log_odds: whether accuracies become log-odds, which `noise` and `equal` are then in.
    """

    noise: float | None = None
    equal: float | None = None
    relative: bool | None = None
    log_odds: bool = False

    def __post_init__(self) -> None:
        for name, value in (("noise", self.noise), ("difference that counts as equal", self.equal)):
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"The {name} is {value}; it must be a positive number.")

    def apply(self, table: ScoreTable) -> ScoreTable:
        """Return a table on this scale."""
        relative = self.relative
        if self.log_odds:
            table = table.log_odds()
        elif relative or (relative is None and _scales_differ(table)):
            table = table.logarithms()
            said = f"{table.described}; relative to the best of each backbone"
            table = dataclasses.replace(table, described=said)
        changed: dict[str, Any] = {}
        if self.noise is not None:
            changed["noise"] = math.log1p(self.noise) if table.relative else self.noise
        if self.equal is not None:
            changed["equal"] = math.log1p(self.equal) if table.relative else self.equal
        return dataclasses.replace(table, **changed)


AS_MEASURED = Scale()


def _scales_differ(table: ScoreTable) -> bool:
    """Return whether the best scores of backbones differ so much that differences mean nothing."""
    if table.unit in ("points", "log-odds", "nats", "AP"):
        return False
    best = (table.sign * table.goodness().max()).dropna()
    positive = bool((table.runs["score"].dropna() > 0).all())
    return positive and len(best) > 1 and float(best.max() / best.min()) > _SCALES_DIFFER
