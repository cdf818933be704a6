"""How pictures look: colours that survive colour blindness and grey print; saving as SVG and PNG.

Colours come from cividis and viridis, whose lightness grows with the value, so their order is kept
in grey. Whatever a colour says is repeated by a marker, a dash or a number.
"""

import contextlib
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from bocb_jax.paper.categories import SHORT

# Used for nothing else, so that the HTML page can replace them with the colours of its theme.
INK = "#1c1c22"
PAPER = "#fefefe"
FAINT = "#8b8b95"  # legible on white and on near-black
FAILED = "#9a9aa0"

# category of an optimizer -> colour, marker, description; b, the most common one, has the middle of
# the scale
CATEGORIES = {
    "a": ("#00224e", "s", SHORT["a"]),
    "b": ("#2a7f86", "o", SHORT["b"]),
    "c": ("#a59c74", "^", SHORT["c"]),
    "d": ("#e9bd1e", "D", SHORT["d"]),
    "": ("#7a4fa3", "X", "other"),
}
# Marks of cells in a table of scores; `MARK_LEGEND` explains them.
MARK_SIGNS = {"best": "★", "top4": "▲", "outlier": "▼", "inlier": "", "missing": ""}
ONE_SEED_SIGN = "°"
MARK_LEGEND = ("★ best", "▲ top 4", "▼ outlier", "° one seed")
# Lines that must be told apart: colour (Okabe and Ito's, by lightness), dash and marker.
LINES: tuple[tuple[str, Any, str], ...] = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", (0, (1, 1)), "D"),
    ("#56b4e9", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#b58900", (0, (3, 1)), "P"),
)

_SETTINGS: Any = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": False,
    "text.color": INK,
    "text.parse_math": False,  # a "$" in a name is a dollar sign
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "figure.facecolor": PAPER,
    "figure.constrained_layout.use": True,
    "savefig.facecolor": PAPER,
    "svg.fonttype": "none",  # keep text as text: searchable, and in the page's font
    "svg.hashsalt": "bocb_jax",  # the same data give the same file
    "hatch.color": "#5c5c66",
    "hatch.linewidth": 0.6,
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """Apply our matplotlib settings inside a `with` block, and restore the user's afterwards."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, without pyplot's windows and global state."""
    with house_style():
        return Figure(figsize=(width, height), layout="constrained")


def label(name: object, longest: int = 28) -> str:
    """Return a name fit to be shown: printable, and cut to `longest` characters."""
    text = "".join(
        char if unicodedata.category(char) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for char in str(name)
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"


def ink_on(red: float, green: float, blue: float) -> str:
    """Return black or white, whichever has more contrast (WCAG) on an RGB colour in [0, 1]."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def colour_steps(name: str, number: int, low: float = 0.0, high: float = 1.0) -> list[str]:
    """Return evenly spaced colours of a colour map between two positions, as "#rrggbb"."""
    colours = colormaps[name](np.linspace(low, high, number))
    return [matplotlib.colors.to_hex(colour) for colour in colours]


def save(picture: Figure, path: Path) -> None:
    """Write a picture in the format that the path's suffix names (.svg, .png, .pdf)."""
    kind = path.suffix.removeprefix(".")
    # Without a date, the same data give the same bytes.
    dates: dict[str, dict[str, Any]] = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with house_style(), warnings.catch_warnings():
        # The font may lack the script of a name; the picture is still worth having.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        picture.savefig(path, format=kind, dpi=150, metadata=dates.get(kind))
    picture.set_layout_engine("none")  # already laid out; saves time for the next format
