"""Where compiled programs are kept for the next process."""

import os
from pathlib import Path

import jax


def use_compile_cache(folder: str | None) -> None:
    """Keep compiled programs on disk, so that the next process need not compile them again.

    Args:
      folder: where; None for `JAX_COMPILATION_CACHE_DIR` or, if that is not set, the user's cache.
    """
    if folder is None:
        folder = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    if folder is None:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = str(Path(home) / "bocb_jax" / "compiled")
    jax.config.update("jax_compilation_cache_dir", folder)
    # Small programs too: a process that trains its thousandth run compiles nothing.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
