"""Tiny studies, pools that only pretend to train, and the sweep's command."""

import re
import subprocess
import sys
import time

from drills import kill_sweep

from bocb_jax.study.messages import Answer, Event, EventKind
from bocb_jax.study.spec import Search, Study


class Pretended:
    """A pool whose workers end each run at once, as `ends` says."""

    def __init__(self, size, ends):
        self.size, self.ends, self.order = size, ends, []
        self.waiting = [ready(worker) for worker in range(size)]
        self.killed = []

    def start(self, worker, request):
        (config,) = request.configs
        self.order.append((worker, config["model"], config["opt"]))
        self.waiting += self.ends(worker, config)

    def kill(self, worker):
        self.killed.append(worker)
        self.waiting += [died(worker, "killed"), ready(worker)]

    def events(self, timeout):
        found, self.waiting = self.waiting, []
        time.sleep(0 if found else 0.01)
        return found

    def close(self):
        pass


def ready(worker):
    return Event(EventKind.READY, worker)


def died(worker, reason):
    return Event(EventKind.DIED, worker, reason=reason)


def study(**changes):
    search = Search(lr_factors=(0.1, 1, 10))
    return Study(name="s", backbones=("a",), optimizers=("b",), **{"search": search, **changes})


def answer(worker, status="finished"):
    return Event(EventKind.DONE, worker, Answer([status]))


def command(*words):
    return subprocess.run(
        [sys.executable, "-m", "bocb_jax.sweep", *map(str, words)],
        capture_output=True,
        text=True,
        timeout=600,
    )


def write(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_text(text)
    return path


TINY = re.sub(r"\[final\].*", "[final]\nseeds = [1]\n", kill_sweep.STUDY, flags=re.DOTALL)
