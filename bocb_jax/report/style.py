"""How the pictures look: colours for every eye and for grey print, and saving as SVG and PNG.

Colours are those of cividis and viridis, whose lightness grows with the value, so a picture keeps
its order in grey; whatever a colour says is said once more by a marker, a dash or a number.
"""

import contextlib
import unicodedata
import warnings
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

# Ink and paper are single colours of their own, so that a page can exchange them for its own.
INK = "#1c1c22"
PAPER = "#fefefe"
FAINT = "#8b8b95"  # legible on white and on near-black
FAILED = "#9a9aa0"

# category of an optimizer -> colour and marker; b, the most common, is the middle of the scale
CATEGORIES = {
    "a": ("#00224e", "s", "fixed rate + momentum"),
    "b": ("#2a7f86", "o", "adaptive rate + momentum"),
    "c": ("#a59c74", "^", "estimated rate + momentum"),
    "d": ("#e9bd1e", "D", "adaptive rate, no momentum"),
    "": ("#7a4fa3", "X", "other"),
}
# Lines that must be told apart: colour (Okabe and Ito's, by lightness), dash and marker.
LINES = (
    ("#0072b2", "-", "o"),
    ("#d55e00", "--", "s"),
    ("#009e73", "-.", "^"),
    ("#cc79a7", (0, (1, 1)), "D"),
    ("#56b4e9", (0, (5, 1, 1, 1, 1, 1)), "v"),
    ("#b58900", (0, (3, 1)), "P"),
)

_SETTINGS = {
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
    "svg.fonttype": "none",  # text stays text: it can be searched, and takes the page's font
    "svg.hashsalt": "bocb_jax",  # the same data give the same file
    "hatch.color": "#5c5c66",
    "hatch.linewidth": 0.6,
}


@contextlib.contextmanager
def house_style() -> Iterator[None]:
    """The settings of matplotlib for our pictures; the user's own are back afterwards."""
    with matplotlib.rc_context(_SETTINGS):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty picture; sizes in inches. Made without pyplot: no window, no global state."""
    with house_style():
        return Figure(figsize=(width, height), layout="constrained")


def label(name: object, longest: int = 28) -> str:
    """A name as a picture or a table may show it: printable, and not longer than fits."""
    text = "".join(
        sign if unicodedata.category(sign) not in ("Cc", "Cs") else "\N{REPLACEMENT CHARACTER}"
        for sign in str(name)
    )
    return text if len(text) <= longest else text[: longest - 1] + "…"


def ink_on(red: float, green: float, blue: float) -> str:
    """Black or white, whichever has the higher contrast (WCAG) on a colour of parts in [0, 1]."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (red, green, blue)
    ]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "#000000" if (luminance + 0.05) ** 2 > 1.05 * 0.05 else "#ffffff"


def colour_steps(name: str, number: int, low: float = 0.0, high: float = 1.0) -> list[str]:
    """Evenly spaced colours of a colour map, as "#rrggbb"."""
    colours = colormaps[name](np.linspace(low, high, number))
    return [matplotlib.colors.to_hex(colour) for colour in colours]


def save(picture: Figure, path: Path) -> None:
    """Writes a picture as the kind that the path's ending says (.svg, .png, .pdf)."""
    kind = path.suffix.removeprefix(".")
    # Without a date, the same data give the same bytes.
    metadata = {"Date": None} if kind in ("svg", "pdf") else None
    if kind == "pdf":
        metadata = {"CreationDate": None}
    with house_style(), warnings.catch_warnings():
        # A name in a script that the font lacks is no reason to have no picture.
        warnings.filterwarnings("ignore", "Glyph .* missing from")
        picture.savefig(path, format=kind, dpi=150, metadata=metadata)
    picture.set_layout_engine("none")  # laid out once: the next kind need not do it again
