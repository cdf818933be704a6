"""How a run ended: what `result.json` says besides the scores, and the sentence for a failure."""

import contextlib
import errno
import itertools
import os
import re
import signal
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from bocb_jax.errors import Interrupted, UserError

RESUME = "earlier checkpoints are intact, and the same command resumes from them"
_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
# What Grain says of a process of its own.
_LOST_WORKER = re.compile(r"Worker process was terminated unexpectedly with exit code (-?\d+)")


class _OfTheMachine(UserError):
    """The sentence for a failure of the machine, which is the cause."""


def failure(error: BaseException) -> dict[str, Any]:
    """Return the result of a run that an error ended: "out_of_memory" or "crashed"."""
    if isinstance(error, _OfTheMachine):
        error = error.__cause__ or error
    text = f"{type(error).__name__}: {error}"
    is_memory = is_out_of_memory(error)
    return {
        "status": "out_of_memory" if is_memory else "crashed",
        "error": text,
        "bytes_asked": _bytes_asked(error) if is_memory else None,
        "traceback": "".join(traceback.format_exception(error)),
    }


@contextlib.contextmanager
def in_a_sentence(where: str) -> Iterator[None]:
    """Raise an error for users when the machine fails the block, instead of a traceback.

    Args:
      where: the folder of the run, for the message.

    Raises:
      UserError: memory or the disk is full, or a data worker was killed.
      Interrupted: a second signal came before the state was saved.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(
            f"Stopped at once, without another save; {RESUME}.",
            signal_number=signal.SIGINT,
            saved=False,
        ) from error
    except UserError:
        raise
    except Exception as error:
        sentence = explanation(error, where)
        if sentence is None:
            raise
        raise _OfTheMachine(sentence) from error


def explanation(error: Exception, where: str) -> str | None:
    """Return a sentence for an error that comes from the machine; None for any other."""
    if is_out_of_memory(error):
        asked = _bytes_asked(error)
        size = f" (asked for {asked / 2**30:.2f} GiB)" if asked else ""
        return (
            f"Memory ran out{size}; use a smaller --batch-size, or split it into parts with "
            "--step.accumulate."
        )
    if reason := _of_the_disk(error):
        path = getattr(error, "filename", None) or where
        return f"{path} cannot be written: {reason}; {RESUME}."
    if lost := _LOST_WORKER.search(str(error)):
        return (
            f"A data worker was ended from outside (exit code {lost[1]}), as the system does when "
            f"memory runs out; {RESUME}. Fewer --data.workers need less memory."
        )
    return None


def cannot_write(error: BaseException) -> bool:
    """Whether an error says that the disk is full or fails: no run's fault, and none can go on."""
    while isinstance(error, UserError) and error.__cause__ is not None:
        error = error.__cause__
    return _of_the_disk(error) is not None


def _of_the_disk(error: BaseException) -> str | None:
    """Return what the system says where it cannot write; None for any other error."""
    if isinstance(error, OSError):
        return error.strerror if error.errno in _DISK else None
    text = str(error)  # of TensorStore, which has kinds of its own
    return next((said for said in map(os.strerror, _DISK) if said in text), None)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that the memory of the host or of a device ran out."""
    # TensorStore calls a full disk an exhausted resource as well.
    is_device = "RESOURCE_EXHAUSTED" in str(error) and _of_the_disk(error) is None
    return isinstance(error, MemoryError) or is_device


def _bytes_asked(error: BaseException) -> int | None:
    asked = re.search(r"allocat\w* (\d+) bytes", str(error))
    return int(asked.group(1)) if asked else None


def summary(
    lines: list[dict[str, Any]],
    epoch_steps: int,
    *,
    score: str = "accuracy",
    means: Sequence[str] = ("loss", "accuracy"),
) -> dict[str, Any]:
    """Summarize the lines of `metrics.jsonl`.

    Args:
      lines: in order; each covers the steps since the one before. One with "gap" stands for lines
        that were lost, see `metrics.JsonLines`.
      epoch_steps: steps per epoch.
      score: name of the score of an evaluation.
      means: names of the metrics that every line has.

    Returns:
      "first_train_loss": of the first line; "train_loss", "train_accuracy" and the like: means over
      the steps of the last epoch; "evaluations": [step, validation score] of each evaluation;
      "evaluation_seconds": when each took place, in seconds of training since the start.
    """
    if not lines:
        return {}
    steps = [0, *(line["step"] for line in lines)]
    begin = steps[-1] - epoch_steps
    # A line that spans the start of the last epoch counts with its share of that epoch.
    weights = [b - max(a, begin) for a, b in itertools.pairwise(steps)]
    weights = [
        0 if "gap" in line else max(weight, 0) for line, weight in zip(lines, weights, strict=True)
    ]

    def mean(name: str) -> float | None:
        values = [line.get(name) for line in lines]
        if any(v is None for v, weight in zip(values, weights, strict=True) if weight):
            return None  # not finite
        if not any(weights):
            return None  # all lost
        return sum(v * w for v, w in zip(values, weights, strict=True) if w) / sum(weights)

    validation = f"validation_{score}"
    evaluations = [line for line in lines if validation in line]
    return {
        "first_train_loss": lines[0].get("loss"),
        **{f"train_{name}": mean(name) for name in means},
        "evaluations": [[line["step"], line[validation]] for line in evaluations],
        "evaluation_seconds": [line.get("seconds") for line in evaluations],
    }
