"""Runs that train together: each equals the run alone."""

import contextlib
import dataclasses
import json
import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from drills import kill_run
from flax import nnx

from bocb_jax import optim
from bocb_jax.build import compiled_population
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.engine import sharding
from bocb_jax.engine.metrics import JsonLines
from bocb_jax.engine.passes import GradientOptions, Passes, Preprocessing
from bocb_jax.engine.population import Population
from bocb_jax.engine.program import Program
from bocb_jax.engine.steps import OptimizerFunctions, Steps
from bocb_jax.engine.task import Classification
from bocb_jax.errors import Interrupted, UserError
from bocb_jax.models import layers
from bocb_jax.train import Run, train
from bocb_jax.train_population import train_together

TINY = {
    "model": "vit_mini",
    "model_args": {"depth": 1, "width": 16, "heads": 2, "drop_path": 0.1},
    "opt": "sgd",
    "epochs": 2,
    "batch_size": 256,
    "image_size": 16,
    "parallel": {"devices": 1},
    "checkpoint": {"every_steps": 3},
    "log": {"every_steps": 3, "progress": "none"},
}
RATES = (0.1, 0.03, 0.3)


@pytest.fixture
def configs(tmp_path, compile_cache):
    """Makes configs that differ in rates and seeds, in a folder of their own."""

    def make(where, **changes):
        settings = {**TINY, "compile_cache": compile_cache, "workdir": str(tmp_path / where)}
        return [
            from_dict(TrainConfig, {**settings, "lr": rate, "seed": seed, **changes})
            for seed, rate in enumerate(RATES)
        ]

    return make


def alone(configs):
    return [train(config) for config in configs]


# Alone and together, XLA may sum the same numbers in another order. Two orders of a sum of n terms
# differ by about sqrt(n) u of its size (Higham and Mary, 2019; u: half the distance from 1 to the
# next float32). Here n counts examples and tokens of a batch, and every step adds such an error.
STEPS = 12
ROUNDING = STEPS * np.finfo(np.float32).eps / 2 * np.sqrt(256 * 16)


def compare(ours, theirs):
    """Equal but for rounding: lines of metrics, result, last state, best weights."""
    for a, b in zip(ours, theirs, strict=True):
        folders = a.folder(), b.folder()
        pairs = list(zip(*(kill_run.metrics(folder) for folder in folders), strict=True))
        pairs.append([kill_run.result(folder) for folder in folders])
        for x, y in pairs:
            assert x.keys() == y.keys()
            exact = {"step", "epoch", "steps", "status", "diverged_at_step", "best_step"} & x.keys()
            assert [x[name] for name in exact] == [y[name] for name in exact]
            for name in x:
                if "loss" in name and y[name] is not None:
                    np.testing.assert_allclose(x[name], y[name], rtol=ROUNDING, err_msg=name)
                elif "accuracy" in name and y[name] is not None:
                    assert abs(x[name] - y[name]) < 0.01  # one example of 135
                elif name in ("grad_norm", "learning_rate") and y[name] is not None:
                    np.testing.assert_allclose(x[name], y[name], rtol=ROUNDING, err_msg=name)
        if pairs[-1][0]["status"] != "finished":
            continue
        states = [kill_run.arrays(folder) for folder in folders]
        for kind in states[0]:
            for x, y in zip(*(state[kind] for state in states), strict=True):
                x, y = np.asarray(x), np.asarray(y)
                np.testing.assert_allclose(x, y, rtol=0, atol=ROUNDING * np.abs(y).max())


def test_a_member_equals_the_run_alone(configs):
    ours, theirs = configs("together"), configs("alone")
    outcomes = train_together(ours)
    alone(theirs)
    compare(ours, theirs)
    assert [o["population"] for o in outcomes] == [3] * 3
    results = [json.loads((c.folder() / "result.json").read_text()) for c in ours]
    assert results == outcomes
    assert train_together(ours) == outcomes  # which have ended


def test_a_member_that_diverges_ends_and_the_others_continue(configs):
    ours, theirs = (configs(where) for where in ("together", "alone"))
    for runs in (ours, theirs):
        runs[1] = dataclasses.replace(runs[1], lr=1e30)
    outcomes = train_together(ours)
    assert [o["status"] for o in outcomes] == ["finished", "diverged", "finished"]
    alone(theirs)
    compare(ours, theirs)


@contextlib.contextmanager
def stopping_after(monkeypatch, step):
    """SIGTERM comes when the line of a step is written."""
    write, sent = JsonLines.write, []

    def write_and_stop(self, line):
        write(self, line)
        if line["step"] == step and not sent:
            sent.append(step)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patched:
        patched.setattr(JsonLines, "write", write_and_stop)
        with pytest.raises(Interrupted, match=r"Stopped at step \d+ and saved") as stopped:
            yield
        assert stopped.value.exit_code == 128 + signal.SIGTERM


