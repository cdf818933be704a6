"""How much memory a run has needed: on its devices, or in its process where these are CPUs."""

import contextlib
import re
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
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
