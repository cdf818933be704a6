"""Scores equal pycocotools', where COCO's photographs are at hand and where they are not."""

import gzip
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from bocb_jax.data.coco_folder import open_coco
from bocb_jax.errors import UserError
from bocb_jax.evaluation.coco import BOX_SCORES, JOINT_SCORES, evaluate_boxes, evaluate_joints
from bocb_jax.pose.skeleton import COCO_PERSON

# The unpacked folder coco_mini; its photographs may not be shipped.
COCO_MINI = Path(os.environ.get("BOCB_JAX_COCO_MINI", "/nowhere"))
needs_coco = pytest.mark.skipif(
    not COCO_MINI.is_dir(), reason="BOCB_JAX_COCO_MINI does not name the folder coco_mini"
)
pytest.importorskip("faster_coco_eval")


def golden(name):
    path = COCO_MINI / "goldens" / name
    if name.endswith(".gz"):
        with gzip.open(path) as file:
            return json.load(file)
    return json.loads(path.read_text())


def box_arrays(results):
    return [np.array([each[key] for each in results])
            for key in ("image_id", "category_id", "bbox", "score")]  # fmt: skip


def close(values, expected):
    np.testing.assert_allclose(list(values), expected, rtol=0, atol=1e-6)


@needs_coco
def test_boxes_equal_pycocotools():
    expected = golden("coco_eval.json")
    assert expected["names_bbox"] == list(BOX_SCORES)
    truth = open_coco(COCO_MINI, "detection")["validation"].annotations
    scores = evaluate_boxes(truth.as_json(), *box_arrays(golden("detections_val.json.gz")))
    close(scores.values.values(), expected["bbox"])
    by_category = {str(k): v for k, v in scores.by_category.items() if not math.isnan(v)}
    assert by_category.keys() == expected["bbox_AP_by_category"].keys()
    close(by_category.values(), [expected["bbox_AP_by_category"][k] for k in by_category])

    kept = ~truth.crowd
    perfect = evaluate_boxes(
        truth.as_json(),
        truth.image_ids[truth.image[kept]],
        truth.category_ids[truth.labels[kept]],
        truth.boxes[kept],
        np.ones(kept.sum()),
    )
    close(perfect.values.values(), expected["bbox_perfect"])


@needs_coco
def test_joints_equal_pycocotools():
    expected = golden("coco_eval.json")
    assert expected["names_keypoints"] == list(JOINT_SCORES)
    truth = open_coco(COCO_MINI, "pose")["validation"].annotations
    results = golden("keypoint_results_val.json.gz")
    joints = np.array([each["keypoints"] for each in results]).reshape(len(results), 17, 3)
    images, scores = (np.array([each[key] for each in results]) for key in ("image_id", "score"))
    sigmas = COCO_PERSON.sigmas
    found = evaluate_joints(truth.as_json(), images, joints[..., :2], scores, sigmas)
    close(found.values.values(), expected["keypoints"])

    kept = truth.persons
    perfect = evaluate_joints(
        truth.as_json(),
        truth.image_ids[truth.image[kept]],
        truth.joints[kept],
        np.ones(len(kept)),
        sigmas,
    )
    close(perfect.values.values(), expected["keypoints_perfect"])


TRUTH = {
    "images": [{"id": 7, "file_name": "a.png", "width": 200, "height": 200}],
    "categories": [{"id": 3, "name": "cat"}, {"id": 5, "name": "dog"}],
    "annotations": [
        {"id": 0, "image_id": 7, "category_id": 3, "bbox": [10, 10, 100, 100], "area": 10000.0,
         "iscrowd": 0},
        {"id": 1, "image_id": 7, "category_id": 3, "bbox": [120, 120, 50, 50], "area": 2500.0,
         "iscrowd": 0},
    ],
}  # fmt: skip


def detect(boxes, truth=TRUTH, image=7, category=3):
    count = len(boxes)
    return evaluate_boxes(
        truth,
        np.full(count, image),
        np.full(count, category),
        np.array(boxes, float).reshape(-1, 4),
        np.linspace(0.9, 0.5, count),
    )


def test_what_is_found_counts():
    # One of two boxes, moved by 10 of 100 pixels: an IoU of 90 / 110 = .818, above 7 of the 10
    # thresholds. Half the recalls, 51 of 101, have precision 1.
    scores = detect([[20, 10, 100, 100]])
    assert scores.values["AP50"] == pytest.approx(51 / 101)
    assert scores.values["AP"] == pytest.approx(51 / 101 * 0.7)
    assert scores.values["APl"] == pytest.approx(0.7)
    assert scores.values["APm"] == 0
    assert scores.values["AR100"] == pytest.approx(0.35)
    assert math.isnan(scores.values["APs"])
    assert scores.by_category[3] == scores.values["AP"]
    assert math.isnan(scores.by_category[5])


def test_nothing_found_is_zero():
    assert detect([]).values["AP"] == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"boxes": [[0, 0, 1, math.nan]]}, "boxes of the detections are not all finite"),
        ({"boxes": [[0, 0, 1, 1]], "image": 8}, "in image 8, which the data do not have"),
        ({"boxes": [[0, 0, 1, 1]], "category": 4}, "of category 4, which the data do not have"),
    ],
)
def test_refuses_what_does_not_fit(arguments, says):
    with pytest.raises(UserError, match=says):
        detect(**arguments)


def test_refuses_arrays_of_different_lengths():
    with pytest.raises(UserError, match="There are 2 image_ids, 1 joints, 2 scores"):
        evaluate_joints(TRUTH, np.full(2, 7), np.zeros((1, 17, 2)), np.ones(2), COCO_PERSON.sigmas)
    with pytest.raises(UserError, match="for one category; the data have 2"):
        evaluate_joints(TRUTH, np.full(1, 7), np.zeros((1, 17, 2)), np.ones(1), COCO_PERSON.sigmas)