def reached(configs):
    """The last step that each has saved."""
    folders = [config.folder() / "checkpoints" / "last" for config in configs]
    return [max((int(path.name) for path in folder.glob("*")), default=0) for folder in folders]


@pytest.mark.slow
def test_runs_resume_alone_or_together(configs, monkeypatch):
    ours, theirs = (configs(where, epochs=3) for where in ("mixed", "alone"))
    alone(theirs)
    with stopping_after(monkeypatch, 3):
        train(ours[2])
    with stopping_after(monkeypatch, 6):
        train_together(ours)  # in two groups, those that are behind first
    first, second, third = reached(ours)
    assert first == second > third
    found = train_together(ours)
    assert [o["population"] for o in found] == [2, 2, 1]
    compare(ours, theirs)


def test_a_resumed_population_has_the_bits_of_an_uninterrupted_one(configs, monkeypatch):
    ours, theirs = (configs(where) for where in ("stopped", "in_one_go"))
    with stopping_after(monkeypatch, 4):
        train_together(ours)
    (step,) = set(reached(ours))
    assert step >= 4  # lines are written as soon as their figures are there, or a step later
    train_together(ours)
    train_together(theirs)
    for a, b in zip(ours, theirs, strict=True):
        kill_run.compare(a.folder(), b.folder())


@pytest.mark.slow
def test_a_group_that_fills_half_of_the_members_is_trained_together(configs):
    ours, theirs = (configs(where)[:2] for where in ("together", "alone"))
    assert [o["population"] for o in train_together(ours, members=4)] == [2, 2]
    alone(theirs)
    compare(ours, theirs)  # and the two that fill up the places leave nothing
    assert len(list(ours[0].folder().parent.iterdir())) == 2
    few = [dataclasses.replace(c, seed=7) for c in ours]
    assert [o["population"] for o in train_together(few, members=5)] == [1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 5}, "epochs: 2 there, 5 here"),
        ({"opt": "adamw"}, "opt: 'sgd' there, 'adamw' here"),
        ({"test": False}, "test: True there, False here"),
        ({"step": {"accumulate": 2}}, "step.accumulate: 1 there, 2 here"),
    ],
)
def test_runs_that_differ_in_more_than_rates_and_seed_are_refused(configs, change, message):
    runs = [configs("runs")[0], configs("runs", **change)[1]]
    with pytest.raises(UserError, match=message) as caught:
        train_together(runs)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(runs[0].workdir)


def test_a_run_cannot_train_together_with_itself(configs):
    with pytest.raises(UserError, match="are the same"):
        train_together([configs("runs")[0]] * 2)


@pytest.mark.slow
def test_the_vit_with_sgd_has_the_bits_of_the_runs_alone(configs):
    # Measured, not owed: XLA happens to add up its stacks as it does their parts, on CPUs.
    members = 2
    runs = [Run(config) for config in configs("bits", model_args={}, batch_size=64)[:members]]
    together = compiled_population(runs[0].spec, members)
    states = [run.program.init(run.key, rate, 1e-4) for run, rate in zip(runs, RATES, strict=False)]
    stacked = together.stack_states(states)
    key = together.stack_keys([run.key for run in runs])
    random = np.random.default_rng(0)
    shape = (64, *runs[0].dataset.image_shape)
    for _ in range(3):
        batches = [
            {
                "image": random.integers(0, 256, shape, dtype=np.uint8),
                "label": random.integers(0, 10, 64, dtype=np.int32),
            }
            for _ in runs
        ]
        stacked, metrics = together.train_step(stacked, together.stack_batches(batches), key)
        for i, run in enumerate(runs):
            states[i], row = run.program.train_step(states[i], batches[i], run.key)
            for name in row:
                np.testing.assert_array_equal(metrics[name][i], row[name])
    for i, state in enumerate(states):
        jax.tree.map(np.testing.assert_array_equal, together.member(stacked, i), state)


# --- The program ----------------------------------------------------------------------------------

SIDE, CLASSES, BATCH = 8, 4, 32


class ConvNet(nnx.Module):
    """Two convolutions, one of them depthwise, with BatchNorm."""

    def __init__(self, *, rngs):
        self.conv1 = layers.Conv(3, 8, 3, rngs=rngs)
        self.norm1 = layers.BatchNorm(8, rngs=rngs)
        self.conv2 = layers.Conv(8, 8, 3, groups=8, rngs=rngs)
        self.norm2 = layers.BatchNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, CLASSES, rngs=rngs)

    def __call__(self, x):
        x = jax.nn.gelu(self.norm1(self.conv1(x)))
        x = jax.nn.gelu(self.norm2(self.conv2(x)))
        return self.head(x.mean((1, 2)))


