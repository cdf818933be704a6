"""The processes of one run: they start together, agree on settings and folder, and end together.

Each process keeps a connection to the first one. It closes when a process is lost, whatever the
others are waiting for, so that none of them waits for ever. A process that ends tells the others
its exit code first.
"""

import contextlib
import dataclasses
import json
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import jax
import numpy as np

from bocb_jax.config import ParallelConfig, TrainConfig, difference
from bocb_jax.engine.sockets import KEEPALIVE, addresses
from bocb_jax.errors import Diverged, Interrupted, UserError

GONE = 75  # exit code ("EX_TEMPFAIL") where a process is lost; the same command resumes the run
T = TypeVar("T")
_LINE_SECONDS = 10.0  # between the lines of a process that waits for others to start
_GRACE_SECONDS = 5.0  # for a process to end by itself after another has failed
_LEAVE_SECONDS = 15.0  # for all processes to leave JAX's coordinator
_NEWS_SECONDS = 0.5  # for the news that another process has failed or is lost
_FOLDER_SECONDS = 10.0  # for a new file to show on a shared file system
_ACCEPT_SECONDS = 30.0  # for all processes to connect to the first one
_HELLO_SECONDS = 10.0  # for the first process to accept a connection and say hello
_GREETING_SECONDS = 5.0  # for an address to be reached, or the hello to be answered
_MOST_CHARACTERS = 2000  # of an error that the other processes are told

_partner_failed = threading.Event()  # another process has ended with an error


def are_several(parallel: ParallelConfig) -> bool:
    """Return whether a run is to span several processes."""
    return parallel.distributed or parallel.coordinator is not None


@contextlib.contextmanager
def together(config: TrainConfig) -> Iterator[contextlib.AbstractContextManager[None]]:
    """Train in the block with all processes of a run; without several, do nothing.

    Yields a context to enter once what waits for the other processes is open, such as checkpoints:
    it tells them of an error before that is closed.

    Raises:
      UserError: the others do not start in time, have other settings, or see another folder. It is
        raised in every process.
    """
    if not are_several(config.parallel):
        yield contextlib.nullcontext()
        return
    _initialize(config.parallel)
    if jax.process_count() == 1:
        yield contextlib.nullcontext()
        return
    partners = _Partners(config.parallel)
    try:
        _compare_settings(config)
        _compare_folders(Path(config.workdir))
        yield partners.telling()
    except BaseException as error:
        partners.leave_for(error)
        raise
    partners.leave()


def follow_failed_partner() -> None:
    """Let this process end as another one did that has failed, if it has.

    Call this before an unexpected error is recorded: where another process fails, the collectives
    of this one fail too, perhaps before its listener has read the cause.
    """
    if jax.process_count() == 1:
        return
    if _partner_failed.wait(_NEWS_SECONDS):
        time.sleep(2 * (_GRACE_SECONDS + _LEAVE_SECONDS))  # until the listener ends this process
    # Processes that fail in the same way, at nearly the same time, each say so themselves.
    time.sleep(_NEWS_SECONDS)


def on_first(function: Callable[[], T]) -> T:
    """Call a function in the first process; its result or its UserError is that of all processes.

    Args:
      function: returns plain JSON values.
    """
    if jax.process_count() == 1:
        return function()
    value, error = None, None
    if jax.process_index() == 0:
        try:
            value = function()
        except UserError as raised:
            error = raised
    text = _from_first(json.dumps([value, None if error is None else str(error)]))
    if error is not None:
        raise error
    value, message = json.loads(text)
    if message is not None:
        raise UserError(message)
    return value


def in_all(holds: bool) -> bool:
    """Return whether something holds in every process."""
    return holds if jax.process_count() == 1 else bool(_gathered(np.array(holds)).all())


# -- the start -------------------------------------------------------------------------------------


def _initialize(parallel: ParallelConfig) -> None:
    """Start jax.distributed, unless the program has, and say what it waits for.

    Raises:
      UserError: there is no cluster around this process, or the others cannot be reached.
    """
    if jax.distributed.is_initialized():
        return
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
        if str(error).startswith(("DEADLINE_EXCEEDED", "UNAVAILABLE")):
            raise UserError(f"{_absent(parallel)} ({error})") from error
        raise UserError(
            f"jax.distributed cannot start ({_named(parallel)}): {error}. Is the port free, and "
            "does each process have a number of its own?"
        ) from error
    finally:
        started.set()


def _wait(parallel: ParallelConfig, started: threading.Event) -> None:
    """Print every few seconds that this process waits for others; after the wait, end it."""
    end = time.monotonic() + parallel.wait
    while not started.wait(min(_LINE_SECONDS, max(0.0, end - time.monotonic()))):
        left = end - time.monotonic()
        if left <= 0:
            _say(_absent(parallel))
            os._exit(UserError.exit_code)
        _say(
            f"Waiting for all processes of this run to start ({_named(parallel)}); {left:.0f} s "
            "are left."
        )


