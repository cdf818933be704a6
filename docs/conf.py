"""Sphinx configuration: MyST pages, API reference from the docstrings, tables from the registries.

Build with `sphinx-build -W -n docs build/docs`. Nothing is fetched from the network.
"""

import re
import sys
from pathlib import Path

import bocb_jax

sys.path.insert(0, str(Path(__file__).parent))  # for `_tables`
import _tables

project = "bocb_jax"
copyright = "the bocb_jax authors"
version = release = bocb_jax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_generated"]
myst_enable_extensions = ["deflist", "dollarmath"]
myst_heading_anchors = 3
suppress_warnings = ["myst.strikethrough"]

html_theme = "furo"
html_title = f"bocb_jax {version}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

# Docstrings are Google style and write code in single backticks.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
# Types in signatures are named, not linked: most are of other projects, and nothing is fetched.
nitpick_ignore_regex = [(r"py:(class|obj|data|attr|exc)", ".*")]


def _as_text(app, what, name, obj, options, lines):
    """Escape asterisks outside code, which reST would read as emphasis, in a docstring."""
    for i, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...", "*")):
            lines[i] = re.sub(r"`[^`]*`|(\*+)", _escaped, line)


def _escaped(found):
    return re.sub(r"\*", r"\\*", found[0]) if found[1] else found[0]


def setup(app):
    """Write the tables that come from registries and dataclasses before pages are read."""
    _tables.write(Path(__file__).parent / "_generated")
    app.connect("autodoc-process-docstring", _as_text, priority=400)  # before napoleon
