"""Our trajectories against those of the reference implementations, in float64.

tests/golden/optimizers/*.npz hold parameters after 1, 10 and 60 updates at a constant and at a
cosine learning rate, made from a stream of gradients that a seed fixes. Weight decay applied to
every parameter. golden/optimizers/make_later.py made those of optimizers that the paper lacks.
"""

import dataclasses
import functools
import json
import pathlib
import zlib

import jax
import numpy as np
import optax
import pytest

from bocb_jax import optim

GOLDEN = sorted((pathlib.Path(__file__).parents[1] / "golden" / "optimizers").glob("*.npz"))
SHAPES = {"conv": (8, 6, 3, 3), "linear": (12, 10), "bias": (12,), "scale": (8,)}
KINDS = {"conv": "conv", "linear": "matrix", "bias": "bias", "scale": "norm"}
BOUNDS = {"exact": 1e-9, "eps-level": 1e-6}


def normal(name, seed, shape):
    bits = np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode()))
    return np.random.Generator(bits).standard_normal(shape)


def to_ours(x):
    """Move the output channel from the first axis, as in PyTorch, to the last, as here."""
    return {2: lambda: x.T, 4: lambda: x.transpose(2, 3, 1, 0)}.get(x.ndim, lambda: x)()


def problem(seed, steps):
    """Return the initial parameters and the stacked gradients, in our layout."""
    start = {k: normal(f"p:{k}", seed, s) * 0.5 for k, s in SHAPES.items()}
    grads = [
        {
            k: normal(f"g{t}:{k}", seed, s) * (0.3 + 0.7 * np.cos(t / 7) ** 2) + 0.2 * start[k]
            for k, s in SHAPES.items()
        }
        for t in range(steps)
    ]
    stacked = {k: np.stack([to_ours(g[k]) for g in grads]) for k in SHAPES}
    return {k: to_ours(v) for k, v in start.items()}, stacked


@dataclasses.dataclass(frozen=True)
class Table(optim.schedules.Schedule):
    """A fraction of the peak for each update; traced, to compile once for all schedules."""

    fractions: jax.Array | None = None

    def after_warmup(self, count):
        return self.fractions[count.astype(int)]


FRACTIONS = {
    "constant": lambda steps: np.ones(steps),
    "cosine": lambda steps: 0.5 * (1 + np.cos(np.pi * np.arange(steps) / steps)),
}


@functools.cache
def deviations(path, **options):
    """Return the largest deviation from each golden trajectory over its largest displacement.

    Returns:
      schedule -> name of the parameter (<name>.x for those to evaluate) -> relative deviation.
    """
    golden = np.load(path)
    start, grads = problem(int(golden["seed"]), int(golden["steps"]))
    spec = {**json.loads(str(golden["spec"])), **options}
    spec.pop("note", None)
    peak = spec.pop("learning_rate")
    name = path.stem.partition(".")[0]
    evaluation = optim.optimizer_info(name).evaluation_parameters

    @jax.jit
    def run(fractions):
        optimizer = optim.create_optimizer(
            name, Table(peak, 0, fractions), decay_mask="all", parameter_kinds=KINDS, **spec
        )

        def step(carry, grads):
            params, state = carry
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            averaged = evaluation(state, params) if evaluation else {}
            return (params, state), params | {f"{k}.x": x for k, x in averaged.items()}

        return jax.lax.scan(step, (start, optimizer.init(start)), grads)[1]

    found = {}
    for schedule, fractions in FRACTIONS.items():
        with jax.enable_x64(True):
            ours = jax.tree.map(np.asarray, run(fractions(len(grads["bias"]))))
        off, moved = {}, 0.0
        for key in ours:
            reference = {t: to_ours(golden[f"{schedule}/{key}@{t}"]) for t in (1, 10, 60)}
            off[key] = max(np.abs(ours[key][t - 1] - x).max() for t, x in reference.items())
            there = start[key.removesuffix(".x")]
            moved = max(moved, *(np.abs(x - there).max() for x in reference.values()))
        found[schedule] = {key: value / moved for key, value in off.items()}
    return found


@pytest.mark.parametrize("schedule", FRACTIONS)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_the_reference(path, schedule):
    # adafactor factors convolutions over other axes than PyTorch; the next test has its axes.
    error = deviations(path)[schedule]
    if path.stem == "adafactor":
        del error["conv"]
    numeric_class = optim.optimizer_info(path.stem.partition(".")[0]).numeric_class
    print(f"{path.stem} {schedule}: {max(error.values()):.1e} ({numeric_class})")
    assert max(error.values()) <= BOUNDS[numeric_class]


def test_adafactor_over_spatial_axes_equals_the_reference():
    path = next(path for path in GOLDEN if path.stem == "adafactor")
    for error in deviations(path, conv_axes="spatial").values():
        assert max(error.values()) <= BOUNDS["exact"]
