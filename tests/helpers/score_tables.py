"""Tables of scores for tests: of given values, at random, and as results of a sweep."""

import itertools

import numpy as np
import pandas

from bocb_jax.coupling.cells import Cells
from bocb_jax.coupling.cells import cells_of as group
from bocb_jax.coupling.score_table import ScoreTable


def frame(values) -> pandas.DataFrame:
    """Name the rows of (optimizers, backbones) values o0, o1, ... and the columns b0, b1, ..."""
    values = np.asarray(values, float)
    return pandas.DataFrame(
        values,
        index=[f"o{i}" for i in range(values.shape[0])],
        columns=[f"b{i}" for i in range(values.shape[1])],
    )


def table_of(values, optimizers=None, backbones=None) -> ScoreTable:
    """Build a table from (optimizers, backbones, seeds) scores, NaN where missing."""
    o, b, s = np.indices(np.shape(values))
    optimizers = optimizers or [f"o{i}" for i in range(np.shape(values)[0])]
    backbones = backbones or [f"b{i}" for i in range(np.shape(values)[1])]
    runs = pandas.DataFrame(
        {
            "optimizer": np.array(optimizers)[o.ravel()],
            "backbone": np.array(backbones)[b.ravel()],
            "seed": s.ravel(),
            "score": np.ravel(values),
            "status": "finished",
        }
    )
    return ScoreTable(runs, None, "test accuracy", "points", True, 1.0, "a test")


def one_seed_table(values, **columns) -> ScoreTable:
    """Build a table from (optimizers, backbones) scores and further columns of that shape."""
    values = np.asarray(values, float)
    o, b = np.indices(values.shape)
    runs = pandas.DataFrame(
        {
            "optimizer": [f"o{i}" for i in o.ravel()],
            "backbone": [f"b{i}" for i in b.ravel()],
            "seed": 0,
            "score": values.ravel(),
            "status": "finished",
            "run": "",
        }
        | {name: np.ravel(column) for name, column in columns.items()}
    )
    others = ["learning_rate", "weight_decay", "train_loss", "train_accuracy"]
    for name in (*others, "first_train_loss", "validation_score"):
        runs[name] = runs.get(name, np.nan)
    return ScoreTable(runs, None, "test accuracy", "points", True, 1.0, "a test")


def random_scores(rng, shape, interaction=0.0, noise=1.0) -> np.ndarray:
    """Draw (optimizers, backbones, seeds) scores: main effects, coupling of an RMS, noise."""
    o, b, _ = shape
    coupling = rng.standard_normal((o, b))
    coupling -= coupling.mean(0)
    coupling -= coupling.mean(1, keepdims=True)
    coupling *= interaction / np.sqrt((coupling**2).mean())
    mean = 70 + 3 * rng.standard_normal((o, 1)) + 5 * rng.standard_normal(b) + coupling
    return mean[..., None] + noise * rng.standard_normal(shape)


def cells_of(values) -> Cells:
    """Group (optimizers, backbones, seeds) scores by cell."""
    values = np.asarray(values)
    o, b, _ = np.nonzero(~np.isnan(values))
    return group(values[~np.isnan(values)], o, b, values.shape[:2])


def sweep_results(
    seed=0,
    optimizers=("sgd", "adamw", "lamb"),
    backbones=("vit_s", "resnet50", "swin_t", "convnext_t"),
    seeds=3,
    rates=(0.1, 0.3, 1.0, 3.0, 10.0),
    ceiling=0.0,
) -> pandas.DataFrame:
    """Return results of a sweep whose best learning rate differs by pair.

    `ceiling` is coupling that remains after tuning.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for (i, o), (j, b) in itertools.product(enumerate(optimizers), enumerate(backbones)):
        best = rates[(i + j) % len(rates)]
        top = 0.7 + 0.02 * j + ceiling * (-1) ** (i * j)
        shared = {"model": b, "optimizer": o, "status": "finished", "weight_decay": 0.05,
                  "num_classes": 100, "dataset": "cifar100", "first_train_loss": 4.0}  # fmt: skip
        for rate in rates:
            score = top - 0.02 * np.log10(rate / best) ** 2 + 0.002 * rng.standard_normal()
            rows.append(shared | {"phase": "search", "seed": 0, "learning_rate": rate,
                                  "validation_accuracy": score, "train_loss": 1.0})  # fmt: skip
        for s in range(1, seeds + 1):
            score = top + 0.002 * rng.standard_normal()
            rows.append(shared | {"phase": "final", "seed": s, "learning_rate": best,
                                  "validation_accuracy": score, "test_accuracy": score,
                                  "train_loss": 1.0, "wall_seconds": 60.0 * (i + 1),
                                  "seconds_to_target": 30.0 * (i + 1)})  # fmt: skip
    return pandas.DataFrame(rows)
