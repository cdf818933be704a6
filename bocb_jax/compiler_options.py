"""Options of XLA's compiler for single programs."""

from typing import Any


def init_compiler_options(platform: str) -> dict[str, Any] | None:
    """Return the compiler options of the program that draws random weights.

    On CPUs it takes longer to compile than a training step, and it runs once: LLVM need not
    optimize it.
    """
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else None
