"""The pool of a Ray cluster, with a module in place of Ray that answers in this process."""

import sys
import types

import pytest

from bocb_jax.study import cluster
from bocb_jax.study.messages import Answer, EventKind, Request, Task


class RayError(Exception):
    pass


class Actor:
    """An actor whose answer is its number; it fails once it is killed."""

    made = 0

    def __init__(self, pin):
        del pin
        Actor.made += 1
        self.number, self.alive = Actor.made, True
        self.ready = types.SimpleNamespace(remote=lambda: Reference(self, self.about()))
        self.answer = types.SimpleNamespace(remote=lambda request: Reference(self, self.says()))

    def about(self):
        return {"node": "n", "address": "here", "process": self.number}

    def says(self):
        return Answer([str(self.number)])


class Reference:
    def __init__(self, actor, content):
        self.actor, self.content = actor, content


def get(reference):
    if not reference.actor.alive:
        raise RayError("lost")
    return reference.content


@pytest.fixture
def pool(tmp_path, monkeypatch):
    kinds = dict.fromkeys(("RayTaskError", "OutOfMemoryError"), type("Other", (Exception,), {}))
    stand_in = types.SimpleNamespace(
        init=lambda **_: None,
        cluster_resources=lambda: {"CPU": 1},
        remote=lambda **_: lambda _: types.SimpleNamespace(remote=Actor),
        wait=lambda references, num_returns, timeout: (references[:1], references[1:]),
        get=get,
        kill=lambda actor: setattr(actor, "alive", False),
        nodes=lambda: [{"NodeID": "n", "Alive": True}],
        shutdown=lambda: None,
        exceptions=types.SimpleNamespace(RayError=RayError, **kinds),
    )
    monkeypatch.setitem(sys.modules, "ray", stand_in)
    monkeypatch.setattr(cluster, "RUNS_PER_PROCESS", 4)
    opened = cluster.RayPool("auto", tmp_path)
    assert kinds_of(opened) == [EventKind.READY]
    yield opened
    opened.close()


def kinds_of(pool):
    return [event.kind for event in pool.events(timeout=0)]


def actor_of(pool, task):
    """The number of the actor that does a request for two runs."""
    pool.start(0, Request(task, [{}, {}]))
    found = []
    while not found:
        found = pool.events(timeout=0)
    (event,) = found
    assert event.kind is EventKind.DONE
    return int(event.answer.statuses[0])


def test_an_actor_is_replaced_before_it_has_done_too_many_runs(pool):
    actors = []
    for _ in range(5):
        for task in (Task.COMPARE, Task.MEASURE):  # which save nothing
            assert actor_of(pool, task)
        actors.append(actor_of(pool, Task.TRAIN_TOGETHER))
    assert actors[0] == actors[1] < actors[2] == actors[3] < actors[4]
    assert kinds_of(pool) == []  # neither ready nor died


def test_a_replacement_that_dies_before_it_is_ready_is_one_death(pool):
    for _ in range(2):
        actor_of(pool, Task.TRAIN_TOGETHER)
    pool.start(0, Request(Task.TRAIN, [{}]))
    pool.kill(0)
    (event,) = pool.events(timeout=0)
    assert event.kind is EventKind.DIED
    assert "before it was ready" in event.reason
    assert kinds_of(pool) == [EventKind.READY]
    assert kinds_of(pool) == []
