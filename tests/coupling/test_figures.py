"""Cells as figures, and the decimal sign of a table."""

import numpy as np
import pytest

from bocb_jax.coupling import figures
from bocb_jax.errors import UserError

NAN = float("nan")


@pytest.mark.parametrize(
    ("cell", "value", "spread"),
    [
        ("78.35", 78.35, NAN), (" 78.35 % ", 78.35, NAN), ("78.35%", 78.35, NAN),
        ("78.35 ± 0.21", 78.35, 0.21), ("78.35 +- 0.21", 78.35, 0.21),
        ("78.35+/-.21%", 78.35, 0.21),
        ("78.35 (0.21)", 78.35, 0.21), ("(78.35 ± 0.21) %", 78.35, 0.21), ("78 (2)", 78, 2),
        (r"$78.35\pm0.21$", 78.35, 0.21), (r"\textbf{78.35}", 78.35, NAN),
        ("**78.35**", 78.35, NAN),
        ("78.35†", 78.35, NAN), ("\u22121.5", -1.5, NAN), ("1e-3", 0.001, NAN), (".5", 0.5, NAN),
        ("12 s", 12, NAN), ("1,234.5", 1234.5, NAN), ("1,234,567", 1234567, NAN), (7, 7, NAN),
        ("", NAN, NAN), ("n/a", NAN, NAN), ("-", NAN, NAN), (None, NAN, NAN), (NAN, NAN, NAN),
        ("inf", np.inf, NAN),
    ],
)  # fmt: skip
def test_a_cell_is_a_figure(cell, value, spread):
    found, wrong = figures.read([cell], unit="s")
    assert wrong is None
    np.testing.assert_equal(found.values, [value])
    np.testing.assert_equal(found.spreads, [spread])
    assert found.empty.tolist() == [np.isnan(value)]


@pytest.mark.parametrize(
    "cell", ["good", "78.35(21)", "7 8", "1_000", "0x10", "1,23", "70 ± -1", "(78", "78)", "± 3",
             True, "78.35 ± x", "12 k"],
)  # fmt: skip
def test_another_cell_is_none(cell):
    assert figures.read(["1", cell])[1] == 1


def test_statuses_stand_in_place_of_figures():
    found, wrong = figures.read(["OOM", "not reached", "Timed Out", "diverged", "DNF", "crashed"])
    assert wrong is None
    assert found.statuses.tolist() == [
        "out_of_memory", "not_reached", "timed_out", "diverged", "not_reached", "crashed",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("columns", "below", "decimal"),
    [
        ([["70.1", "71"]], 100, "."), ([["70,1", "71"]], 100, ","), ([["70,123"]], 100, ","),
        ([["1,234"], ["0.1"]], np.inf, "."), ([["1.234,5"]], np.inf, ","),
        ([["1,234.5", "3"]], np.inf, "."), ([["1,5", "1,234"]], np.inf, ","),
        ([[7, None]], 100, "."),
    ],
)  # fmt: skip
def test_the_decimal_sign_is_that_of_all_numbers(columns, below, decimal):
    assert figures.decimal_of(columns, "t.csv", below=below) == decimal


def test_points_group_thousands_where_commas_are_decimal():
    cells = ["1.234,5", "1.500", "987,2", "12.345.678", "1.500 ± 2,5", "0.100", 7.5]
    assert figures.decimal_of([cells], "t.csv", below=np.inf) == ","
    found, wrong = figures.read(cells, decimal=",")
    assert wrong is None
    np.testing.assert_allclose(found.values, [1234.5, 1500, 987.2, 12345678, 1500, 0.1, 7.5])
    # No number has groups behind a zero or more than three digits.
    assert figures.decimal_of([["0,123", "1000,123"]], "t.csv", below=np.inf) == ","
    assert figures.read(["1", "0,123"])[1] == 1


def test_a_sign_that_may_be_either_is_refused():
    with pytest.raises(UserError, match="'1,234' may be a decimal number or have a separator of"):
        figures.decimal_of([["1,234", "5,678"]], "t.csv", below=np.inf)
