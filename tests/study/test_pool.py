"""The pool of local workers, with a program in their place that only answers."""

import sys

import pytest

from bocb_jax.study import pool
from bocb_jax.study.messages import EventKind, Request, Task

WORKER = f"""#!{sys.executable}
import os, signal, sys, time
def stop(*_):
    time.sleep(0.2)
    print("saved", file=sys.stderr, flush=True)
    os._exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
for line in sys.stdin:
    print('{{"statuses": ["' + str(os.getpid()) + '"]}}', flush=True)
"""


@pytest.fixture
def workers(tmp_path, monkeypatch):
    """Return a function that starts a pool of workers; what they print goes to a folder."""
    script = tmp_path / "worker"
    script.write_text(WORKER)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    opened = []

    def start(count):
        opened.append(pool.LocalPool([pool.Share()] * count, tmp_path))
        return opened[-1]

    yield start
    for one in opened:
        one.close()


def collect(workers, kinds):
    """Return events until there are as many of each kind as wanted."""
    found = []
    for _ in range(300):
        found += workers.events(timeout=0.1)
        if [event.kind for event in found] == kinds:
            return found
    raise AssertionError(found)


def test_a_process_is_replaced_before_it_has_done_too_many_runs(workers, monkeypatch):
    monkeypatch.setattr(pool, "RUNS_PER_PROCESS", 4)
    one = workers(1)
    collect(one, [EventKind.READY])
    processes = []
    for _ in range(5):  # of two runs each
        for task in (Task.COMPARE, Task.MEASURE, Task.TRAIN_TOGETHER):  # only the last one saves
            one.start(0, Request(task, [{}, {}]))
            (done,) = collect(one, [EventKind.DONE])
        processes.append(done.answer.statuses[0])
    assert processes[0] == processes[1] != processes[2] == processes[3] != processes[4]
    assert one.events(timeout=0.3) == []  # neither ready nor died


def test_workers_are_asked_to_save_all_at_once(workers, tmp_path):
    three = workers(3)
    collect(three, [EventKind.READY] * 3)
    three.close()
    assert [process.returncode for process in three._processes.values()] == [143] * 3
    for worker in range(3):
        assert "saved" in (tmp_path / f"worker-{worker}.log").read_text()
