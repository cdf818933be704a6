"""The table of bad input: one sentence and an exit code for each, no traceback, nothing written.

The rows are `ROWS` of the modules in tests/bad_input, one module for each part.
"""

import importlib
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from bad_input.row import Row

from bocb_jax.__main__ import main

PARTS = sorted(p.stem for p in Path(__file__).with_name("bad_input").glob("*.py"))
TABLE = [
    pytest.param(row, id=f"{part}-{row.id}")
    for part in PARTS
    if part != "row"
    for row in importlib.import_module(f"bad_input.{part}").ROWS
]
LARGE = 2**24  # bytes; of a larger file, only the size is compared
BOCB = Path(sys.executable).with_name("bocb")


def in_process(rows):
    return [row for row in rows if not row.values[0].script_only]


def by_script(rows):
    """Return the rows for the installed `bocb`: every fourth by default, all with `-m slow`."""
    found = [row for row in rows if row.values[0].script or row.values[0].script_only]
    return [
        pytest.param(*row.values, id=row.id, marks=[pytest.mark.slow] * (place % 4 > 0))
        for place, row in enumerate(found)
    ]


def content(folder: Path) -> dict[str, object]:
    """Everything below a folder: files with their bytes, other things with their type."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        mode, size = path.lstat().st_mode, path.lstat().st_size
        readable = stat.S_ISREG(mode) and os.access(path, os.R_OK) and size < LARGE
        found[str(path.relative_to(folder))] = path.read_bytes() if readable else (mode, size)
    return found


def plain(text: str) -> str:
    """Return text in one line, without the frames that libraries draw."""
    return " ".join(text.translate(dict.fromkeys(map(ord, "│╭╮╰╯─"), " ")).split())


def check(row: Row, code: int, said: str) -> None:
    assert "Traceback" not in said, said
    assert code == row.code, said
    assert re.search(row.says, plain(said)), f"expected: {row.says}\nsaid: {plain(said)}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("COLUMNS", "120")
    # Modules of a row are forgotten after it, and leave no compiled files.
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    known = set(sys.modules)
    yield folder
    for name in set(sys.modules) - known:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(folder)):
            del sys.modules[name]


@pytest.mark.parametrize("row", in_process(TABLE))
def test_is_refused(row, folder, monkeypatch, capsys):
    for name, value in row.environ.items():
        monkeypatch.setenv(name, value)
    row.make_files(folder)
    before = content(folder)
    try:
        code = main(list(row.arguments))
    except SystemExit as stop:  # of the parsers of command lines
        code = stop.code if isinstance(stop.code, int) else 1
    check(row, code, capsys.readouterr().err)
    assert row.writes or content(folder) == before


@pytest.mark.skipif(not BOCB.exists(), reason="bocb is not installed beside this Python")
@pytest.mark.parametrize("row", by_script(TABLE))
def test_is_refused_by_the_installed_command(row, folder):
    row.make_files(folder)
    before = content(folder)
    done = subprocess.run(
        [BOCB, *row.arguments],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | row.environ,
        capture_output=True,
        timeout=120,
    )
    check(row, done.returncode, done.stderr.decode(errors="replace"))
    assert row.writes or content(folder) == before


def test_rows_are_many_and_named_once():
    names = [row.id for row in TABLE]
    assert len(set(names)) == len(names)
