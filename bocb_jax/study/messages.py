"""What a sweep and its workers say to each other. Standard library only."""

import dataclasses
import enum
import json
from typing import Any


class Task(enum.StrEnum):
    """What a worker can be asked to do."""

    TRAIN = "train"  # one run
    TRAIN_TOGETHER = "train_together"  # several runs as one program
    COMPARE = "compare"  # measure whether training together is faster than one by one
    MEASURE = "measure"  # seconds per training image of one run


@dataclasses.dataclass(frozen=True)
class Request:
    """One task for one worker.

    Attributes:
      task: what to do.
      configs: of the runs, each as `config.to_dict` gives it; a single one unless the task is
        TRAIN_TOGETHER or COMPARE.
      members: how many runs the program trains together; `configs` may fill fewer of its places.
    """

    task: Task
    configs: list[dict[str, Any]]
    members: int = 1

    @property
    def runs(self) -> int:
        """How many runs it trains and saves."""
        return len(self.configs) if self.task in (Task.TRAIN, Task.TRAIN_TOGETHER) else 0

    def to_json(self) -> str:
        """Return the request on one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Request":
        """Return the request that `to_json` wrote."""
        fields = json.loads(line)
        return cls(Task(fields.pop("task")), **fields)


# Of a run that stopped because the disk is full or fails: so would every other.
UNWRITABLE = "unwritable"


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a worker answers once a request is done.

    Attributes:
      statuses: how each run ended, as in `result.json`; "interrupted" for one that should be asked
        for again, since a signal came or another process still holds its folder; `UNWRITABLE` for
        one that could not be written.
      error: why the task failed; for TRAIN_TOGETHER, why the runs were trained one by one.
      choice: of COMPARE; see `measure.compare`.
      seconds_per_image: of MEASURE; None where it failed.
      compiled: the programs that XLA compiled meanwhile, by function name.
      loaded: the programs that came from the compile cache.
    """

    statuses: list[str] = dataclasses.field(default_factory=list)
    error: str | None = None
    choice: dict[str, Any] | None = None
    seconds_per_image: float | None = None
    compiled: list[str] = dataclasses.field(default_factory=list)
    loaded: list[str] = dataclasses.field(default_factory=list)

    def to_json(self) -> str:
        """Return the answer on one line."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, line: str) -> "Answer":
        """Return the answer that `to_json` wrote."""
        return cls(**json.loads(line))


class EventKind(enum.StrEnum):
    """What can happen to a worker."""

    READY = "ready"  # it has started and waits for a request
    DONE = "done"  # it has answered
    DIED = "died"  # its process has ended; another takes its place


@dataclasses.dataclass(frozen=True)
class Event:
    """Something that happened to a worker.

    Attributes:
      kind: what happened.
      worker: the worker's number.
      answer: what a DONE worker answered.
      reason: why a worker DIED, as a sentence.
    """

    kind: EventKind
    worker: int
    answer: Answer | None = None
    reason: str = ""
