"""The platform that models are traced for: nothing else in this package asks.

Some layers have a second form for CPUs, chosen while the program is traced. A caller that compiles
ahead of time for devices that this process does not have names their platform:

    with platform.tracing_for("tpu"):
        lowered = step.trace(*shapes).lower(lowering_platforms=("tpu",))
"""

from contextlib import AbstractContextManager

import jax

# A context of JAX's own is part of the keys of its caches: what was traced for one platform is
# traced again for another.
_TARGET = jax.make_user_context(default_value=None)


def target() -> str:
    """Return "cpu", "gpu" or "tpu": what `tracing_for` names, else the default backend."""
    return _TARGET.value or jax.default_backend()


def has_cudnn() -> bool:
    """Whether the kernels of cuDNN can be traced: for a GPU, where this process has one."""
    return target() == "gpu" == jax.default_backend()


def tracing_for(platform: str) -> AbstractContextManager[None]:
    """Return a context in which this thread traces models for `platform`."""
    return _TARGET(platform)
