"""Workers on a Ray cluster: one actor per GPU or CPU core, on whatever node.

All nodes must see the folder of runs under the same path or URL, and have bocb_jax installed.
"""

import collections
import contextlib
import fcntl
import logging
import os
import tempfile
import time
from pathlib import Path
from typing import IO, Any

from bocb_jax.errors import UserError
from bocb_jax.study.messages import Answer, Event, EventKind, Request
from bocb_jax.study.pool import RUNS_PER_PROCESS

# Environment variables of the sweep that the actors inherit.
ENVIRONMENT = ("JAX_PLATFORMS", "JAX_COMPILATION_CACHE_DIR", "PYTHONPATH", "XLA_FLAGS")


class RayPool:
    """Actors on a Ray cluster; one that is lost is replaced as soon as there is room.

    So is one that has done `RUNS_PER_PROCESS` runs.

    Args:
      address: of the cluster; "auto" for the one this machine belongs to or, failing that, a new
        one on this machine.
      logs: folder for what Ray prints, which is pages for a lost node: `ray.log`.
      workers: how many; None for as many as there are GPUs or, without any, CPU cores.

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
        options: dict[str, Any] = {
            "runtime_env": {"env_vars": variables},
            "log_to_driver": False,
            "logging_level": logging.WARNING,
        }
        logs.mkdir(parents=True, exist_ok=True)
        self._output = contextlib.ExitStack()
        log = self._output.enter_context((logs / "ray.log").open("a", encoding="utf-8"))
        # Ray prints to stdout whatever its options say; a sweep itself prints nothing there.
        self._output.enter_context(contextlib.redirect_stdout(log))
        try:
            ray.init(address=address, **options)
        except ConnectionError as error:
            if address != "auto":
                raise UserError(f"There is no Ray cluster at {address}: {error}") from error
            ray.init(**options)
        resources = ray.cluster_resources()
        gpus = int(resources.get("GPU", 0))
        needs = {"num_gpus": 1} if gpus else {"num_cpus": 1}
        self._pin = not gpus
        self.size = workers or gpus or int(resources.get("CPU", 1))
        self._actor = ray.remote(max_restarts=0, **needs)(_Actor)
        self._actors: dict[int, Any] = {}
        # Reference -> worker, and the event that it brings.
        self._pending: dict[Any, tuple[int, EventKind | None]] = {}
        self._homes: dict[int, dict[str, Any]] = {}  # what `_Actor.ready` says of each worker
        self._runs: collections.Counter[int] = collections.Counter()  # by worker, of its actor
        for worker in range(self.size):
            self._spawn(worker)

    def start(self, worker: int, request: Request) -> None:
        """Send a request to an idle worker; a DONE event brings the answer."""
        if self._runs[worker] >= RUNS_PER_PROCESS:
            self._ray.kill(self._actors[worker])
            self._spawn(worker, announced=False)  # it takes the request once it is ready
        self._runs[worker] += request.runs
        reference = self._actors[worker].answer.remote(request)
        self._pending[reference] = worker, EventKind.DONE

    def kill(self, worker: int) -> None:
        """End a worker at once; a DIED event and a successor follow."""
        self._ray.kill(self._actors[worker])

    def events(self, timeout: float) -> list[Event]:
        """Return what has happened, after at most `timeout` seconds if nothing has yet."""
        if not self._pending:
            time.sleep(timeout)
            return []
        ready, _ = self._ray.wait(list(self._pending), num_returns=1, timeout=timeout)
        found = []
        for reference in ready:
            worker, kind = self._pending.pop(reference)
            try:
                content = self._ray.get(reference)
            except self._ray.exceptions.RayError as error:
                reason = self._how_it_ended(worker, error)
                found.append(Event(EventKind.DIED, worker, reason=reason))
                # A replacement that never was ready leaves its request, which fails as well.
                self._pending = {r: p for r, p in self._pending.items() if p[0] != worker}
                self._spawn(worker)
                continue
            if kind is not EventKind.DONE:
                self._homes[worker] = content
            if kind is EventKind.READY:
                found.append(Event(kind, worker))
            elif kind is EventKind.DONE:
                found.append(Event(kind, worker, content))
        return found

    def close(self) -> None:
        """End the workers; their runs resume from the last save."""
        for actor in self._actors.values():
            self._ray.kill(actor)
        self._ray.shutdown()
        self._output.close()

    def _how_it_ended(self, worker: int, error: Exception) -> str:
        """Return in one sentence what Ray says in paragraphs."""
        home = self._homes.get(worker)
        kinds = self._ray.exceptions
        if isinstance(error, kinds.RayTaskError) or getattr(error, "actor_init_failed", False):
            last = str(error).strip().rpartition("\n")[2]
            return f"The worker ended with an error of its own ({last[:300]})."
        if home is None:
            return "The worker was lost before it was ready."
        where = f"The worker on node {home['address']} (process {home['process']})"
        if isinstance(error, kinds.OutOfMemoryError):
            return f"{where} was ended by Ray, since the memory of that node was nearly full."
        alive = {node["NodeID"] for node in self._ray.nodes() if node["Alive"]}
        if home["node"] not in alive:
            return f"{where} was lost with its node."
        return f"{where} ended without a word."

    def _spawn(self, worker: int, *, announced: bool = True) -> None:
        """Start the actor of a worker.

        Args:
          worker: its number.
          announced: whether a READY event follows.
        """
        actor = self._actors[worker] = self._actor.remote(pin=self._pin)
        self._runs[worker] = 0
        self._homes.pop(worker, None)
        self._pending[actor.ready.remote()] = worker, EventKind.READY if announced else None


class _Actor:
    """An `Executor` in one of Ray's processes."""

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

    def answer(self, request: Request) -> Answer:
        return self._executor.answer(request)


def pin_to_a_free_core() -> IO[str] | None:
    """Pin this process to a core that no other worker on this machine has taken.

    Returns:
      The lock on the core, to be kept open as long as the process lives; None if all are taken.
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
