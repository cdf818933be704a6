"""Where detectors with the same net differ: one table a style, which the functions here read.

MMDetection's rules are the default (2.26, `retinanet_r50_fpn_1x_coco.py`); those of torchvision's
two RetinaNets are there to reproduce its figures.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType


@dataclasses.dataclass(frozen=True)
class Rules:
    """Anchors, assignment, losses and post-processing of a one-stage detector.

    Attributes:
      anchor_scale: side of the smallest anchor over the stride of its level.
      scales_per_octave: sizes of anchors between one level and the next.
      ratios: heights of anchors over their widths.
      whole_sides: whether the sizes are cut, and the corners rounded, to whole pixels.
      strides_from_maps: whether anchors are spaced by the whole part of image size over map size,
        not by the stride.
      batch_padding: whether anchors on the padding that a batch adds to an image are trained, as
        negatives.
      positive_iou: overlap with a box from which on an anchor is positive.
      negative_iou: overlap with all boxes below which it is negative; between the two, ignored.
      low_quality: which box an anchor gets that overlaps most with some box, but too little to be
        positive by itself: "box", that box (the last one, if there are several), even if the
        anchor belongs to another one; "anchor", the box with which the anchor overlaps most.
      clamp_below: whether decoding limits how much smaller than its anchor a box is, as it does
        how much larger.
      focal_alpha: weight of positive pairs of anchor and class; negative ones have 1 - alpha.
      focal_gamma: exponent of the focal loss.
      box_loss: "l1", of encoded boxes, or "giou", of decoded ones.
      group: images whose losses share one number of positive anchors; the groups are averaged.
      min_score: pairs of anchor and class must exceed it to be predicted.
      candidates: best pairs of a level that are decoded.
      nms_iou: overlap with a better box of the same class above which a box is dropped.
      kept: most boxes of an image.
    """

    anchor_scale: float = 4.0
    scales_per_octave: int = 3
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    whole_sides: bool = False
    strides_from_maps: bool = False
    batch_padding: bool = False
    positive_iou: float = 0.5
    negative_iou: float = 0.4
    low_quality: str = "box"
    clamp_below: bool = True
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    box_loss: str = "l1"
    group: int = 2
    min_score: float = 0.05
    candidates: int = 1000
    nms_iou: float = 0.5
    kept: int = 100

    @property
    def anchors_per_cell(self) -> int:
        """Number of anchors at one position of a map."""
        return self.scales_per_octave * len(self.ratios)


_TORCHVISION = Rules(
    whole_sides=True,
    strides_from_maps=True,
    batch_padding=True,
    low_quality="anchor",
    clamp_below=False,
    group=1,
    kept=300,
)

STYLES: Mapping[str, Rules] = MappingProxyType(
    {
        "mmdet": Rules(),
        "torchvision": _TORCHVISION,
        "torchvision_v2": dataclasses.replace(_TORCHVISION, box_loss="giou"),
    }
)
