"""Crops of persons go through the same batches as any images, and resume at a saved position."""

import json
import re

import numpy as np
import pytest
from helpers.coco_files import good

from bocb_jax.data import pipeline, shapes
from bocb_jax.data.coco_json import annotations_from_json
from bocb_jax.data.detections import read_detections
from bocb_jax.data.persons import PersonCrops
from bocb_jax.errors import UserError
from bocb_jax.pose.augmentation import AUGMENTATIONS
from bocb_jax.pose.skeleton import COCO_PERSON

SIZE = (48, 64)


@pytest.fixture(scope="module")
def images():
    return shapes.open_shapes("pose", side=96, images={"train": 12})["train"]


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_a_batch(images):
    split = PersonCrops(images, SIZE)
    batch = split.gather(np.array([3, 0]))
    assert batch["image"].shape == (2, 64, 48, 3)
    assert batch["joints"].shape == (2, 17, 2)
    assert batch["visible"].dtype == np.int8
    assert batch["index"].tolist() == [3, 0]
    # The padded box holds all joints of these figures.
    assert (batch["joints"] > 0).all()
    assert (batch["joints"] < np.array(SIZE)).all()


class Marked:
    """One image with a pixel of its own color at every joint of its one person."""

    def __init__(self):
        joints = np.random.default_rng(1).integers(12, 180, (17, 2))
        data = {
            "images": [{"id": 1, "file_name": "a", "width": 200, "height": 190}],
            "categories": [{"id": 1, "name": "person", "keypoints": list(COCO_PERSON.names)}],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 180, 170],
                 "keypoints": np.column_stack([joints, np.full(17, 2)]).ravel().tolist()}
            ],
        }  # fmt: skip
        self.annotations = annotations_from_json(data, "marked", joints=True)
        self.pixels = np.zeros((190, 200, 3), np.uint8)
        for number, (x, y) in enumerate(joints):
            self.pixels[y - 1 : y + 2, x - 1 : x + 2] = 0, 60 + 10 * number, 255

    def read(self, index):
        return self.pixels


@pytest.mark.parametrize("seed", range(6))
def test_joints_move_with_the_pixels(seed):
    """Also where a crop is mirrored, rotated, shifted and resized."""
    split = PersonCrops(Marked(), (192, 256), augmentation=AUGMENTATIONS["1.3"])
    example = split.draw(0, (seed,))
    names, found = COCO_PERSON.names, 0
    for number, (x, y) in enumerate(example["joints"]):
        if not (4 <= x < 188 and 4 <= y < 252):
            continue
        patch = example["image"][round(y) - 3 : round(y) + 4, round(x) - 3 : round(x) + 4]
        marked = patch.reshape(-1, 3).astype(int)
        marked = marked[marked[:, 2] > 250]
        if not len(marked):  # shrunk to less than a pixel
            continue
        found += 1
        # A mirrored image shows the mark of the other side's joint at this joint.
        mirrored = COCO_PERSON.mirrored[number]
        expected = {60 + 10 * number, 60 + 10 * int(mirrored)}
        assert any(np.abs(marked[:, 1] - each).min() <= 3 for each in expected), names[number]
    assert found >= 3


def test_what_is_random_depends_on_the_key(images):
    split = PersonCrops(images, SIZE, augmentation=AUGMENTATIONS["1.3"])
    equal(split.draw(2, (1, 2, 3)), split.draw(2, (1, 2, 3)))
    assert (split.draw(2, (1, 2, 3))["joints"] != split.draw(2, (1, 2, 4))["joints"]).any()
    equal(split.draw(2, ()), PersonCrops(images, SIZE)[2])


def test_batches_resume_at_a_saved_position(images):
    split = PersonCrops(images, SIZE, augmentation=AUGMENTATIONS["1.3"])
    with pipeline.train_batches(split, batch_size=4, seed=5) as batches:
        for _ in range(3):
            next(batches)
        state = json.loads(json.dumps(batches.get_state()))
        expected = [next(batches) for _ in range(3)]
    with pipeline.train_batches(split, batch_size=4, seed=5) as batches:
        batches.set_state(state)
        for batch in expected:
            equal(next(batches), batch)
    # Two processes that read half a batch each read the same persons in the same crops.
    halves = [
        pipeline.train_batches(
            split, batch_size=4, seed=5, start_step=3, process_index=i, process_count=2
        )
        for i in range(2)
    ]
    parts = [next(half) for half in halves]
    equal({k: np.concatenate([part[k] for part in parts]) for k in parts[0]}, expected[0])
    for half in halves:
        half.close()


def test_evaluation_shows_every_person_once(images):
    split = PersonCrops(images, SIZE)
    with pipeline.evaluation_batches(split, batch_size=5) as batches:
        found = list(batches)
    kept = np.concatenate([batch["index"][batch["weight"] > 0] for batch in found])
    assert kept.tolist() == list(range(len(split)))
    assert all(batch["image"].shape == (5, 64, 48, 3) for batch in found)


def detection(**fields):
    return {"image_id": 1, "category_id": 1, "bbox": [4, 6, 20, 30], "score": 0.5} | fields


def write(folder, entries):
    path = folder / "boxes.json"
    path.write_text(entries if isinstance(entries, str) else json.dumps(entries))
    return path


def test_boxes_of_a_detector(images, tmp_path):
    entries = [detection(), detection(image_id=99), detection(category_id=18),
               detection(bbox=[1, 1, 0, 5]), detection(image_id=3, score=0.25)]  # fmt: skip
    found = read_detections(write(tmp_path, entries), images.annotations)
    assert found.image.tolist() == [0, 2]
    assert found.scores.tolist() == [0.5, 0.25]
    split = PersonCrops(images, SIZE, detections=found)
    assert len(split) == 2
    np.testing.assert_allclose(split.center[0], [14, 21])
    np.testing.assert_allclose(split.size[0], [37.5 * 0.75, 37.5])
    assert not split[1]["visible"].any()


BAD = {
    "no-list": ({"a": 1}, "are no list of objects"),
    "no-objects": ([1], "are no list of objects"),
    "no-json": ("[", "is no JSON"),
    "id-text": ([detection(image_id="1")], r"detection 0 \(from 0\) .* it is text"),
    "no-box": ([detection(bbox=None)], "has the bbox null and the score 0.5"),
    "no-score": ([detection(score=None)], "and the score null"),
    "none": ([detection(category_id=18)], "None of the 1 detections .* is of category 1"),
    "empty": ([], "None of the 0 detections"),
}


@pytest.mark.parametrize("name", BAD)
def test_refuses_boxes(name, images, tmp_path):
    entries, says = BAD[name]
    with pytest.raises(UserError, match=says):
        read_detections(write(tmp_path, entries), images.annotations)


def test_refuses_what_has_no_joints(images):
    class Boxes:
        annotations = annotations_from_json(good(), "boxes.json")

    with pytest.raises(UserError, match=re.escape("'boxes.json' was read without joints")):
        PersonCrops(Boxes())
