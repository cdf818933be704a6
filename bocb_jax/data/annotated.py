"""Data sets of images with boxes or joints, by name: `coco:PATH` and `shapes`."""

import dataclasses
from collections.abc import Mapping
from typing import TypeAlias

import numpy as np

from bocb_jax.data.coco import Annotations
from bocb_jax.data.coco_folder import CocoSplit, open_coco
from bocb_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from bocb_jax.data.holdout import held_out_fraction, stratified_split
from bocb_jax.data.shapes import DrawnSplit, open_shapes
from bocb_jax.errors import UserError
from bocb_jax.pose.skeleton import Skeleton

Images: TypeAlias = CocoSplit | DrawnSplit


@dataclasses.dataclass(frozen=True)
class AnnotatedDataset:
    """Images with boxes or joints.

    Attributes:
      name: the name that it was opened by.
      splits: "train", "validation" and "test".
      mean: of each channel, with pixels scaled to 0 ... 1.
      std: likewise.
      notes: sentences on what was found.
    """

    name: str
    splits: Mapping[str, Images]
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    notes: tuple[str, ...] = ()

    @property
    def annotations(self) -> Annotations:
        """Those of the training split."""
        return self.splits["train"].annotations

    @property
    def num_classes(self) -> int:
        """Number of categories."""
        return len(self.annotations.category_ids)

    @property
    def skeleton(self) -> Skeleton:
        """The joints.

        Raises:
          UserError: the data were opened without joints.
        """
        if self.annotations.skeleton is None:
            raise UserError(f"'{self.name}' has no joints.")
        return self.annotations.skeleton

    def describe(self) -> str:
        """Return the numbers of categories and images in a sentence, followed by the notes."""
        counts = ", ".join(f"{len(split):,} {key}" for key, split in self.splits.items())
        kinds = "category" if self.num_classes == 1 else "categories"
        return f"{self.num_classes:,} {kinds}; {counts} images. {' '.join(self.notes)}".strip()


def open_annotated(
    name: str, task: str, *, split_seed: int = 0, held_out: bool = True
) -> AnnotatedDataset:
    """Open a data set of images with boxes or joints.

    Where there are only two of the splits, as in COCO, whose test images have no published boxes,
    the one beside "train" is the test split, and validation images are held out of the training
    split.

    Args:
      name: "coco:PATH", a folder in COCO's format, or "shapes".
      task: "detection" or "pose".
      split_seed: decides which images are held out.
      held_out: if not, the test split validates as well, as in the BOCB paper.

    Raises:
      UserError: there is no such data set, or it cannot be used; the message says why.
    """
    scheme, _, path = name.partition(":")
    splits: dict[str, Images]
    if scheme == "coco":
        splits = dict(open_coco(path, task))
    elif name == "shapes":
        splits = dict(open_shapes(task))
    else:
        raise UserError(
            f"'{name}' is no data set for {task}: give coco:PATH, the path of a folder in COCO's "
            "format, or shapes, which is drawn as it is read."
        )
    test = splits.get("test", splits.get("validation"))
    assert test is not None  # the openers see to it
    validation = test
    train, notes = splits["train"], splits["train"].annotations.notes
    if held_out and len(splits) == 3:
        validation = splits["validation"]
    elif held_out:
        train, validation = _hold_out(train, split_seed)
        notes = (*notes, f"{len(validation):,} training images are held out for validation.")
    found = {"train": train, "validation": validation, "test": test}
    for key, split in found.items():
        of_split = split.annotations
        if not (len(of_split.persons) if task == "pose" else (~of_split.crowd).any()):
            what = "person with a labelled joint" if task == "pose" else "box of a single object"
            raise UserError(f"The {key} split of '{name}' has no {what}.")
    return AnnotatedDataset(name, found, notes=tuple(notes))


def _hold_out(train: Images, seed: int) -> tuple[Images, Images]:
    kinds = np.zeros(len(train), np.int64)
    kept, held = stratified_split(kinds, [held_out_fraction(len(train))], seed)
    return images_of(train, kept), images_of(train, held)


def images_of(split: Images, chosen: np.ndarray) -> Images:
    """Return some images of a split."""
    return dataclasses.replace(split, annotations=split.annotations.subset(chosen))
