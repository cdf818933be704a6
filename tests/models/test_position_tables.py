"""Position tables at another image size, against timm's resizing."""

import pathlib

import numpy as np
import pytest

from bocb_jax.models import position_tables

GOLDEN = np.load(pathlib.Path(__file__).parents[1] / "golden" / "position_tables.npz")


@pytest.mark.parametrize("name", [name for name in GOLDEN if not name.endswith("_given")])
def test_tables_are_those_of_timm(name):
    resize = getattr(position_tables, f"resize_{name.partition('_')[0]}")
    wanted = GOLDEN[name]
    made = resize(GOLDEN[f"{name}_given"], wanted.shape)
    assert made.dtype == np.float32
    # Both round in float32, values being around 1; timm places old entries in float32 as well.
    np.testing.assert_allclose(made, wanted, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("resize", "given", "wanted"),
    [
        ("absolute", (1, 197, 8), (1, 65, 9)),  # another width
        ("absolute", (1, 196, 8), (1, 65, 8)),  # no class token
        ("absolute", (1, 5, 8), (1, 1 + 10**8, 8)),  # a side of 10,000
        ("absolute", (197, 8), (1, 65, 8)),
        ("relative", (169, 3), (49, 4)),  # other heads
        ("relative", (168, 3), (49, 3)),  # no square
        ("relative", (36, 3), (49, 3)),  # an even side
        ("relative", (0, 3), (49, 3)),
    ],
)
def test_what_cannot_be_resized_is_left(resize, given, wanted):
    table = np.zeros(given, np.float32)
    assert getattr(position_tables, f"resize_{resize}")(table, wanted) is None
