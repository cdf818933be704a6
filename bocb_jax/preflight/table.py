"""The table of several backbones' steps, as Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from bocb_jax.roofline.chips import GIB

_HEADINGS = (
    "backbone", "GiB a chip", "TFLOP", "GB of memory", "least ms", "bound by", "images/s",
    "hours", "chip-hours", "MiB sent", "of needed", "setting, and what else is sent",
)  # fmt: skip


_LEAST_SHOWN = 2**17  # bytes


def markdown(title: str, rows: Mapping[str, dict[str, Any]]) -> str:
    """Return a table.

    Args:
      title: a paragraph above it.
      rows: of `bocb_jax.preflight.many.row_of`, by backbone.
    """
    lines = [title, "", *heading(_HEADINGS)]
    for name, row in rows.items():
        if "memory" not in row:
            lines.append(line([name, *[""] * (len(_HEADINGS) - 2), row["verdict"]]))
            continue
        others = ", ".join(
            f"{kind} {size / 2**20:.1f}"
            for kind, size in row["sent"].items()
            if size > _LEAST_SHOWN
        )
        told = "" if row["verdict"] == "fits" else f"{row['verdict']} "
        lines.append(
            line(
                [
                    name,
                    f"{row['memory'] / GIB:.2f}",
                    f"{row['flops'] / 1e12:.2f}",
                    f"{row['traffic'] / 1e9:.1f}",
                    f"{1e3 * row['least']:.1f}",
                    row["bound"],
                    f"{row['images_per_second']:,.0f}",
                    f"{row['hours']:.2f}",
                    f"{row['chip_hours']:,.0f}",
                    f"{row['received'] / 2**20:.0f}",
                    f"{row['ratio']:.2f}",
                    f"{told}{others}",
                ]
            )
        )
    return "\n".join(lines) + "\n"


def heading(names: tuple[str, ...]) -> list[str]:
    """Return the first two lines of a table."""
    return [line(names), "|" + "---|" * len(names)]


def line(cells: Sequence[str]) -> str:
    """Return a line of a table."""
    return "| " + " | ".join(cells) + " |"
