"""Counting what XLA compiles."""

import contextlib

import jax


@contextlib.contextmanager
def counting_compilations():
    """Yield a list that gets the name of each function that is compiled meanwhile."""
    found = []

    def listen(event, seconds, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(about.get("fun_name", ""))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
