"""How much memory a run needed, and how a process reuses what it has."""

import contextlib
import ctypes
import re
import sys
from pathlib import Path

import jax


def peak_memory() -> int | None:
    """Return the peak memory in bytes of the device that needed most; None if it is unknown.

    Accelerators measure from the start of the process; on CPUs, it is the peak of the process since
    `forget_peak_memory`.
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
    """Reset the peak for the next run of this process, on Linux."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # so that memory freed by earlier runs does not count
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


# Numbers of `mallopt` in glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> None:
    """Keep freed memory for the next allocation, instead of returning it to the system.

    On CPUs, a training step allocates one large buffer for its temporaries and frees it at its end.
    glibc returns blocks of that size to the system, which then clears and hands them out again page
    by page: on small backbones a third of a step. Call this before the first computation, and only
    from programs: it changes how the whole process allocates. Without glibc it does nothing.
    """
    if not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_ARENA_MAX, 1)  # only the main arena can grow to any size
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
