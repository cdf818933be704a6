"""Trajectories of the reference implementations, in float64, against ours.

tests/golden/optimizers/*.npz hold parameters after 1, 10 and 60 updates at a constant and at a
cosine learning rate, made from a stream of gradients that a seed fixes. Weight decay applied to
every parameter. Beside the paper's there are those of golden/optimizers/make_later.py.
"""

import json
import pathlib
import zlib

import jax
import numpy as np
import optax
import pytest

from bocb_jax import optim

GOLDEN = sorted((pathlib.Path(__file__).parent / "golden" / "optimizers").glob("*.npz"))
SHAPES = {"conv": (8, 6, 3, 3), "linear": (12, 10), "bias": (12,), "scale": (8,)}
KINDS = {"conv": "conv", "linear": "matrix", "bias": "bias", "scale": "norm"}
BOUNDS = {"exact": 1e-9, "eps-level": 1e-6}


def normal(name, seed, shape):
    bits = np.random.PCG64(zlib.crc32(f"{seed}:{name}".encode()))
    return np.random.Generator(bits).standard_normal(shape)


def to_ours(x):
    """From PyTorch's layout, output channel first, to ours, output channel last."""
    return {2: lambda: x.T, 4: lambda: x.transpose(2, 3, 1, 0)}.get(x.ndim, lambda: x)()


def problem(seed, steps):
    """The initial parameters and the stack of gradients, in our layout."""
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


def trajectory(optimizer, params, grads, evaluation):
    """Parameters after each update, stacked; those to evaluate as <name>.x where they differ."""

    def step(carry, grads):
        params, state = carry
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        averaged = evaluation(state, params) if evaluation else {}
        return (params, state), params | {f"{name}.x": x for name, x in averaged.items()}

    run = jax.jit(lambda: jax.lax.scan(step, (params, optimizer.init(params)), grads)[1])
    return jax.tree.map(np.asarray, run())


def deviation(golden, schedule, optimizer, evaluation, names):
    """The largest deviation from the golden trajectory over its largest displacement."""
    start, grads = problem(int(golden["seed"]), int(golden["steps"]))
    ours = trajectory(optimizer, start, grads, evaluation)
    worst = moved = 0.0
    for name in names or ours:
        for step in (1, 10, 60):
            reference = to_ours(golden[f"{schedule}/{name}@{step}"])
            worst = max(worst, np.abs(ours[name][step - 1] - reference).max())
            moved = max(moved, np.abs(reference - start[name.removesuffix(".x")]).max())
    return worst / moved


def measure(path, schedule, names=None, **options):
    golden = np.load(path)
    name = path.stem.partition(".")[0]
    spec = {**json.loads(str(golden["spec"])), **options}
    spec.pop("note", None)
    rate = spec.pop("learning_rate")
    if schedule == "cosine":
        rate = optim.schedules.warmup_cosine(rate, 0, int(golden["steps"]))
    with jax.enable_x64(True):
        optimizer = optim.create_optimizer(
            name, rate, decay_mask="all", parameter_kinds=KINDS, **spec
        )
        evaluation = optim.optimizer_info(name).evaluation_parameters
        return deviation(golden, schedule, optimizer, evaluation, names)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_equals_the_reference(path, schedule):
    # adafactor factors convolutions over other axes than PyTorch; the next test has its axes.
    names = ("linear", "bias", "scale") if path.stem == "adafactor" else None
    numeric_class = optim.optimizer_info(path.stem.partition(".")[0]).numeric_class
    error = measure(path, schedule, names)
    print(f"{path.stem} {schedule}: {error:.1e} ({numeric_class})")
    assert error <= BOUNDS[numeric_class]


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_adafactor_over_spatial_axes_equals_the_reference(schedule):
    path = next(path for path in GOLDEN if path.stem == "adafactor")
    assert measure(path, schedule, conv_axes="spatial") <= BOUNDS["exact"]
    assert measure(path, schedule, conv_axes="channels") > 0.1