def _say(text: str) -> None:
    """Print a line to stderr; that nobody reads it any more must end no thread."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


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
    """Raise UserError, in every process, unless all of them have the same settings."""
    settings = dataclasses.asdict(config)
    for name in ("process", "wait"):
        del settings["parallel"][name]
    text = json.dumps(settings, sort_keys=True, default=str)
    first = _from_first(text)
    same = _gathered(np.array(first == text))
    if same.all():
        return
    differing = difference(json.loads(first), json.loads(text))
    others = ", ".join(str(number) for number in np.flatnonzero(~same))
    raise UserError(
        f"The processes of this run have different settings (process {others} differs from "
        "process 0"
        + (f": {'; '.join(differing)}" if differing else "")
        + "). Start all of them with the same command, but for --parallel.process."
    )


def _compare_folders(workdir: Path) -> None:
    """Raise UserError, in every process, unless all of them see one folder of runs."""
    sign = workdir / _from_first(f".processes-{secrets.token_hex(8)}")
    # A folder that cannot be written is refused when the run is begun.
    with contextlib.suppress(OSError):
        if jax.process_index() == 0:
            workdir.mkdir(parents=True, exist_ok=True)
            sign.touch()
    # Unlike Path.exists, os.path.exists raises nothing in a folder that may not be read.
    written = _gathered(np.array(os.path.exists(sign)))[0]
    deadline = time.monotonic() + _FOLDER_SECONDS
    while written and not os.path.exists(sign) and time.monotonic() < deadline:
        time.sleep(0.2)
    seen = _gathered(np.array(os.path.exists(sign)))
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            sign.unlink()
    if written and not seen.all():
        blind = ", ".join(str(number) for number in np.flatnonzero(~seen))
        raise UserError(
            f"Process {blind} of this run does not see the folder {workdir} of process 0. All "
            "processes write to one folder: give --workdir on a file system that they share."
        )


# -- the end ---------------------------------------------------------------------------------------


def _farewell(error: BaseException) -> tuple[int, str]:
    """Return what the other processes are told of an error: exit code and message."""
    if isinstance(error, Diverged) or (isinstance(error, Interrupted) and error.saved):
        return 0, ""  # all processes raise it at the same step
    if isinstance(error, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    elif isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    else:
        code = getattr(error, "exit_code", 1)
    is_sentence = isinstance(error, UserError | Interrupted)
    text = str(error) if is_sentence else f"{type(error).__name__}: {error}"
    return code, " ".join(text.split())[:_MOST_CHARACTERS]


class _Partners:
    """Connections between the first process and all others, each watched by a thread."""

    def __init__(self, parallel: ParallelConfig):
        self._index, self._count = jax.process_index(), jax.process_count()
        self._left: set[int] = set()  # processes that said they end
        self._sockets: dict[int, socket.socket] = {}
        self._lock = threading.Lock()
        self._ending = False
        _partner_failed.clear()  # in an earlier run of this program
        # The first process says one word and is answered with the other: whatever else listens at
        # an address, or connects to this one, knows neither.
        words = _from_first(f"{secrets.token_hex(16)} {secrets.token_hex(16)}")
        hello, answer = words.split()
        if self._index == 0:
            self._accept(hello, answer, parallel)
        else:
            self._connect(hello, answer)

    @contextlib.contextmanager
    def telling(self) -> Iterator[None]:
        """Tell the others of an error in the block; end this process if it cannot end by itself.

        What is closed after an error, such as a save that has begun, may wait for the others, and
        they for this process.
        """
        try:
            yield
        except BaseException as error:
            code, message = _farewell(error)
            if code:
                self.leave_for(error)
                threading.Thread(target=_end_soon, args=(code, message), daemon=True).start()
            raise

    def leave_for(self, error: BaseException) -> None:
        """Tell the others with what error this process ends, unless they know."""
        if self._ending:
            return
        code, message = _farewell(error)
        if isinstance(error, Exception) and not hasattr(error, "exit_code"):
            follow_failed_partner()
        elif code:
            time.sleep(_NEWS_SECONDS)  # the cause may be that a process is lost
        self.leave(code, message)

    def leave(self, code: int = 0, message: str = "") -> None:
        """Tell the others that this process ends, and with what."""
        with self._lock:
            self._ending = True
        self._send({"process": self._index, "code": code, "message": message})
        if self._index != 0:  # the first process still tells each what it hears from the others
            for connection in self._sockets.values():
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_WR)

    def _accept(self, hello: str, answer: str, parallel: ParallelConfig) -> None:
        """Accept a connection of every other process, and watch them."""
        try:
            server = _listening(self._count)
        except OSError:  # the others are waiting for the addresses
            _from_first(json.dumps([[], 0]))
            self._warn_of_missing()
            return
        streams: dict[int, BinaryIO] = {}
        with server:
            _from_first(json.dumps([addresses(parallel.coordinator), server.getsockname()[1]]))
            deadline = time.monotonic() + _ACCEPT_SECONDS
            while len(streams) < self._count - 1 and (left := deadline - time.monotonic()) > 0:
                with contextlib.suppress(OSError):
                    server.settimeout(left)
                    connection, _ = server.accept()
                    connection.settimeout(_GREETING_SECONDS)
                    _send_line(connection, {"hello": hello})
                    stream: BinaryIO = connection.makefile("rb")
                    said = _read_line(stream)
                    if said and said.get("answer") == answer:
                        number = int(said["process"])
                        self._sockets[number], streams[number] = connection, stream
                    else:
                        stream.close()
                        connection.close()
        self._warn_of_missing()
        for number, stream in streams.items():
            self._watch(number, stream)

    def _warn_of_missing(self) -> None:
        missing = [str(number) for number in range(1, self._count) if number not in self._sockets]
        if missing:
            _say(
                f"Process 0 has no connection to process {', '.join(missing)}: if one of them is "
                "lost, this is noticed after minutes, not at once."
            )

    def _connect(self, hello: str, answer: str) -> None:
        """Connect to the first process, and watch it."""
        hosts, port = json.loads(_from_first(""))
        for host in hosts:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((host, port), timeout=_GREETING_SECONDS)
                connection.settimeout(_HELLO_SECONDS)
                stream = connection.makefile("rb")
                said = _read_line(stream)
                if said and said.get("hello") == hello:
                    _send_line(connection, {"answer": answer, "process": self._index})
                    self._sockets[0] = connection
                    self._watch(0, stream)
                    return
                stream.close()
                connection.close()
        _say(
            f"Process {self._index} cannot connect to process 0 ({', '.join(hosts)}, port "
            f"{port}): if one of them is lost, this is noticed after minutes, not at once."
        )

    def _watch(self, number: int, stream: BinaryIO) -> None:
        connection = self._sockets[number]
        connection.settimeout(None)
        with contextlib.suppress(OSError):  # closed already, which the thread notices
            for option, value in KEEPALIVE:
                connection.setsockopt(*option, value)
        threading.Thread(target=self._listen, args=(number, stream), daemon=True).start()

    def _listen(self, number: int, stream: BinaryIO) -> None:
        with self._sockets[number], stream:
            while (said := _read_line(stream)) is not None:
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
        if self._index == 0:
            self._send(said, but=number)
        if code == 0:
            return
        if code == GONE:
            text = f"Process {number} of {self._count} is gone; start the same command again."
        else:
            text = f"Process {number} of {self._count} ended: {said['message']}"
            _partner_failed.set()
            time.sleep(_GRACE_SECONDS)
        with self._lock:
            ending = self._ending
        if not ending:
            _say(text)
            if code != GONE:
                self.leave()  # the others end as the one that failed, not for this one's end
                _leave_coordinator()
            os._exit(code)

    def _send(self, message: dict[str, Any], but: int | None = None) -> None:
        for number, connection in self._sockets.items():
            if number != but:
                with contextlib.suppress(OSError):
                    _send_line(connection, message)


def _end_soon(code: int, message: str) -> None:
    """End this process once the others have had the time to end."""
    time.sleep(_GRACE_SECONDS + _LEAVE_SECONDS)
    _say(message)
    os._exit(code)


def _leave_coordinator() -> None:
    """Leave JAX's coordinator together with a process that fails, for a limited time.

    At its exit that process waits for all others to leave. JAX aborts it if they end before.
    """

    def leave() -> None:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()

    leaving = threading.Thread(target=leave, daemon=True)
    leaving.start()
    leaving.join(_LEAVE_SECONDS)


def _send_line(connection: socket.socket, message: dict[str, Any]) -> None:
    connection.sendall(json.dumps(message).encode() + b"\n")


def _read_line(stream: BinaryIO) -> dict[str, Any] | None:
    """Return the next message, or None where the connection is closed or says something else."""
    try:
        data = stream.readline(100_000)
        found = json.loads(data) if data.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _listening(backlog: int) -> socket.socket:
    """Return a socket that listens on all addresses of this machine, of IPv6 too if it has any.

    Raises:
      OSError: there is none.
    """
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be compiled in but switched off
            return socket.create_server(
                ("", 0), family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
    return socket.create_server(("", 0), backlog=backlog)
