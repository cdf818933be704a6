"""Numbers in sentences keep their value, their digits, and have no exponent of Python's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bocb_jax.coupling.rounding import p_text, significant


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0, 3, "0"),
        (-0.0, 3, "0"),
        (3.224, 3, "3.22"),
        (40.0, 3, "40"),
        (999.6, 3, "1,000"),
        (3224.4, 3, "3,224"),
        (-123456789.0, 2, "-123,456,789"),
        (1.25e18, 2, "1.2 x 10^18"),
        (0.00002134, 3, "0.0000213"),
        (2.1e-9, 2, "2.1 x 10^-9"),
        (0.0999996, 3, "0.1"),
        (float("inf"), 3, "inf"),
    ],
)
def test_by_hand(value, digits, text):
    assert significant(value, digits) == text


@given(st.floats(1e-6, 1e14) | st.floats(-1e14, -1e-6), st.integers(1, 6))
def test_as_near_as_the_digits_allow(value, digits):
    text = significant(value, digits)
    assert "e" not in text
    shown = float(text.replace(",", ""))
    assert abs(shown - value) <= abs(value) * 0.5 * 10 ** (1 - digits) * (1 + 1e-9)


def test_p_values():
    assert [p_text(p) for p in (0.0127, 1.0, 1e-4, 1e-30)] == [
        "p = 0.013", "p = 1", "p = 0.0001", "p < 0.0001",
    ]  # fmt: skip
