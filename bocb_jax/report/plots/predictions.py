"""What nets find in validation images, beside the truth, as their runs drew it."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.pictures import kept
from bocb_jax.report.style import figure
from bocb_jax.storage.files import is_plain_name

MOST = 12  # backbones; a page holds their pixels
_MAX_BYTES, _MAX_SIDE = 2**24, 4096  # of a file, and pixels
_INCHES = 7.0


def read(table: ScoreTable, workdir: str | Path) -> dict[str, np.ndarray]:
    """Return the last picture of the best run of each backbone, (H, W, 3) uint8, by backbone.

    Backbones without a picture that can be read are left out, as all of classification are.

    Args:
      table: whose `run` column names run directories in `workdir`.
      workdir: the folder that holds them.
    """
    found = {}
    if "run" not in table.runs:
        return {}
    for backbone in table.backbones[:MOST]:
        runs = table.runs[table.runs["backbone"] == backbone].dropna(subset=["score"])
        if runs.empty:
            continue
        name = str(runs.loc[(table.sign * runs["score"]).idxmax(), "run"])
        pixels = _last(Path(workdir) / name / "pictures") if is_plain_name(name) else None
        if pixels is not None:
            found[backbone] = pixels
    return found


def _last(folder: Path) -> np.ndarray | None:
    """Return the picture of the last step; None if there is none, or it cannot be read."""
    try:
        path = kept(folder)[-1]
        if not path.is_file() or path.stat().st_size > _MAX_BYTES:
            return None
        with Image.open(path, formats=["PNG"]) as image:
            if max(image.size) > _MAX_SIDE:
                return None
            return np.asarray(image.convert("RGB"))
    except Exception:  # there is none, or one of the many kinds of Pillow's for a damaged file
        return None


def draw(pixels: np.ndarray) -> Figure:
    """Draw a picture of a run.

    Args:
      pixels: (H, W, 3) uint8.
    """
    height, width = pixels.shape[:2]
    picture = figure(_INCHES, _INCHES * height / width)
    axes = picture.subplots()
    axes.imshow(pixels, interpolation="none", aspect="auto")
    axes.set_axis_off()
    return picture
