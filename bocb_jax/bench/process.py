"""Processes that are timed: each answers every line of JSON with another."""

import contextlib
import functools
import json
import os
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any, Self

from bocb_jax.errors import UserError

# Seconds that a process has to end by itself once its input is closed.
GRACE = 20


class Timed:
    """A process that answers requests; a context manager that ends it.

    The process prints `{"ready": true}` when it has imported what it needs, and then one JSON
    object for each that it reads.

    Args:
      command: of the process.
      settings: its last argument, as JSON.
      sent: bytes for its standard input, before the first request.
      environment: variables beside those of this process.

    Raises:
      UserError: the command cannot be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        settings: Any,
        *,
        sent: bytes = b"",
        environment: Mapping[str, str] | None = None,
    ):
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        try:
            self._process = subprocess.Popen(
                [*command, json.dumps(settings)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=os.environ | dict(environment or {}),
            )
        except OSError as error:
            self._errors.close()
            raise UserError(
                f"'{' '.join(command[:1])}' cannot be started ({error.strerror}); give the command "
                "of an interpreter."
            ) from error
        assert self._process.stdin
        assert self._process.stdout
        self._input, self._output = self._process.stdin, self._process.stdout
        self._write(sent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._input.close()
        try:
            self._process.wait(timeout=GRACE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()
        self._errors.close()

    @functools.cached_property
    def problem(self) -> str | None:
        """Why the process is not ready, such as an import that fails; None once it is."""
        return self.receive().get("error")

    def send(self, **request: Any) -> None:
        """Send a request, to be answered while this process does something else."""
        self._write(json.dumps(request).encode() + b"\n")

    def receive(self) -> dict[str, Any]:
        """Return the next answer, or {"error": why there is none}."""
        for line in self._output:
            with contextlib.suppress(ValueError):  # what a library prints is no answer
                answer = json.loads(line)
                if isinstance(answer, dict):
                    return answer
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        return {"error": ": ".join(["the process has ended", *last])}

    def ask(self, **request: Any) -> dict[str, Any]:
        """Send a request and return the answer, or {"error": why there is none}."""
        if self.problem:
            return {"error": self.problem}
        self.send(**request)
        return self.receive()

    def _write(self, data: bytes) -> None:
        with contextlib.suppress(BrokenPipeError):  # `receive` says why the process has ended
            self._input.write(data)
            self._input.flush()
