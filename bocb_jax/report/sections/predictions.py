"""What the nets of the best runs find in validation images."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.report.document import Picture, Section
from bocb_jax.report.style import label


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on predictions: a picture for each backbone that has one."""
    pictures = [
        Picture(
            f"predictions_{number}",
            f"Predictions of {label(backbone)}",
            "A few validation images as annotated, and with what the best run found in them at "
            "its last evaluation.",
        )
        for number, backbone in enumerate(analysis.table.backbones)
    ]
    shown = tuple(picture for picture in pictures if picture.name in drawn)
    return Section("predictions", "What the nets find", shown)
