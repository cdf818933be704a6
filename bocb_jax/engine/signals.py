"""Being asked to stop: SIGTERM from a scheduler, SIGINT from a keyboard."""

import contextlib
import signal
from collections.abc import Iterator

import jax


class Signals:
    """Remembers the first signal; the loop asks for it between steps."""

    def __init__(self):
        self.number: int | None = None

    def received(self, step: int) -> bool:
        """Has a signal come? With several processes, all of them answer alike for a step."""
        if jax.process_count() == 1:
            return self.number is not None
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(step):
            self.number = self.number or signal.SIGTERM
            return True
        return False

    def _receive(self, number, frame):
        del frame
        if self.number is not None:  # asked twice: do not wait any longer
            raise KeyboardInterrupt
        self.number = number


@contextlib.contextmanager
def catching() -> Iterator[Signals]:
    """Signals are remembered inside the block, and do what they did before after it."""
    signals = Signals()
    before = {}
    try:
        for number in (signal.SIGTERM, signal.SIGINT):
            # With several processes, JAX's own service notices SIGTERM and tells all of them.
            if jax.process_count() == 1 or number == signal.SIGINT:
                before[number] = signal.signal(number, signals._receive)
    except ValueError:  # not in the main thread: the program around us handles signals
        pass
    try:
        yield signals
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
