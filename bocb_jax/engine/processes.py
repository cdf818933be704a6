"""The processes of one run: they start together, agree on settings and folder, and end together.

Each process holds a connection to the first one. It closes when a process is lost, whatever the
others wait for, so that none of them waits for ever. What a process ends with is sent to the others
first.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from bocb_jax.config import ParallelConfig, TrainConfig
from bocb_jax.errors import Diverged, Interrupted, UserError

GONE = 75  # exit code of a process whose partner is gone: the same command goes on ("EX_TEMPFAIL")
T = TypeVar("T")
_LINE_SECONDS = 10.0  # between the lines of a process that waits for others to start
_GRACE_SECONDS = 5.0  # in which a process may end by itself after another has failed
_FOLDER_SECONDS = 10.0  # in which a file shows up on a file system that processes share


def are_several(parallel: ParallelConfig) -> bool:
    """Return whether a run is to span several processes."""
    return parallel.distributed or parallel.coordinator is not None


@contextlib.contextmanager
def together(config: TrainConfig) -> Iterator[None]:
    """Train in the block with all processes of a run; without several, do nothing.

    Raises:
      UserError: the others do not start in time, have other settings, or see another folder. It is
        raised in every process.
    """
    if not are_several(config.parallel):
        yield
        return
    _initialize(config.parallel)
    if jax.process_count() == 1:
        yield
        return
    _compare_settings(config)
    _compare_folders(Path(config.workdir))
    partners = _Partners(config.parallel)
    try:
        yield
    except (Diverged, Interrupted, SystemExit, KeyboardInterrupt):
        partners.leave()  # as the others do
        raise
    except BaseException as error:
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        partners.leave(getattr(error, "exit_code", 1), " ".join(text.split()))
        raise
    partners.leave()


def on_first(function: Callable[[], T]) -> T | None:
    """Call a function in the first process; its UserError is raised in all of them.

    Returns:
      What it returns in the first process, None in the others.
    """
    if jax.process_count() == 1:
        return function()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = function()
        except UserError as raised:
            error = raised
    text = _from_first("" if error is None else str(error))
    if error is not None:
        raise error
    if text:
        raise UserError(text)
    return value


# -- the start -------------------------------------------------------------------------------------


def _initialize(parallel: ParallelConfig) -> None:
    """Start jax.distributed, and say what it waits for.

    Raises:
      UserError: there is no cluster around this process, or the others cannot be reached.
    """
    started = threading.Event()
    threading.Thread(target=_wait, args=(parallel, started), daemon=True).start()
    try:
        jax.distributed.initialize(
            parallel.coordinator,
            parallel.processes,
            parallel.process,
            # `_wait` ends this process before that: JAX would abort it.
            initialization_timeout=parallel.wait + 60,
        )
    except ValueError as error:
        raise UserError(
            "The processes of this run cannot find one another: no cluster (TPU pod, Slurm, MPI, "
            "Kubernetes) is around this process. Give --parallel.coordinator HOST:PORT, "
            f"--parallel.processes and --parallel.process. ({error})"
        ) from error
    except RuntimeError as error:
        raise UserError(f"{_absent(parallel)} ({error})") from error
    finally:
        started.set()


def _wait(parallel: ParallelConfig, started: threading.Event) -> None:
    """Say every few seconds that other processes are waited for; in the end, end this one."""
    end = time.monotonic() + parallel.wait
    while not started.wait(min(_LINE_SECONDS, max(0.0, end - time.monotonic()))):
        left = end - time.monotonic()
        if left <= 0:
            print(_absent(parallel), file=sys.stderr, flush=True)
            os._exit(UserError.exit_code)
        print(
            f"Waiting for all processes of this run to start ({_named(parallel)}); {left:.0f} s "
            "are left.",
            file=sys.stderr,
            flush=True,
        )


def _absent(parallel: ParallelConfig) -> str:
    return (
        f"The other processes of this run did not start within {parallel.wait} s, or cannot be "
        f"reached ({_named(parallel)}). Start all of them within that time, or raise "
        "--parallel.wait."
    )


def _named(parallel: ParallelConfig) -> str:
    text = "this process" if parallel.process is None else f"this is process {parallel.process}"
    text += "" if parallel.processes is None else f" of {parallel.processes}"
    return text + (f", coordinator {parallel.coordinator}" if parallel.coordinator else "")


def _gathered(values: np.ndarray) -> np.ndarray:
    """Return the arrays of all processes, (processes, ...)."""
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(values))


def _from_first(text: str) -> str:
    """Return the text of the first process."""
    from jax.experimental import multihost_utils

    data = np.frombuffer(text.encode(), np.uint8)
    length = int(multihost_utils.broadcast_one_to_all(np.int64(len(data))))
    if length == 0:
        return ""
    padded = np.zeros(length, np.uint8)
    padded[: min(length, len(data))] = data[:length]
    return np.asarray(multihost_utils.broadcast_one_to_all(padded)).tobytes().decode()


def _compare_settings(config: TrainConfig) -> None:
    settings = dataclasses.asdict(config)
    for name in ("process", "wait"):
        del settings["parallel"][name]
    text = json.dumps(settings, sort_keys=True, default=str)
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    same = (_gathered(digest) == _gathered(digest)[0]).all(axis=1)
    if same.all():
        return
    first, here = json.loads(_from_first(text)), json.loads(text)
    differing = _differences(first, here)
    others = ", ".join(str(number) for number in np.flatnonzero(~same))
    raise UserError(
        f"The processes of this run have different settings (process {others} differs from "
        "process 0"
        + (f": here {'; '.join(differing)}" if differing else "")
        + "). Start all of them with the same command, but for --parallel.process."
    )


def _differences(first: Any, here: Any, name: str = "") -> list[str]:
    """Return "NAME is 1, 2 in process 0" for every setting that differs."""
    if isinstance(first, dict) and isinstance(here, dict):
        return [
            text
            for key in sorted({*first, *here})
            for text in _differences(
                first.get(key), here.get(key), f"{name}.{key}" if name else str(key)
            )
        ]
    return [] if first == here else [f"{name} is {here!r}, {first!r} in process 0"]


def _compare_folders(workdir: Path) -> None:
    """Raise UserError, in every process, unless all of them see one folder of runs."""
    name = _from_first(f".processes-{secrets.token_hex(8)}")
    sign = workdir / name
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            on_this = contextlib.suppress(OSError)  # what cannot be written is said when a run is
            with on_this:
                workdir.mkdir(parents=True, exist_ok=True)
                sign.touch()
            stack.callback(lambda: sign.unlink(missing_ok=True))
        written = _gathered(np.array(sign.exists()))[0]
        deadline = time.monotonic() + _FOLDER_SECONDS
        while written and not sign.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        seen = _gathered(np.array(sign.exists()))
    if written and not seen.all():
        blind = ", ".join(str(number) for number in np.flatnonzero(~seen))
        raise UserError(
            f"Process {blind} of this run does not see the folder {workdir} of process 0. All "
            "processes write to one folder: give --workdir on a file system that they share."
        )


# -- the end ---------------------------------------------------------------------------------------


class _Partners:
    """Connections between the first process and all others, each watched by a thread."""

    def __init__(self, parallel: ParallelConfig):
        self._index, self._count = jax.process_index(), jax.process_count()
        self._left: set[int] = set()  # processes that said they end
        self._sockets: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._ending = False
        token = _from_first(secrets.token_hex(16))
        if self._index == 0:
            self._accept(token, parallel)
        else:
            self._connect(token, parallel)

    def leave(self, code: int = 0, message: str = "") -> None:
        """Tell the others that this process ends, and with what."""
        with self._lock:
            self._ending = True
        self._send({"process": self._index, "code": code, "message": message})

    def _accept(self, token: str, parallel: ParallelConfig) -> None:
        with socket.create_server(("", 0), backlog=self._count) as server:
            _from_first(json.dumps([_addresses(parallel), server.getsockname()[1]]))
            server.settimeout(_FOLDER_SECONDS)
            try:
                while len(self._sockets) < self._count - 1:
                    connection, _ = server.accept()
                    connection.settimeout(_FOLDER_SECONDS)
                    greeting = _read_line(connection)
                    if greeting and greeting.get("token") == token:
                        self._sockets[int(greeting["process"])] = connection
                    else:
                        connection.close()
            except OSError:
                pass
        for number, connection in self._sockets.items():
            self._watch(number, connection)

    def _connect(self, token: str, parallel: ParallelConfig) -> None:
        addresses, port = json.loads(_from_first(""))
        for address in addresses:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((address, port), timeout=3)
                self._sockets[0] = connection
                self._send({"process": self._index, "token": token})
                self._watch(0, connection)
                return
        print(
            f"Process {self._index} cannot connect to process 0 ({', '.join(addresses)}, port "
            f"{port}): that one of them is lost will be noticed after minutes, not at once.",
            file=sys.stderr,
        )

    def _watch(self, number: int, connection: socket.socket) -> None:
        connection.settimeout(None)
        for option, value in _KEEPALIVE:
            connection.setsockopt(*option, value)
        threading.Thread(target=self._listen, args=(number, connection), daemon=True).start()

    def _listen(self, number: int, connection: socket.socket) -> None:
        while (said := _read_line(connection)) is not None:
            self._hear(said)
        with self._lock:
            expected = self._ending or number in self._left
        if not expected:
            self._hear({"process": number, "code": GONE, "message": ""})

    def _hear(self, said: dict[str, Any]) -> None:
        """Act on what a process ends with; the first process tells all others."""
        number, code = int(said["process"]), int(said["code"])
        with self._lock:
            self._left.add(number)
            ending = self._ending
        if self._index == 0:
            self._send(said, but=number)
        if code == 0:
            return
        if code == GONE:
            text = f"Process {number} of {self._count} is gone; start the same command again."
        else:
            text = f"Process {number} of {self._count} ended: {said['message']}"
            time.sleep(_GRACE_SECONDS)
        if not ending:
            print(text, file=sys.stderr, flush=True)
            os._exit(code)

    def _send(self, message: dict[str, Any], but: int | None = None) -> None:
        line = json.dumps(message).encode() + b"\n"
        for number, connection in self._sockets.items():
            if number != but:
                with contextlib.suppress(OSError):
                    connection.sendall(line)


# Lost machines close no connection: their silence is noticed after 5 + 4 x 5 seconds.
_KEEPALIVE = [
    ((level, getattr(socket, name)), value)
    for level, name, value in (
        (socket.SOL_SOCKET, "SO_KEEPALIVE", 1),
        (socket.IPPROTO_TCP, "TCP_KEEPIDLE", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPINTVL", 5),
        (socket.IPPROTO_TCP, "TCP_KEEPCNT", 4),
    )
    if hasattr(socket, name)
]


def _read_line(connection: socket.socket) -> dict[str, Any] | None:
    """Return the next message, or None where the connection is closed or says something else."""
    data = b""
    try:
        while not data.endswith(b"\n"):
            part = connection.recv(1)
            if not part or len(data) > 100_000:
                return None
            data += part
        found = json.loads(data)
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _addresses(parallel: ParallelConfig) -> list[str]:
    """Return where other processes may reach this one, the most likely first."""
    found = []
    if parallel.coordinator:
        found.append(parallel.coordinator.rpartition(":")[0].strip("[]"))
    with contextlib.suppress(OSError):
        found.append(socket.gethostname())
        found += socket.gethostbyname_ex(socket.gethostname())[2]
    return list(dict.fromkeys(found))
