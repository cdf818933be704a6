"""Requests to stop: SIGTERM from a scheduler, SIGINT from the keyboard, and `max_minutes`."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax

_noticed = threading.Event()  # a training loop has seen a signal, and saves
_stepping = threading.Event()  # a training loop takes steps: it will see a signal between two


class Signals:
    """The first signal that came; the loop asks for it between steps.

    Args:
      deadline: `time.monotonic()` at which the run is to have ended; then it stops as for SIGTERM.

    Attributes:
      number: of the signal; None while there is none.
      reason: sentence for the user where it was the deadline, else empty.
    """

    def __init__(self, deadline: float = math.inf):
        self.number: int | None = None
        self.reason = ""
        self._deadline = deadline

    def received(self, step: int, *, reserve: float = 0.0) -> bool:
        """Whether a signal has come; all processes give the same answer for a step.

        Args:
          step: steps taken.
          reserve: seconds before the deadline that the run needs to end.
        """
        if self.number is None and time.monotonic() + reserve >= self._deadline:
            self.reason = "The time of --max-minutes is over. "
            self._receive(signal.SIGTERM, None)
        if jax.process_count() == 1:
            if self.number is not None:
                _noticed.set()
            return self.number is not None
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return False

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:  # the second request: do not wait for the save
            raise KeyboardInterrupt
        self.number = number
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other processes


@contextlib.contextmanager
def catching(started: float = 0.0, max_minutes: float | None = None) -> Iterator[Signals]:
    """Record signals inside the block; restore the previous handlers after it.

    Args:
      started: `time.monotonic()` when the command started.
      max_minutes: how long it may take from then on; None for as long as it needs.
    """
    signals = Signals(math.inf if max_minutes is None else started + 60 * max_minutes)
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # With several processes, JAX's own service receives SIGTERM and tells all of them.
            if jax.process_count() == 1 or number == signal.SIGINT:
                before[number] = signal.signal(number, signals._receive)
    except ValueError:  # not in the main thread: the calling program handles signals
        pass
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def steps() -> Iterator[None]:
    """Keep `exit_unless_noticed` from ending this process inside the block.

    The loop asks for signals between its steps, but Python runs no handler while it waits for the
    devices, and that takes as long as the steps that were dispatched.
    """
    _stepping.set()
    try:
        yield
    finally:
        _stepping.clear()


def were_noticed() -> bool:
    """Whether a training loop of this process has stopped for a signal."""
    return _noticed.is_set()


def exit_unless_noticed(seconds: float) -> None:
    """End this process if no training loop has noticed a signal after so many seconds.

    Python runs no handler while XLA compiles, so a thread waits for the signal as well. A loop that
    takes `steps` is given as long as it needs. A process that does not train is ended by the signal
    itself.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader, seconds), daemon=True).start()


def _watch(reader: int, seconds: float) -> None:
    number = os.read(reader, 1)[0]
    while not _noticed.wait(seconds):
        if not _stepping.is_set():
            os._exit(128 + number)
