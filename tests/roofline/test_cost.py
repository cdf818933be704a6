"""Memory, least transfers and times of a step."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bocb_jax.roofline.chips import CHIPS
from bocb_jax.roofline.cost import (
    OutOfMemory,
    Seconds,
    compile_step,
    device_bytes,
    least_received,
    out_of_memory,
)
from bocb_jax.roofline.topology import open_topology


@pytest.mark.parametrize(
    ("devices", "fsdp", "expected"),
    [
        (1, 1, 0),
        (4, 1, 2 * 3 / 4),  # one sum
        (4, 4, 3 * 3 / 4),  # gathered twice, scattered once
        (8, 2, 3 / 2 + 2 * 3 / 4 / 2),  # and half of it summed over four copies
    ],
)
def test_least_transfers(devices, fsdp, expected):
    found = least_received(1000, devices, fsdp, gathered=2, summed=2)
    assert found == pytest.approx(2000 * expected)


def test_sums_in_float32_are_twice_the_bytes_of_bfloat16():
    assert least_received(1000, 4, 1, gathered=2, summed=4) == pytest.approx(4000 * 2 * 3 / 4)
    assert least_received(1000, 4, 4, gathered=2, summed=4) == pytest.approx((4000 + 4000) * 3 / 4)


def test_what_a_device_holds():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    split = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = NamedSharding(mesh, PartitionSpec())
    tree = {
        "a": jax.ShapeDtypeStruct((8, 3), jnp.float32, sharding=split),
        "b": jax.ShapeDtypeStruct((5,), jnp.bfloat16, sharding=everywhere),
    }
    assert device_bytes(tree) == 2 * 3 * 4 + 5 * 2


def test_the_longest_part_bounds_a_step():
    assert Seconds(3.0, 2.0, 1.0).least == 3.0
    assert Seconds(3.0, 5.0, 1.0).bound == "memory"
    unknown = Seconds(math.nan, 2.0, 1.0)
    assert (unknown.least, unknown.bound) == (2.0, "memory")


@pytest.mark.parametrize(
    ("message", "needed"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory "
            "space hbm. Used 31.05G of 15.75G hbm. Exceeded hbm capacity by 15.30G.",
            31.05,
        ),
        (
            "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
            "temporaries (27.50G) exceeds available HBM (15.75G).",
            28.5,
        ),
    ],
)
def test_xlas_sentences_about_memory_are_read(message, needed):
    found = out_of_memory(message, open_topology("h100:1"), arguments=2**30)
    assert found.needed == pytest.approx(needed * 2**30)
    assert found.available == pytest.approx(15.75 * 2**30)


def test_another_sentence_about_memory_leaves_the_chips_own():
    found = out_of_memory("RESOURCE_EXHAUSTED", open_topology("h100:1"), 0.0)
    assert math.isnan(found.needed)
    assert found.available == 80e9


def test_a_step_that_does_not_fit_is_told(monkeypatch):
    topology = open_topology("h100:2")
    sharding = NamedSharding(topology.mesh(), PartitionSpec())
    leaf = jax.ShapeDtypeStruct((1000,), jnp.float32, sharding=sharding)
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=sharding)
    step = jax.jit(lambda state, batch, key: (state + batch, batch.sum()), donate_argnums=0)
    cost = compile_step(step, leaf, leaf, key, topology)
    assert (cost.state, cost.batch) == (4000, 4000)
    assert cost.memory < CHIPS["h100"].memory
    monkeypatch.setitem(vars(topology.chip), "memory", 5000)
    with pytest.raises(OutOfMemory) as caught:
        compile_step(step, leaf, leaf, key, topology)
    assert caught.value.needed >= 8000
