"""A worker that is stopped while Python runs no handler."""

import os
import signal
import subprocess
import sys
import time

import pytest

from bocb_jax.study.messages import Answer, Request, Task

SLOW = """
import time
import jax, jax.numpy as jnp, optax

def wait(count):
    time.sleep(1.0)
    return count

def slow(learning_rate):
    def update(grads, count, params=None):
        # The next step needs the count, so it cannot begin before this one has ended.
        count = jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.int32), count) + 1
        return jax.tree.map(lambda g: jnp.where(count > 0, -learning_rate * g, g), grads), count

    return optax.GradientTransformation(lambda params: jnp.zeros((), jnp.int32), update)
"""
WORKER = "from bocb_jax.study import worker; worker.NOTICE_SECONDS = 0.2; worker.main()"


@pytest.mark.slow
def test_a_worker_with_slow_steps_saves(tmp_path, compile_cache):
    """Its steps, in which no handler runs, take longer than a worker has that does not train."""
    (tmp_path / "slow_steps.py").write_text(SLOW)
    config = {
        "model": "vit_mini", "opt": "slow_steps:slow", "lr": 0.1, "epochs": 20, "image_size": 16,
        "workdir": str(tmp_path / "runs"), "log": {"every_steps": 4, "progress": "none"},
        "model_args": {"depth": 1, "width": 16, "heads": 2}, "parallel": {"devices": 1},
        "compile_cache": compile_cache, "run_id": "a",
    }  # fmt: skip
    log = tmp_path / "worker.log"
    with log.open("w") as stderr:
        worker = subprocess.Popen(
            [sys.executable, "-c", WORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        )
    worker.stdin.write(Request(Task.TRAIN, [config]).to_json() + "\n")
    worker.stdin.flush()
    lines = tmp_path / "runs/a/metrics.jsonl"
    while not (lines.exists() and lines.read_text()):
        assert worker.poll() is None, log.read_text()
        time.sleep(0.05)
    worker.send_signal(signal.SIGTERM)
    code = worker.wait(60)
    assert code == 128 + signal.SIGTERM, log.read_text()
    with worker.stdin, worker.stdout:
        assert Answer.from_json(list(worker.stdout)[-1]).statuses == ["interrupted"]
    assert list((tmp_path / "runs/a/checkpoints/last").iterdir())
