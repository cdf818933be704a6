"""The memory that a run has needed, and how a process keeps what it has."""

import contextlib
import ctypes
import re
import sys
from pathlib import Path

import jax


def peak_memory() -> int | None:
    """Bytes at the highest, on the device that needed most; None where nothing tells.

    The devices count from the start of the process, a process on CPUs from `forget_peak_memory`.
    """
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    peaks = [found["peak_bytes_in_use"] for found in statistics if "peak_bytes_in_use" in found]
    if peaks:
        return max(peaks)
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        return int(found.group(1)) * 1024 if found else None
    return None


def forget_peak_memory() -> None:
    """Begins to count anew, for the next run of this process; Linux alone can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs have freed is none of this one's
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# Numbers of `mallopt` in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keeps what is freed for the next allocation, instead of giving it back to the system.

    A step on CPUs takes one large buffer for all that it computes on the way, and frees it at its
    end. glibc returns blocks of that size to the system at once, which hands them out anew page by
    page, each cleared first: on small backbones that is a third of a step. Does nothing where the C
    library is another. To be called before the first computation, by programs alone: it
    changes how the whole process allocates.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # only the main arena can grow to any size
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
