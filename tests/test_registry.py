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
    assert table.resolve("orchard:quince") == 7
    assert table.resolve("apple") == 1
    with pytest.raises(UnknownName, match="orchard has no attribute 'fig'"):
        table.resolve("orchard:fig")
    with pytest.raises(UnknownName, match="module 'nowhere' cannot be imported"):
        table.resolve("nowhere:fig")
    with pytest.raises(UnknownName, match="There is no fruit 'aple'"):
        table.resolve("aple")


@pytest.mark.parametrize(
    "path", [":", "orchard:", ":quince", "..a:b", "a b:c", "orchard:a.b.", "a:"]
)
def test_what_is_no_import_path_is_a_sentence(table, path):
    with pytest.raises(UnknownName, match=r"an import path is package\.module:name"):
        table.resolve(path)


def test_only_a_person_s_import_paths_are_followed(table, tmp_path, monkeypatch):
    (tmp_path / "planted.py").write_text(
        f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\nfig = 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UnknownName, match="'planted:fig' is not registered"):
        table.get("planted:fig")
    assert "planted:fig" not in table
    assert "planted" not in sys.modules
    assert not (tmp_path / "ran").exists()
    assert table.resolve("planted:fig") == 3
    del sys.modules["planted"]


def test_a_module_that_fails_is_a_sentence_with_its_line(table, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text("x = 1\ny = x / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(
        UserError, match=r"cannot be imported: ZeroDivisionError.*broken.py, line 2"
    ):
        table.resolve("broken:y")


def test_modules_beside_the_user_are_found_after_all_others(table, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    (tmp_path / "beside_me.py").write_text("fig = 4\n")
    (tmp_path / "colorsys.py").write_text("raise SystemExit\n")  # a module of Python's
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    assert callable(table.resolve("colorsys:rgb_to_hsv"))
    assert str(tmp_path) not in sys.path
    assert table.resolve("beside_me:fig") == 4
    assert sys.path[-1] == str(tmp_path)
    del sys.modules["beside_me"]


def test_entry_points(monkeypatch):
    class Point:
        name = "mango"

        def load(self):
            return 9

    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [Point()])
    table = Registry("fruit", entry_points="fruits", adapt=lambda name, found: (name, found))
    assert table.names() == ["mango"]
    assert table.get("mango") == ("mango", 9)
