"""Measured test accuracy of each optimizer, with its own defaults, on scikit-learn's digits.

Two small backbones; `digits_accuracy.csv` says how it was measured.
"""

import csv
import functools
from pathlib import Path

FILE = Path(__file__).with_suffix(".csv")


@functools.cache
def accuracies() -> dict[str, dict[str, float]]:
    """Return optimizer -> backbone -> test accuracy in percent; 0 for a run that diverged."""
    with open(FILE, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(line for line in file if not line.startswith("#")))
    return {
        row.pop("optimizer"): {
            model: 0.0 if shown == "diverged" else float(shown)
            for model, shown in row.items()
            if shown
        }
        for row in rows
    }
