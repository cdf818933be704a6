"""Worker processes on this machine, each with its share of the cores or of the accelerators."""

import collections
import contextlib
import dataclasses
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from bocb_jax.errors import UserError
from bocb_jax.study.messages import Answer, Event, EventKind, Request

# TensorStore keeps some 30 kB of every checkpoint that it writes, for as long as the process lives.
RUNS_PER_PROCESS = 500
MAX_FAILED_STARTS = 3  # in a row, for each worker of the pool
SAVE_SECONDS = 600.0  # for all workers together, to save a run each when the sweep is stopped


class Pool(Protocol):
    """Workers, numbered from 0, that do one request at a time."""

    size: int

    def start(self, worker: int, request: Request) -> None: ...

    def kill(self, worker: int) -> None: ...

    def events(self, timeout: float) -> list[Event]: ...

    def close(self) -> None: ...


class StartWatch:
    """Raises a UserError when workers die before they are ready, again and again.

    Args:
      pool: the workers.
    """

    def __init__(self, pool: Pool):
        self._limit = MAX_FAILED_STARTS * pool.size
        self._failed = 0  # in a row
        self._ready: set[int] = set()

    def note(self, event: Event) -> None:
        """Take in an event of the pool.

        Raises:
          UserError: no worker can start.
        """
        if event.kind is EventKind.READY:
            self._ready.add(event.worker)
            self._failed = 0
        elif event.kind is EventKind.DIED and event.worker in self._ready:
            self._ready.remove(event.worker)
        elif event.kind is EventKind.DIED:
            self._failed += 1
            if self._failed > self._limit:
                raise UserError(
                    f"No worker could start. {event.reason} What the workers print is in .workers "
                    "in the folder of the runs; on a cluster, bocb_jax must be installed on each "
                    "node."
                )


class LocalPool:
    """Processes on this machine; one that dies, or has done `RUNS_PER_PROCESS` runs, is replaced.

    Args:
      shares: what each worker may use, from `share_out`.
      logs: folder for what the workers print.
    """

    def __init__(self, shares: Sequence["Share"], logs: Path):
        self.size = len(shares)
        self._shares, self._logs = shares, logs
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._processes: dict[int, subprocess.Popen[str]] = {}
        self._runs: collections.Counter[int] = collections.Counter()  # by worker, of its process
        self._closing = False
        logs.mkdir(parents=True, exist_ok=True)
        for worker in range(self.size):
            self._spawn(worker)

    def start(self, worker: int, request: Request) -> None:
        """Send a request to an idle worker; a DONE event brings the answer."""
        if self._runs[worker] >= RUNS_PER_PROCESS:
            before = self._processes[worker]
            self._spawn(worker, announced=False)  # it reads the request once it is ready
            _piped(before.stdin).close()  # which ends it
        self._runs[worker] += request.runs
        pipe = _piped(self._processes[worker].stdin)
        try:
            pipe.write(request.to_json() + "\n")
            pipe.flush()
        except (BrokenPipeError, ValueError):
            pass  # it has died, which may close the pipe; an event will say so

    def kill(self, worker: int) -> None:
        """End a worker at once; a DIED event and a successor follow."""
        self._processes[worker].kill()

    def events(self, timeout: float) -> list[Event]:
        """Return what has happened, after at most `timeout` seconds if nothing has yet."""
        found = []
        try:
            found.append(self._events.get(timeout=timeout))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for event in found:
            if event.kind is EventKind.DIED and not self._closing:
                self._spawn(event.worker)
        return found

    def close(self) -> None:
        """Ask the workers to save their runs and end; kill those that take over `SAVE_SECONDS`.

        A worker that does not begin to save within a few seconds ends itself.
        """
        self._closing = True
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + SAVE_SECONDS
        for process in self._processes.values():
            try:
                process.wait(max(deadline - time.monotonic(), 0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, worker: int, *, announced: bool = True) -> None:
        """Start the process of a worker.

        Args:
          worker: its number.
          announced: whether a READY event follows.
        """
        share = self._shares[worker]
        command = [sys.executable, "-m", "bocb_jax.study.worker"]
        if share.cores:
            command += ["--cores", ",".join(map(str, share.cores))]
        with open(self._logs / f"worker-{worker}.log", "ab") as log:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, **share.environment},
                start_new_session=True,  # Ctrl-C is for the sweep, which stops its workers itself
            )
        self._processes[worker] = process
        self._runs[worker] = 0
        arguments = worker, process, announced
        threading.Thread(target=self._listen, args=arguments, daemon=True).start()

    def _listen(self, worker: int, process: subprocess.Popen[str], announced: bool) -> None:
        # The first line says that the worker is ready, each later one answers a request.
        for number, line in enumerate(_piped(process.stdout)):
            if number == 0:
                if announced:
                    self._events.put(Event(EventKind.READY, worker))
            else:
                self._events.put(Event(EventKind.DONE, worker, Answer.from_json(line)))
        code = process.wait()
        for pipe in (process.stdin, process.stdout):
            with contextlib.suppress(BrokenPipeError):
                _piped(pipe).close()
        if self._processes[worker] is not process:
            return  # it was replaced
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        reason = f"The worker process ended with {how}."
        self._events.put(Event(EventKind.DIED, worker, reason=reason))


def _piped(stream: IO[str] | None) -> IO[str]:
    assert stream is not None  # opened with PIPE
    return stream


# --- Who gets what --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Share:
    """What a worker may use."""

    cores: tuple[int, ...] = ()  # empty: any
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def share_out(workers: int | None = None) -> list[Share]:
    """Split this machine: one worker per NVIDIA GPU, one for all TPU chips, or one per CPU core.

    Args:
      workers: how many; None for as many as there are devices or cores.
    """
    on_cpu = os.environ.get("JAX_PLATFORMS", "").startswith("cpu")
    gpus = [] if on_cpu else _gpus()
    if gpus:
        count = workers or len(gpus)
        shared = {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"} if count > len(gpus) else {}
        return [
            Share(environment={"CUDA_VISIBLE_DEVICES": ",".join(part), **shared})
            for part in _parts(gpus, count)
        ]
    if not on_cpu and _has_tpu():
        return [Share()]
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = sorted(os.sched_getaffinity(0)) if has_affinity else list(range(os.cpu_count() or 1))
    parts = _parts(cores, workers or len(cores))
    return [Share(cores=part if has_affinity else ()) for part in parts]


def _parts(things: list[Any], count: int) -> list[tuple[Any, ...]]:
    """Split as evenly as possible; with more parts than things, parts share things."""
    if count >= len(things):
        return [(things[i % len(things)],) for i in range(count)]
    return [
        tuple(things[i * len(things) // count : (i + 1) * len(things) // count])
        for i in range(count)
    ]


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name not in ("", "-1")]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(listed.stdout.splitlines()) if line.startswith("GPU")]


def _has_tpu() -> bool:
    return any(Path("/dev").glob("accel*")) or Path("/dev/vfio/0").exists()
