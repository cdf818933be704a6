"""What the machine does to a run is one sentence, and the right status."""

import errno
import os

import pytest

from bocb_jax.engine.outcome import failure, in_a_sentence
from bocb_jax.errors import Diverged, Interrupted, UserError

XLA = "RESOURCE_EXHAUSTED: Out of memory allocating 3221225472 bytes."
TENSORSTORE = "RESOURCE_EXHAUSTED: Error writing [OS error 28: No space left on device]"
GRAIN = "Worker process was terminated unexpectedly with exit code -9. Search the logs"


def disk(number, *name):
    return OSError(number, os.strerror(number), *name)


@pytest.mark.parametrize(
    ("error", "says", "status"),
    [
        (MemoryError(), r"^Memory ran out; use a smaller --batch-size", "out_of_memory"),
        (RuntimeError(XLA), r"^Memory ran out \(asked for 3\.00 GiB\); use", "out_of_memory"),
        (RuntimeError(TENSORSTORE), r"^runs/a cannot be written: No space left", "crashed"),
        (disk(errno.ENOSPC, "x.json"), r"^x\.json cannot be written: No space left", "crashed"),
        (disk(errno.EDQUOT), r"^runs/a cannot be written: Disk quota exceeded; earlier", "crashed"),
        (disk(errno.EROFS), r"^runs/a cannot be written: Read-only file system", "crashed"),
        (RuntimeError(GRAIN), r"^A data worker was ended from outside \(exit code -9\)", "crashed"),
    ],
)
def test_a_failure_of_the_machine_is_a_sentence(error, says, status):
    assert failure(error)["status"] == status
    with pytest.raises(UserError, match=says) as caught, in_a_sentence("runs/a"):
        raise error
    assert failure(caught.value)["status"] == status
    assert failure(caught.value)["error"].startswith(type(error).__name__)


def test_a_sentence_of_another_kind_is_recorded_as_it_is():
    with pytest.raises(UserError) as caught, in_a_sentence("runs/a"):
        raise UserError("a/3.png cannot be read.") from ValueError("b'\\x00'")
    result = failure(caught.value)
    assert (result["status"], result["error"]) == ("crashed", "UserError: a/3.png cannot be read.")
    assert "ValueError: b'" in result["traceback"]


@pytest.mark.parametrize(
    "error", [ValueError("a fault of ours"), UserError("no"), Diverged("it did", step=3),
              Interrupted("saved", signal_number=15), FileNotFoundError(errno.ENOENT, "none")]
)  # fmt: skip
def test_other_errors_stay_what_they_are(error):
    with pytest.raises(type(error)) as caught, in_a_sentence("runs/a"):
        raise error
    assert caught.value is error


def test_a_second_signal_is_a_sentence_with_its_exit_code():
    says = "Stopped at once, without another save"
    with pytest.raises(Interrupted, match=says) as caught, in_a_sentence("runs/a"):
        raise KeyboardInterrupt
    assert caught.value.exit_code == 130
