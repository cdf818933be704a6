"""What a process does with memory that was freed, and how it counts it."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import resource
import jax, jax.numpy as jnp
from bocb_jax.engine.memory import forget_peak_memory, keep_freed_memory, peak_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

keep_freed_memory()
x = jnp.ones(2**22)  # 16 MiB
# Sorting keeps XLA from making one pass of it all: buffers of 64 MiB on the way.
step = jax.jit(lambda x: jnp.sort(jnp.outer(jnp.arange(4.0), x), axis=0).sum(0))
counts = []
for _ in range(8):
    before = faults()
    step(x).block_until_ready()
    counts.append(faults() - before)
peak = peak_memory()
del x
forget_peak_memory()
print(min(counts), peak - peak_memory())
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone can tell")
def test_a_step_finds_the_buffers_of_the_step_before():
    printed = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    ).stdout
    faults, forgotten = map(int, printed.split())
    assert faults < 0.1 * 64 * 2**20 / 4096  # pages; each step's buffer is this large
    assert forgotten > 32 * 2**20  # the next run does not inherit what was kept