def program(opt="sgd", devices=1, **options):
    def scale(batch, *key):
        images = batch["image"].astype(jnp.float32) / 128 - 1
        return (images, batch["label"]) if key else images

    return Program(
        Steps(
            Passes(
                lambda rngs: ConvNet(rngs=rngs),
                Preprocessing(scale, scale),
                lambda model: Classification(),
                GradientOptions(**options),
                "cpu",
            ),
            OptimizerFunctions(
                lambda model: optim.create_optimizer(opt, optim.schedules.constant(1.0)),
                optim.set_hyperparameters,
                optim.current_learning_rate,
            ),
        ),
        sharding.make_mesh(devices=devices),
    )


def batch(seed):
    random = np.random.default_rng(seed)
    return {
        "image": random.integers(0, 256, (BATCH, SIDE, SIDE, 3), dtype=np.uint8),
        "label": random.integers(0, CLASSES, BATCH, dtype=np.int32),
    }


def start(program, members):
    keys = [jax.random.key(seed) for seed in range(members)]
    states = [program.init(key, 0.1 / (1 + i), 1e-3) for i, key in enumerate(keys)]
    return keys, states


def test_a_convolution_over_members_differs_by_rounding_only():
    # Over members it is a grouped convolution, whose sums XLA adds up in another order. A sum of n
    # terms differs between two orders by at most n u times the sum of their sizes, and typically by
    # sqrt(n) u (Higham and Mary, 2019): here n is at most the positions of a batch that a weight's
    # gradient is added up over, and the update is lr times it.
    single, members = program(), 3
    together = Population(single, single.steps, members)
    keys, states = start(single, members)
    stacked, key = together.stack_states(states), together.stack_keys(keys)
    u = np.finfo(np.float32).eps / 2
    bound = 10 * u * np.sqrt(BATCH * SIDE * SIDE)
    batches = [batch(seed) for seed in range(members)]
    stacked, metrics = together.train_step(stacked, together.stack_batches(batches), key)
    for i, state in enumerate(states):
        before = jax.tree.map(np.asarray, state.params)
        after, row = single.train_step(state, batches[i], keys[i])
        member = together.member(stacked, i)
        for name in row:
            np.testing.assert_allclose(metrics[name][i], row[name], rtol=bound)
        largest = max(
            np.abs(np.asarray(a) - b).max()
            for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(before), strict=True)
        )
        for a, b in zip(jax.tree.leaves(member), jax.tree.leaves(after), strict=True):
            atol = bound * max(largest, np.abs(b).max())
            np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@pytest.mark.parametrize("members", [4, 3])
def test_members_are_split_over_devices_that_divide_their_number(members):
    single = program(devices=4)
    steps = program().steps if members % 4 == 0 else single.steps
    together = Population(single, steps, members)
    keys, states = start(single, members)
    stacked, key = together.stack_states(states), together.stack_keys(keys)
    kernel = jax.tree.leaves(stacked.params)[0]
    held = {shard.data.shape[0] for shard in kernel.addressable_shards}
    assert held == ({members // 4} if members % 4 == 0 else {members})
    losses = []
    for step in range(3):
        batches = [
            jax.device_put(batch(10 * step + i), together.batch_sharding) for i in range(members)
        ]
        stacked, metrics = together.train_step(stacked, together.stack_batches(batches), key)
        losses.append(metrics["loss"])
    one = program()
    for i, state in enumerate(start(one, members)[1]):
        for step in range(3):
            state, row = one.train_step(state, batch(10 * step + i), keys[i])
            np.testing.assert_allclose(losses[step][i], row["loss"], rtol=1e-5)
    sums = together.eval_step(stacked, {**batch(0), "weight": np.ones(BATCH, np.float32)})
    assert sums["count"].shape == (members,)


def test_a_branch_on_a_counter_stays_a_branch():
    # Shampoo takes roots of matrices every few steps, in a `cond`; over a vector of counters that
    # would be a `select`, and the roots taken at every step.
    single = program("shampoo")
    together = Population(single, single.steps, 2)
    keys, states = start(single, 2)
    arguments = (
        together.stack_states(states),
        together.stack_batches([batch(0)] * 2),
        together.stack_keys(keys),
    )
    text = together.train_step.lower(*arguments).as_text()
    assert "stablehlo.case" in text or "stablehlo.if" in text
