"""The paper's tables as data, and what they say about one pair of backbone and optimizer.

Each CSV begins with its source and the known errors of its copies. Standard library only, but for
`table`, which gives a pandas DataFrame.
"""

import csv
import dataclasses
import functools
import importlib.resources
import re
from typing import Any

from bocb_jax.errors import UserError

_FOLDER = importlib.resources.files(__name__)

# Backbones without published values, and whose values stand in. The rule: the published backbone
# with the same recipe and input size; among several, the one with the most similar operator.
NEIGHBORS = {
    "densenet121": "resnet50",
    "repvgg_a1": "vgg13_bn",
    "convnextv2_t": "convnext_t",
    "unireplknet_t": "swin_t",
    "transnext_t": "vit_s",
    "caformer_s12": "convformer_s12",
}


def names() -> list[str]:
    """The tables there are."""
    return sorted(file.name[:-4] for file in _FOLDER.iterdir() if file.name.endswith(".csv"))


@functools.cache
def rows(name: str) -> tuple[dict[str, str], ...]:
    """The rows of a table, as text.

    Raises:
      UserError: there is no such table; the message lists those there are.
    """
    if name not in names():
        raise UserError(f"There is no published table '{name}'. There are: {', '.join(names())}.")
    lines = _FOLDER.joinpath(f"{name}.csv").read_text("utf-8").splitlines()
    return tuple(csv.DictReader(line for line in lines if not line.startswith("#")))


def table(name: str) -> Any:
    """A table as a `pandas.DataFrame`, numbers as numbers; tables of scores by optimizer.

    Raises:
      UserError: there is no such table; the message lists those there are.
    """
    import pandas

    frame = pandas.DataFrame([dict(row) for row in rows(name)])
    for column in frame.columns:
        numbers = pandas.to_numeric(frame[column], errors="coerce")
        if numbers.notna().all():
            frame[column] = numbers
    key = frame.columns[0]
    return frame.set_index(key) if frame[key].is_unique else frame


@dataclasses.dataclass(frozen=True)
class Backbone:
    """A row of the paper's Table A1, in the paper's words where no other is named."""

    model: str  # in this project's names
    category: str  # primary CNN | classical CNN | modern DNN
    stage_design: str
    block_design: str
    operator: str
    residual: str
    recipe: str  # on CIFAR-100, in this project's names
    input_size: int  # pixels on CIFAR-100


# The training settings of Table A1 in this project's names.
_RECIPES = {"PyTorch": "pytorch", "RSB A2": "rsb_a2", "DeiT": "deit", "ConvNeXt": "convnext"}


@functools.cache
def backbone(model: str) -> Backbone | None:
    """Return what the paper says of a backbone, or of its family's for a twin or another size.

    Args:
      model: name of a backbone of this project.

    Returns:
      None where the paper has no backbone of the family.
    """
    family = _family(model)
    found = [row for row in rows("backbones") if _family(row["model"]) == family]
    row = next((row for row in found if row["model"] == model), found[0] if found else None)
    if row is None:
        return None
    return Backbone(
        model=row["model"],
        category=row["category"],
        stage_design=_written(row["stage_wise_design"], "Plain"),
        block_design=_written(row["block_wise_design"]),
        operator=_written(row["operator"]),
        residual=_written(row["residual_branch"]),
        recipe=_RECIPES[row["training_setting"]],
        input_size=int(row["input_size"]),
    )


def _written(cell: str, dash: str = "none") -> str:
    return dash if cell == "-" else cell.replace("Patchfy", "Patchify")


@dataclasses.dataclass(frozen=True)
class Tuned:
    """The paper's tuned values for a pair."""

    learning_rate: float
    weight_decay: float
    backbone: str  # whose values these are, in this project's names
    exact: bool  # whether that is the backbone that was asked for


def tuned(model: str, opt: str) -> Tuned | None:
    """Tuned learning rate and weight decay of a backbone and an optimizer on CIFAR-100.

    A backbone that the paper does not have (a small twin, another size) takes the values of its
    family's; one whose values were not published takes its neighbor's, by `NEIGHBORS`.

    Args:
      model: name of a backbone; an alias or one of your own finds nothing.
      opt: name of an optimizer.

    Returns:
      None where neither the pair nor a neighbor was published.
    """
    backbones = {row["model"]: row["backbone"] for row in rows("backbones")}
    backbones["resnet101"] = "R-101"
    optimizers = {row["opt"]: row["optimizer"] for row in rows("optimizers")}
    base = model
    if base not in backbones:
        family = _family(model)
        base = next((name for name in backbones if _family(name) == family), None)
    base = NEIGHBORS.get(base, base)
    for row in rows("hyperparameters"):
        if row["backbone"] == backbones.get(base) and row["optimizer"] == optimizers.get(opt):
            values = float(row["learning_rate"]), float(row["weight_decay"])
            return Tuned(*values, backbone=base, exact=base == model)
    return None


def _family(model: str) -> str:
    return re.match(r"[a-z]*(v2)?", model.partition("_")[0]).group() or model
