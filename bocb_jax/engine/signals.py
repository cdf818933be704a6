"""Requests to stop: SIGTERM from a scheduler, SIGINT from the keyboard."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

import jax


class Signals:
    """The first signal that came; the loop asks for it between steps."""

    def __init__(self):
        self.number: int | None = None

    def received(self, step: int) -> bool:
        """Whether a signal has come; all processes give the same answer for a step."""
        if jax.process_count() == 1:
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


@contextlib.contextmanager
def catching() -> Iterator[Signals]:
    """Record signals inside the block; restore the previous handlers after it."""
    signals = Signals()
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
