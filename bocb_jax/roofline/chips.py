"""Published peaks of accelerators, with their sources."""

import dataclasses

_CLOUD = "docs.cloud.google.com/tpu/docs"
_NVIDIA = "NVIDIA's data sheet"
GIB, GB = 2**30, 10**9


@dataclasses.dataclass(frozen=True)
class Chip:
    """An accelerator as its maker describes it.

    Attributes:
      name: as in the name of a topology.
      platform: "tpu" or "gpu".
      flops: dense bfloat16 operations per second.
      memory: bytes.
      bandwidth: bytes per second between the memory and the chip.
      links: bytes per second that arrive from other chips, all links together.
      devices: that JAX sees of one chip.
      source: where the figures stand.
    """

    name: str
    platform: str
    flops: float
    memory: float
    bandwidth: float
    links: float
    devices: int
    source: str


# Links are published for both directions together: half of it arrives.
CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", "tpu", 275e12, 32 * GIB, 1200 * GB, 300 * GB, 1, f"{_CLOUD}/v4"),
        Chip("v5e", "tpu", 197e12, 16 * GIB, 819 * GB, 200 * GB, 1, f"{_CLOUD}/v5e"),
        Chip("v5p", "tpu", 459e12, 95 * GIB, 2765 * GB, 600 * GB, 1, f"{_CLOUD}/v5p"),
        Chip("v6e", "tpu", 918e12, 32 * GIB, 1638 * GB, 400 * GB, 1, f"{_CLOUD}/v6e"),
        Chip("tpu7x", "tpu", 2307e12, 192 * GIB, 7380 * GB, 600 * GB, 2, f"{_CLOUD}/tpu7x"),
        Chip("a100", "gpu", 312e12, 80 * GB, 2039 * GB, 300 * GB, 1, f"{_NVIDIA}, A100 80GB SXM"),
        Chip("h100", "gpu", 989e12, 80 * GB, 3350 * GB, 450 * GB, 1, f"{_NVIDIA}, H100 SXM"),
        Chip("h200", "gpu", 989e12, 141 * GB, 4800 * GB, 450 * GB, 1, f"{_NVIDIA}, H200 SXM"),
    )
}  # fmt: skip
