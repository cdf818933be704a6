"""The drills start with the commands that are written down for them."""

import ast
import re

import pytest
from helpers.pages import PAGES, ROOT

DRILLS = sorted((ROOT / "tests" / "drills").glob("[!t]*.py"))
TEXTS = {path: path.read_text() for path in [*DRILLS, *PAGES]}
COMMAND = re.compile(r"(PYTHONPATH=tests )?python tests/drills/(\w+)\.py")


def imports(path):
    """Return the roots of the modules that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.partition(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize("drill", DRILLS, ids=lambda path: path.stem)
def test_a_drill_that_imports_from_the_tests_is_told_where_they_are(drill):
    here = {path.stem for path in (ROOT / "tests").iterdir()}
    needs = bool(here & set(imports(drill)))
    told = [
        (bool(found[1]), path.name)
        for path, text in TEXTS.items()
        for found in COMMAND.finditer(text)
        if found[2] == drill.stem
    ]
    wrong = [where for is_told, where in told if is_told != needs]
    assert not wrong
