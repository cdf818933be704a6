"""Results of a sweep that never ran: known effects, for tests of what comes after a sweep."""

import json
from pathlib import Path

import numpy as np
import pandas


def results(backbones, optimizers, *, rates=5, seeds=3, failing=(), seed=0) -> pandas.DataFrame:
    """A results table: `rates` search runs and `seeds` final runs for each pair.

    Even backbones prefer even optimizers by two points. Pairs in `failing` (indices of backbone
    and optimizer) diverge in every run.
    """
    random = np.random.default_rng(seed)
    rows = []
    for b, backbone in enumerate(backbones):
        for o, optimizer in enumerate(optimizers):
            mean = 0.70 + 0.01 * (b % 7) - 0.004 * (o % 5) + 0.01 * (1 if b % 2 == o % 2 else -1)
            failed = (b, o) in failing
            common = {"study": "made", "model": backbone, "optimizer": optimizer,
                      "dataset": "cifar100", "recipe": "pytorch", "weight_decay": 0.05,
                      "num_classes": 100, "epochs": 20.0, "first_train_loss": 4.6}  # fmt: skip
            for k in range(rates):
                score = mean - 0.01 * abs(k - rates // 2) + random.normal(0, 0.002)
                rows.append(
                    {**common, "phase": "search", "seed": 0, "learning_rate": 10.0 ** (k - 5),
                     "run": f"search-{b}-{o}-{k}", "selected": k == rates // 2,
                     "status": "diverged" if failed else "finished",
                     "validation_accuracy": None if failed else score,
                     "best_validation_accuracy": None if failed else score,
                     "train_loss": 1.0, "train_accuracy": 0.8}
                )  # fmt: skip
            for s in range(seeds):
                score = mean + random.normal(0, 0.002)
                rows.append(
                    {**common, "phase": "final", "seed": s,
                     "learning_rate": 10.0 ** (rates // 2 - 5),
                     "run": f"final-{b}-{o}-{s}", "selected": True,
                     "status": "diverged" if failed else "finished",
                     "test_accuracy": None if failed else score,
                     "validation_accuracy": None if failed else score,
                     "best_validation_accuracy": None if failed else score,
                     "train_loss": 1.0, "train_accuracy": 0.8}
                )  # fmt: skip
    return pandas.DataFrame(rows)


def write_curves(frame: pandas.DataFrame, workdir: Path, *, evaluations: int = 20) -> None:
    """A folder with `metrics.jsonl` for each final run."""
    for row in frame[frame["phase"] == "final"].itertuples():
        folder = workdir / row.run
        folder.mkdir(parents=True)
        last = 0.01 if np.isnan(row.test_accuracy) else row.test_accuracy
        lines = []
        for k in range(1, evaluations + 1):
            share = k / evaluations
            line = {
                "step": 100 * k,
                "epoch": 20 * share,
                "loss": 4.6 - 3.6 * share,
                "accuracy": 0.5,
            }
            lines.append({**line, "step": 100 * k - 50})
            lines.append({**line, "validation_accuracy": last * (1 - np.exp(-5 * share))})
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
