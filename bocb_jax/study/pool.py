"""Worker processes on this machine, each with its share of the cores or of the accelerators."""

import dataclasses
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal, Protocol


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that a worker said, or that happened to it."""

    kind: Literal["ready", "answer", "died"]
    worker: int
    content: Any = None  # of an answer: what `worker.Executor.answer` returns; of a death: in words


class Pool(Protocol):
    """Workers that do one thing at a time: train a run, or several together, or measure."""

    size: int

    def start(self, worker: int, settings: dict[str, Any], kind: str = "config") -> None: ...

    def kill(self, worker: int) -> None: ...

    def events(self, timeout: float) -> list[Event]: ...

    def close(self) -> None: ...


class LocalPool:
    """Processes of this machine; one that dies is replaced.

    Args:
      shares: what each worker has, from `share_out`.
      logs: folder for what the workers print.
    """

    def __init__(self, shares: list["Share"], logs: Path):
        self.size = len(shares)
        self._shares, self._logs = shares, logs
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._processes: dict[int, subprocess.Popen] = {}
        self._closing = False
        logs.mkdir(parents=True, exist_ok=True)
        for worker in range(self.size):
            self._spawn(worker)

    def start(self, worker: int, settings: dict[str, Any], kind: str = "config") -> None:
        """Asks a worker what `worker.Executor.answer` can do; an event brings the answer."""
        process = self._processes[worker]
        try:
            process.stdin.write(json.dumps({kind: settings}) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # it has died, and an event will say so

    def kill(self, worker: int) -> None:
        """Ends a worker at once; an event and its successor follow."""
        self._processes[worker].kill()

    def events(self, timeout: float) -> list[Event]:
        """What has happened; waits for the first so many seconds."""
        found = []
        try:
            found.append(self._events.get(timeout=timeout))
            while True:
                found.append(self._events.get_nowait())
        except queue.Empty:
            pass
        for event in found:
            if event.kind == "died" and not self._closing:
                self._spawn(event.worker)
        return found

    def close(self) -> None:
        """Asks the workers to save what they are at, and waits for them."""
        self._closing = True
        for process in self._processes.values():
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes.values():
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _spawn(self, worker: int) -> None:
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
                start_new_session=True,  # Ctrl-C is for the sweep, which tells its workers
            )
        self._processes[worker] = process
        threading.Thread(target=self._listen, args=(worker, process), daemon=True).start()

    def _listen(self, worker: int, process: subprocess.Popen) -> None:
        for line in process.stdout:
            answer = json.loads(line)
            kind = "ready" if "ready" in answer else "answer"
            self._events.put(Event(kind, worker, answer))
        code = process.wait()
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        self._events.put(Event("died", worker, f"The worker process ended with {how}."))


# --- Who gets what --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Share:
    """What a worker may use."""

    cores: tuple[int, ...] = ()
    environment: dict[str, str] = dataclasses.field(default_factory=dict)


def share_out(workers: int | None = None) -> list[Share]:
    """Splits this machine: a worker for each NVIDIA GPU, one for all TPU chips, one a CPU core.

    Args:
      workers: how many there are to be; None for as many as there are devices or cores.
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


def _parts(things: list, count: int) -> list[tuple]:
    """As even as can be; with more parts than things, each part has one that others have too."""
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
