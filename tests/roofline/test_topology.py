"""Topologies by name; GPUs are stood in for by devices of the CPU."""

import pytest

from bocb_jax.errors import UserError
from bocb_jax.roofline.chips import CHIPS
from bocb_jax.roofline.topology import open_topology


def test_gpus_are_stood_in_for():
    found = open_topology("H100:2x2")
    assert (len(found.devices), found.num_chips, found.stand_in) == (4, 4, True)
    assert dict(found.mesh(fsdp=2).shape) == {"data": 2, "fsdp": 2}


@pytest.mark.parametrize(
    "name", ["", "v5e", "v9:2x2", "v5e:", "v5e:0x4", "v5e:x", "h100:1000000", "h100:-1", "v5e:4 x"]
)
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UserError, match="topology"):
        open_topology(name)


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(
        UserError, match=r"parallel\.fsdp is 3, which does not divide the 4 devices"
    ):
        open_topology("a100:4").mesh(fsdp=3)


@pytest.mark.parametrize("chip", CHIPS.values(), ids=CHIPS)
def test_peaks_are_in_their_units(chip):
    assert 1e14 < chip.flops < 1e16
    assert 10e9 < chip.memory < 1e12
    assert 5e11 < chip.bandwidth < 2e13
    assert 5e10 < chip.links < 2e12
    assert chip.source


def test_a_tpu_needs_libtpu(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package libtpu; install it"):
        open_topology("v5e:4x4")
