"""COCO's average precision and recall of boxes and of poses, by faster-coco-eval.

Its numbers are those of pycocotools. Both read COCO's format as Python objects; `truth` below is
such an object, of the lists "images", "annotations" and "categories".
"""

import contextlib
import dataclasses
import io
import logging
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bocb_jax.errors import UserError

BOX_SCORES = (
    "AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl",
)  # fmt: skip
JOINT_SCORES = ("AP", "AP50", "AP75", "APm", "APl", "AR", "AR50", "AR75", "ARm", "ARl")

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Scores:
    """What an evaluation found.

    Attributes:
      values: by name, as in `BOX_SCORES` or `JOINT_SCORES`, in 0 ... 1; NaN where there is nothing
        of that size to be found.
      by_category: AP of each category's id; NaN likewise.
    """

    values: dict[str, float]
    by_category: dict[int, float]


def evaluate_boxes(
    truth: Mapping[str, Any],
    image_ids: np.ndarray,
    category_ids: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
) -> Scores:
    """Return the twelve scores of detections. The best 100 of each image and category count.

    Args:
      truth: data in COCO's format.
      image_ids: (D,) ids of the images, one for each detection.
      category_ids: (D,) ids of the categories.
      boxes: (D, 4): left, top, width, height in pixels.
      scores: (D,), higher for what is more certain.

    Raises:
      UserError: faster-coco-eval is not installed, or the arrays do not fit the truth.
    """
    _check(truth, {"image_ids": image_ids, "category_ids": category_ids, "boxes": boxes,
                   "scores": scores}, image_ids)  # fmt: skip
    known = {category["id"] for category in truth["categories"]}
    if unknown := set(np.unique(category_ids).tolist()) - known:
        raise UserError(f"A detection is of category {min(unknown)}, which the data do not have.")
    found = [
        {"image_id": int(image), "category_id": int(category), "bbox": box, "score": float(score)}
        for image, category, box, score in zip(
            image_ids, category_ids, np.asarray(boxes, float).tolist(), scores, strict=True
        )
    ]
    return _evaluate(truth, found, "bbox", BOX_SCORES, None)


def evaluate_joints(
    truth: Mapping[str, Any],
    image_ids: np.ndarray,
    joints: np.ndarray,
    scores: np.ndarray,
    sigmas: Sequence[float],
) -> Scores:
    """Return the ten scores of poses. The best 20 of each image count.

    Args:
      truth: data in COCO's format, of a single category, which has keypoints.
      image_ids: (D,) ids of the images, one for each pose.
      joints: (D, K, 2), x and y in pixels.
      scores: (D,) of the poses.
      sigmas: of the K joints.

    Raises:
      UserError: faster-coco-eval is not installed, or the arrays do not fit the truth.
    """
    _check(truth, {"image_ids": image_ids, "joints": joints, "scores": scores}, image_ids)
    if len(truth["categories"]) != 1:
        raise UserError(
            f"Poses are evaluated for one category; the data have {len(truth['categories'])}."
        )
    [category] = truth["categories"]
    # The third number of each joint plays no part in a result.
    triples = np.concatenate([joints, np.ones((*np.shape(joints)[:2], 1))], -1)
    found = [
        {
            "image_id": int(image),
            "category_id": category["id"],
            "keypoints": triple,
            "score": float(score),
        }
        for image, triple, score in zip(
            image_ids, triples.reshape(len(triples), -1).tolist(), scores, strict=True
        )
    ]
    return _evaluate(truth, found, "keypoints", JOINT_SCORES, sigmas)


def _evaluate(
    truth: Mapping[str, Any],
    found: list[dict[str, Any]],
    kind: str,
    names: Sequence[str],
    sigmas: Sequence[float] | None,
) -> Scores:
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise UserError(
            "COCO's scores are computed by faster-coco-eval; install it (pip install "
            "'bocb-jax[transfer]')."
        ) from error
    # An annotation of id 0 would count as one that nothing matches.
    annotations = [{**each, "id": i + 1} for i, each in enumerate(truth["annotations"])]
    reference = COCO({**truth, "annotations": annotations}, print_function=_log.debug)
    results = reference.loadRes(found)
    options: dict[str, Any] = {} if sigmas is None else {"kpt_oks_sigmas": np.asarray(sigmas)}
    evaluation = COCOeval_faster(reference, results, kind, print_function=_log.debug, **options)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    # (thresholds, recalls, categories, areas, numbers of detections)
    precision = np.asarray(evaluation.eval["precision"])[:, :, :, 0, -1]
    by_category = {
        int(number): _mean(precision[:, :, place])
        for place, number in enumerate(evaluation.params.catIds)
    }
    values = [float(value) for value in evaluation.stats[: len(names)]]
    return Scores(
        {n: math.nan if v < 0 else v for n, v in zip(names, values, strict=True)}, by_category
    )


def _mean(precision: np.ndarray) -> float:
    """Return the mean of what is not -1, COCO's sign for nothing to be found."""
    return float(precision.mean()) if precision.size and precision.min() >= 0 else math.nan


def _check(
    truth: Mapping[str, Any], arrays: Mapping[str, np.ndarray], image_ids: np.ndarray
) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{length} {name}" for name, length in lengths.items())
        raise UserError(f"There are {listed}; there must be one of each for every detection.")
    for name, array in arrays.items():
        if not np.isfinite(np.asarray(array, float)).all():
            raise UserError(f"The {name} of the detections are not all finite numbers.")
    unknown = set(np.unique(image_ids).tolist()) - {image["id"] for image in truth["images"]}
    if unknown:
        raise UserError(f"A detection is in image {min(unknown)}, which the data do not have.")
