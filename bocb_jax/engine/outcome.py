"""What `result.json` says besides the scores: how training went, and why it failed."""

import itertools
import re
import traceback
from typing import Any


def failure(error: BaseException) -> dict[str, Any]:
    """Return the result of a run that an error ended: "out_of_memory" or "crashed"."""
    text = f"{type(error).__name__}: {error}"
    is_memory = isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error)
    asked = re.search(r"allocat\w* (\d+) bytes", str(error))
    return {
        "status": "out_of_memory" if is_memory else "crashed",
        "error": text,
        "bytes_asked": int(asked.group(1)) if is_memory and asked else None,
        "traceback": "".join(traceback.format_exception(error)),
    }


def summary(lines: list[dict[str, Any]], epoch_steps: int) -> dict[str, Any]:
    """Summarize the lines of `metrics.jsonl`.

    Args:
      lines: in order; each covers the steps since the one before.
      epoch_steps: steps per epoch.

    Returns:
      "first_train_loss": of the first line; "train_loss" and "train_accuracy": means over the
      steps of the last epoch; "evaluations": [step, validation accuracy] of each evaluation;
      "evaluation_seconds": when each took place, in seconds of training since the start.
    """
    if not lines:
        return {}
    steps = [0, *(line["step"] for line in lines)]
    begin = steps[-1] - epoch_steps
    # A line that spans the start of the last epoch counts with its share of that epoch.
    weights = [b - max(a, begin) for a, b in itertools.pairwise(steps)]
    weights = [max(weight, 0) for weight in weights]

    def mean(name: str) -> float | None:
        values = [line[name] for line in lines]
        if any(v is None for v, weight in zip(values, weights, strict=True) if weight):
            return None  # not finite
        return sum(v * w for v, w in zip(values, weights, strict=True) if w) / sum(weights)

    evaluations = [line for line in lines if "validation_accuracy" in line]
    return {
        "first_train_loss": lines[0]["loss"],
        "train_loss": mean("loss"),
        "train_accuracy": mean("accuracy"),
        "evaluations": [[line["step"], line["validation_accuracy"]] for line in evaluations],
        "evaluation_seconds": [line.get("seconds") for line in evaluations],
    }
