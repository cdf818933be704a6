"""Strict sessions: eight fake devices, rank promotion is an error, no compile cache on disk."""

import gc
import os

os.environ["JAX_PLATFORMS"] = "cpu"

import hypothesis
import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
# A session keeps many objects of JAX alive, and a full collection looks at all of them.
gc.set_threshold(50_000, 20, 50)


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory):
    """One folder for the compiled programs of a session; nothing is left in the user's home."""
    return str(tmp_path_factory.mktemp("compiled"))


# A shared machine is slow at times; that is no finding.
hypothesis.settings.register_profile(
    "shared", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("shared")
