"""What was measured: name, unit, direction, and what an empty cell means."""

import dataclasses
import itertools
import re

from bocb_jax.coupling.score_table import SCORES
from bocb_jax.errors import UserError

# Metrics that are better the lower they are, and those that are measured in time, by words in
# their names.
_LOWER = ("loss", "error", "err", "perplexity", "ppl", "nll", "bpc", "bpd", "rmse", "mse", "mae",
          "wer", "cer", "fid", "regret", "rank", "epochs", "steps", "iterations")  # fmt: skip
_TIMES = ("seconds", "second", "sec", "secs", "time", "runtime", "minutes", "hours", "duration")
_TIME_UNITS = ("s", "sec", "secs", "seconds", "ms", "min", "minutes", "h", "hours", "d", "days",
               "steps", "epochs", "iterations")  # fmt: skip
# A time behind "per", or behind what is counted, makes a rate: "images_per_second", "samples/sec".
_RATE_UNITS = ("s", "sec", "secs", "second", "seconds", "min", "minute", "minutes", "h", "hour",
               "hours", "day")  # fmt: skip
_COUNTED = ("images", "imgs", "samples", "examples", "frames", "tokens", "items", "batches", "it",
            "its", "iter", "iters", "iterations", "steps", "epochs")  # fmt: skip
# Columns of accuracies by preference, names as `plain_name` gives them.
_ACCURACIES = (
    "score", "test_accuracy", "test_acc", "test_acc1", "test_acc_1", "test_top1", "test_top_1",
    "test_acc_top1", "test_score", "final_test_accuracy", "final_test_acc", "best_test_accuracy",
    "best_test_acc", "accuracy", "acc", "top1", "top_1", "acc1", "acc_1", "acc_at_1", "top1_acc",
    "top1_accuracy", "top_1_acc", "top_1_accuracy", "final_accuracy", "final_acc", "best_accuracy",
    "best_acc", "best_acc1", "eval_accuracy", "eval_acc", "eval_top1",
)  # fmt: skip
VALIDATED = (
    "validation_score", "validation_accuracy", "validation_acc", "val_accuracy", "val_acc",
    "val_acc1", "val_top1", "valid_accuracy", "valid_acc", "valid_top1", "best_val_accuracy",
    "best_val_acc",
)  # fmt: skip
_LOSSES = ("train_loss", "training_loss", "final_train_loss", "loss", "score")


@dataclasses.dataclass(frozen=True)
class Metric:
    """A metric, and the columns that may hold it.

    Attributes:
      name: "test accuracy", "train loss", "log-odds", or any other.
      unit: of its figures.
      higher_is_better: its direction.
      censored: whether an empty cell is a run that did not reach its target.
      columns: names of columns by preference, as `plain_name` gives them.
    """

    name: str
    unit: str
    higher_is_better: bool
    censored: bool
    columns: tuple[str, ...]

    @property
    def is_accuracy(self) -> bool:
        """Whether figures are accuracies."""
        return self.unit == "points"

    @property
    def in_percent(self) -> bool:
        """Whether figures lie between 0 and 100, or are fractions to be shown so."""
        return self.unit in ("points", "AP")

    @property
    def direction(self) -> str:
        """In words."""
        return "higher is better" if self.higher_is_better else "lower is better"


def plain_name(header: str) -> str:
    """Return the name of a column in lower case, words joined by "_".

    >>> plain_name("Test Acc@1 (%)"), plain_name("testAcc"), plain_name("top-1")
    ('test_acc_1', 'test_acc', 'top_1')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z][a-z])", "_", header)
    return re.sub(r"[^0-9a-zA-Z]+", "_", words).strip("_").lower()


def metric_of(
    score: str = "test accuracy",
    *,
    name: str | None = None,
    unit: str | None = None,
    higher_is_better: bool | None = None,
    not_reached: bool | None = None,
) -> Metric:
    """Return a metric.

    Args:
      score: a key of `SCORES`, unless a name is given.
      name: of another metric, such as "perplexity" or "seconds to target".
      unit: by default the metric's name.
      higher_is_better: by default told by the name and the unit: losses, errors and times are
        better the lower they are.
      not_reached: whether an empty cell is a run that missed its target; by default so for times.

    Raises:
      UserError: there is no such score, or options of another metric are given without its name.
    """
    if name is None:
        if unit is not None or higher_is_better is not None:
            raise UserError("A unit or a direction needs the name of the metric.")
        if score not in SCORES:
            raise UserError(f"There is no score '{score}'. There are: {', '.join(SCORES)}.")
        if score == "train loss":
            return Metric(score, *SCORES[score], not_reached is True, _LOSSES)
        # Log-odds are computed from accuracies.
        columns = (*_ACCURACIES, *VALIDATED[1:])
        return Metric("test accuracy", "points", True, not_reached is True, columns)
    own = plain_name(name)
    is_time = is_time_of(own, unit)
    if higher_is_better is None:
        higher_is_better = not (is_time or is_lower(own))
    return Metric(
        name=name,
        unit=unit or name,
        higher_is_better=higher_is_better,
        censored=is_time if not_reached is None else not_reached,
        columns=(own, own.replace("_", ""), f"test_{own}", "score", "value", "metric"),
    )


def is_lower(name: str) -> bool:
    """Return whether a plain name is that of a loss, an error or a time."""
    return bool({*_LOWER, *_TIMES} & _telling(name))


def is_time_of(name: str, unit: str | None) -> bool:
    """Return whether a metric is a time, by its unit or else its plain name."""
    if unit is not None:
        return unit.lower() in _TIME_UNITS
    return bool(set(_TIMES) & _telling(name))


def _telling(name: str) -> set[str]:
    """Return the words of a plain name that tell what is measured; none for a rate.

    >>> _telling("seconds_per_epoch"), _telling("images_per_second"), _telling("samples_sec")
    ({'seconds'}, set(), set())
    """
    words = name.split("_")
    for before, word in itertools.pairwise(words):
        if word in _RATE_UNITS and before in ("per", *_COUNTED):
            return set()
    return set(words[: words.index("per")] if "per" in words else words)
