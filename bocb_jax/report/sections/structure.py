"""Which backbones prefer the same optimizers, and whether their properties predict it."""

from collections.abc import Collection

from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.structure import Clusters
from bocb_jax.report.document import Block, Picture, Section, Table, Text, only_drawn, table_from
from bocb_jax.report.style import label


def build(analysis: Analysis, drawn: Collection[str]) -> Section:
    """Return the section on the structure of the coupling."""
    text = (
        "Backbones as lines from the origin, optimizers as markers; a backbone gains with the "
        "optimizers in its direction. Names that would cover others are left out."
    )
    picture = Picture("biplot", "Biplot of the coupling", text)
    blocks: list[Block] = [*only_drawn(drawn, picture)]
    if analysis.clusters is not None:
        blocks.append(_clusters(analysis.clusters))
    blocks.append(_features(analysis))
    return Section("structure", "Which backbones prefer the same", tuple(blocks))


def _clusters(clusters: Clusters) -> Text:
    if clusters.number == 1:
        return Text(("The gap statistic finds no groups of backbones with their own preferences.",))
    groups: dict[int, list[str]] = {}
    for name in clusters.order:
        groups.setdefault(int(clusters.labels[name]), []).append(label(name))
    lines = (f"Group {n}: {', '.join(names)}." for n, names in sorted(groups.items()))
    return Text(tuple(lines), listed=True)


def _features(analysis: Analysis) -> Table:
    columns = (
        ("feature", "feature", "text"), ("kind", "kind", "text"), ("levels", "levels", "text"),
        ("n", "n backbones", "int"), ("families", "families", "int"),
        ("skill", "skill (ranks)", "number"), ("p_holm", "p (Holm)", "p"),
        ("sign_skill", "skill (signs)", "number"), ("sign_p_holm", "p (Holm)", "p"),
        ("helps", "helps", "text"),
    )  # fmt: skip
    caption = (
        "Does a property of a backbone predict which optimizers it prefers, on families of "
        "backbones that were left out?"
    )
    frame = analysis.features
    if frame is not None and "helps" in frame:
        frame = frame.assign(helps=["yes" if helps else "no" for helps in frame["helps"]])
    return table_from(frame, "Features", columns, caption, index="feature")
