"""Workers on a Ray cluster: an actor for each GPU or CPU core, wherever it is.

The folder of the runs must be the same on all nodes, and bocb_jax installed on each.
"""

import contextlib
import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.study.pool import Event

# What the actors take over from the environment of the sweep.
ENVIRONMENT = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "PYTHONPATH", "XLA_FLAGS")


class RayPool:
    """Actors of a Ray cluster; one that is lost with its node is replaced where there is room.

    Args:
      address: of the cluster; "auto" for the one this machine belongs to, or else a new one.
      logs: folder for what Ray prints of its own, which is pages for a lost node: `ray.log`.
      workers: how many; None for as many as there are GPUs, or else CPU cores.

    Raises:
      UserError: Ray is not installed, or there is no cluster at that address.
    """

    def __init__(self, address: str, logs: Path, workers: int | None = None):
        try:
            import ray
        except ImportError as error:
            raise UserError("A cluster needs Ray: pip install 'bocb-jax[cluster]'.") from error
        self._ray = ray
        variables = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        options = {"runtime_env": {"env_vars": variables}, "log_to_driver": False}
        options["logging_level"] = logging.WARNING
        logs.mkdir(parents=True, exist_ok=True)
        self._output = contextlib.ExitStack()
        log = self._output.enter_context((logs / "ray.log").open("a", encoding="utf-8"))
        # Ray prints to stdout whatever it is told; a sweep itself says nothing there.
        self._output.enter_context(contextlib.redirect_stdout(log))
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            if address != "auto":
                raise UserError(f"There is no Ray cluster at {address}: {error}") from error
            ray.init(**options)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        self._needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        self.size = workers or gpus or int(resources.get("CPU", 1))
        self._actor = ray.remote(max_restarts=0, **self._needs)(_Actor)
        self._actors: dict[int, Any] = {}
        self._waiting: dict[Any, tuple[int, str]] = {}  # reference -> worker, kind of event
        self._places: dict[int, dict[str, Any]] = {}  # what `_Actor.ready` says of each
        for worker in range(self.size):
            self._spawn(worker)

    def start(self, worker: int, settings: dict[str, Any], kind: str = "config") -> None:
        """Asks a worker what `worker.Executor.answer` can do; an event brings the answer."""
        reference = self._actors[worker].answer.remote(kind, settings)
        self._waiting[reference] = worker, "answer"

    def kill(self, worker: int) -> None:
        """Ends a worker at once; an event and its successor follow."""
        self._ray.kill(self._actors[worker])

    def events(self, timeout: float) -> list[Event]:
        """What has happened; waits for the first so many seconds."""
        if not self._waiting:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._waiting), num_returns=1, timeout=timeout)
        found = []
        for reference in ready:
            worker, kind = self._waiting.pop(reference)
            try:
                found.append(Event(kind, worker, self._ray.get(reference)))
            except self._ray.exceptions.RayError as error:
                found.append(Event("died", worker, self._how_it_ended(worker, error)))
                self._spawn(worker)
                continue
            if kind == "ready":
                self._places[worker] = found[-1].content
        return found

    def close(self) -> None:
        """Ends the workers; what they were at goes on from its last save."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()
        self._output.close()

    def _how_it_ended(self, worker: int, error: Exception) -> str:
        """Ray's exceptions take paragraphs; this is a sentence."""
        place = self._places.pop(worker, None)
        kinds = self._ray.exceptions
        if isinstance(error, kinds.RayTaskError) or getattr(error, "actor_init_failed", False):
            last = str(error).strip().rpartition("\n")[2]
            return f"The worker ended with an error of its own ({last[:300]})."
        if place is None:
            return "The worker was lost before it was ready."
        where = f"The worker on node {place['address']} (process {place['process']})"
        if isinstance(error, kinds.OutOfMemoryError):
            return f"{where} was ended by Ray, since the memory of that node was nearly full."
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if place["node"] not in alive:
            return f"{where} was lost with its node."
        return f"{where} ended without a word."

    def _spawn(self, worker: int) -> None:
        actor = self._actors[worker] = self._actor.remote(pin="num_cpus" in self._needs)
        self._waiting[actor.ready.remote()] = worker, "ready"


class _Actor:
    """An `Executor` in a process of Ray's."""

    def __init__(self, pin: bool):
        if pin:
            self._lock = pin_to_a_free_core()
        from bocb_jax.study.worker import Executor

        self._executor = Executor()

    def ready(self) -> dict[str, Any]:
        import ray

        node = ray.get_runtime_context().get_node_id()
        address = ray.util.get_node_ip_address()
        return {"node": node, "address": address, "process": os.getpid()}

    def answer(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        return self._executor.answer(kind, settings)


def pin_to_a_free_core() -> Any:
    """Pins this process to a core that no other worker of this machine has taken.

    Returns:
      The lock on the core, open as long as the process lives; None if all are taken.
    """
    if not hasattr(os, "sched_setaffinity"):
        return None
    for core in sorted(os.sched_getaffinity(0)):
        path = os.path.join(tempfile.gettempdir(), f"bocb_jax-{os.getuid()}-core-{core}.lock")
        lock = open(path, "w")  # noqa: SIM115 - held as long as the process lives
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            lock.close()
            continue
        os.sched_setaffinity(0, {core})
        return lock
    return None
