"""What is known of each backbone of the paper, and which of them a name belongs to.

Two tables: `published/backbones.csv` is the paper's Table A1 as printed, `taxonomy.csv` holds this
project's reading of it. Standard library only.
"""

import dataclasses
import functools
import re

from bocb_jax.paper.tables import own_rows, rows

# ResNet-101 has tuned values and no column of scores; what Table A1 says of ResNet-50 holds for it.
_RESNET101 = {"model": "resnet101", "backbone": "R-101"}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A backbone of the paper: what Table A1 says of it, and the levels of its features."""

    model: str  # this project's name, such as "resnet50"
    column: str  # the name in the paper's tables, such as "R-50"
    category: str  # "primary CNN", "classical CNN" or "modern DNN"
    # As printed, such as "Patchify & Hierarchical", "Bottleneck", "Local Attention", "PreNorm".
    stage_design: str
    block_design: str
    operator: str
    residual_branch: str
    training_setting: str  # of the runs on CIFAR-100, such as "RSB A2"
    input_size: int  # side of the images on CIFAR-100, in pixels
    # Features, which have few levels each.
    family: str  # backbones of one family share a design and are not independent
    norm: str  # of the blocks: "batch", "layer" or "none"
    stages: str  # "plain", "hierarchical" or "isotropic"
    stem: str  # "convolution" or "patches"
    mixer: str  # what mixes positions, such as "attention"
    residual: str  # "none", "addition", "concatenation", "prenorm", ...

    @property
    def recipe(self) -> str:
        """Name of the training setting in `bocb_jax.recipes`."""
        return self.training_setting.lower().replace(" ", "_")


@functools.cache
def backbones() -> dict[str, Backbone]:
    """Return the backbones of the paper by this project's names, in the paper's order.

    They are the 20 columns of the CIFAR-100 table, and last resnet101.
    """
    printed = {row["model"]: row for row in rows("backbones")}
    printed["resnet101"] = printed["resnet50"] | _RESNET101
    found = {}
    for reading in own_rows("taxonomy"):
        row = printed[reading["model"]]
        found[row["model"]] = Backbone(
            model=row["model"],
            column=row["backbone"],
            category=row["category"],
            stage_design=_written(row["stage_wise_design"], "Plain"),
            block_design=row["block_wise_design"],
            operator=row["operator"],
            residual_branch=_written(row["residual_branch"], "none"),
            training_setting=row["training_setting"],
            input_size=int(row["input_size"]),
            family=reading["family"],
            norm=reading["norm"],
            stages=reading["stages"],
            stem=reading["stem"],
            mixer=reading["mixer"],
            residual=reading["residual"],
        )
    return found


def _written(cell: str, dash: str) -> str:
    return dash if cell == "-" else cell.replace("Patchfy", "Patchify")


@functools.cache
def _by_column() -> dict[str, str]:
    return {_folded(backbone.column): name for name, backbone in backbones().items()}


@functools.cache
def _by_compact_column() -> dict[str, str]:
    return {_compact(backbone.column): name for name, backbone in backbones().items()}


def _compact(name: str) -> str:
    return name.lower().replace("-", "")


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")


def to_model(name: str) -> str:
    """Return this project's name of a backbone that the paper names, and any other name as it is.

    >>> to_model("R-50"), to_model("deit_s"), to_model("swin_b")
    ('resnet50', 'vit_s', 'swin_b')
    """
    return name if name in backbones() else _by_column().get(_folded(name), name)


def find(name: str) -> Backbone | None:
    """Return what is known of a backbone, from its relative in the paper where it is not there.

    A small twin or another size of a backbone of the paper has its features: "vit_mini" those of
    vit_s. Of several relatives those of the same version come first, then the paper's order counts.
    Other spellings are understood, such as "ResNet-18", and columns of the paper with a setting
    behind the name, such as "R50_SGD".

    Args:
      name: of a backbone.

    Returns:
      None where the paper has no backbone of that family.
    """
    model = to_model(name)
    known = backbones()
    found = known.get(model)
    if found is None and name[:1].isupper():
        model = name.lower()
        found = known.get(_by_compact_column().get(_compact(name.partition("_")[0]), ""))
    if found is None:
        series = series_of(model)
        relatives = [base for base in known if series_of(base) == series]
        relatives.sort(key=lambda base: _word(base) != _word(model))
        found = known[relatives[0]] if relatives else None
    if found is not None and re.fullmatch(r"vgg\d+", name):
        return dataclasses.replace(found, norm="none")  # with BatchNorm it is called vgg13_bn
    return found


def series_of(model: str) -> str | None:
    """Return the first word of a backbone's name, without a version: what its relatives share.

    None where the name does not begin with a small letter, as all names here do. A prefix such as
    "mypackage:" does not count.

    >>> series_of("convnextv2_t"), series_of("resnet18"), series_of("mypackage:deit_s")
    ('convnext', 'resnet', 'vit')
    """
    word = _word(model)
    if word is None:
        return None
    word = word.removesuffix("v") or word
    return "vit" if word == "deit" else word


def _word(model: str) -> str | None:
    found = re.match(r"[a-z]+", model.rpartition(":")[2])
    return found.group() if found else None
