"""Encoded images by index: what files and record stores have in common."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class Records(Protocol):
    """Encoded images and their labels, by index. Must be picklable for worker processes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        """Return the encoded image and its label."""

    def name(self, index: int) -> str:
        """Return what messages call the image: its path, or its position."""


class SubsetRecords:
    """The records at some indices of others, in the given order."""

    def __init__(self, records: Records, indices: np.ndarray | Sequence[int]):
        self._records = records
        self._indices = np.asarray(indices, np.int32)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        return self._records[int(self._indices[index])]

    def name(self, index: int) -> str:
        return self._records.name(int(self._indices[index]))


class JoinedRecords:
    """Two sets of records, one after the other."""

    def __init__(self, first: Records, second: Records):
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def __getitem__(self, index: int) -> tuple[bytes, int]:
        records, index = self._locate(index)
        return records[index]

    def name(self, index: int) -> str:
        records, index = self._locate(index)
        return records.name(index)

    def _locate(self, index: int) -> tuple[Records, int]:
        first = len(self._first)
        return (self._first, index) if index < first else (self._second, index - first)
