import sys
import types

import pytest

from bocb_jax.errors import UnknownName, UserError
from bocb_jax.registry import Registry


@pytest.fixture
def table():
    table = Registry("fruit")
    table.register("apple", 1, aliases=("pomme",))
    table.register("apricot", 2)
    return table


def test_names_are_sorted_and_match_patterns(table):
    assert table.names() == ["apple", "apricot"]
    assert table.names("*cot") == ["apricot"]
    assert table.names("x*") == []


def test_an_alias_is_its_entry(table):
    assert table.get("pomme") == 1
    assert table.canonical("pomme") == "apple"
    assert "pomme" in table
    assert "plum" not in table


@pytest.mark.parametrize("taken", ["apple", "pomme"])
def test_a_taken_name_is_refused(table, taken):
    with pytest.raises(UserError, match=f"'{taken}' is registered already"):
        table.register(taken, 3)
    assert table.get("apple") == 1


def test_an_unknown_name_lists_near_matches(table):
    with pytest.raises(UnknownName, match=r"There is no fruit 'aple'\. Did you mean apple"):
        table.get("aple")
    with pytest.raises(UnknownName, match=r"Known: apple, apricot"):
        table.get("zzz")


def test_import_paths(table, monkeypatch):
    module = types.ModuleType("orchard")
    module.quince = 7
    monkeypatch.setitem(sys.modules, "orchard", module)
    assert table.get("orchard:quince") == 7
    with pytest.raises(UnknownName, match="orchard has no attribute 'fig'"):
        table.get("orchard:fig")
    with pytest.raises(UnknownName, match="module 'nowhere' cannot be imported"):
        table.get("nowhere:fig")


def test_entry_points(monkeypatch):
    class Point:
        name = "mango"

        def load(self):
            return 9

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()])
    table = Registry("fruit", entry_points="fruits", adapt=lambda name, found: (name, found))
    assert table.names() == ["mango"]
    assert table.get("mango") == ("mango", 9)
