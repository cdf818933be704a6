"""Which weights the columns of the paper's COCO table start from. Standard library only."""

import dataclasses
import functools

from bocb_jax.paper.tables import own_rows


@dataclasses.dataclass(frozen=True)
class Start:
    """Pre-trained weights of one column."""

    backbone: str  # as the paper's other tables name it, such as "R-50"
    recipe: str  # of pre-training on ImageNet-1K, such as "RSB A3"
    pretrained_with: str  # the optimizer of that recipe, in the paper's words
    epochs: int | None  # of pre-training; None where the paper does not say


@functools.cache
def starts(task: str) -> dict[str, Start]:
    """Return the weights of each column of `coco_box` or `coco_pose`, by the column's name there.

    Args:
      task: "detection" or "pose".
    """
    return {
        row["column"].partition("_")[2]: Start(
            row["backbone"],
            row["recipe"],
            row["pretrained_with"],
            int(row["epochs"]) if row["epochs"] else None,
        )
        for row in own_rows("pretraining")
        if row["task"] == task
    }
