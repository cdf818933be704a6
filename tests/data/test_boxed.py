"""Images with boxes in a few padded shapes, and batches of one shape that resume."""

import json

import numpy as np
import pytest
from helpers.coco_files import annotation

from bocb_jax.data import shapes
from bocb_jax.data.boxed import BoxedImages, Resize, padded_shapes
from bocb_jax.data.coco_json import annotations_from_json
from bocb_jax.data.grouped import GroupedEvaluationPlan, GroupedTrainPlan
from bocb_jax.data.pipeline import HostBatches
from bocb_jax.errors import UserError

SIZES = [(64, 48), (48, 64), (64, 64), (60, 20), (64, 48), (30, 90), (64, 40)]
SMALL = Resize(long=100, short=(64, 64), flip=0.5)


class Squares:
    """Images of several sizes, black but for one white box each."""

    def __init__(self, sizes=SIZES):
        self.annotations = annotations_from_json(
            {
                "images": [
                    {"id": i + 1, "file_name": f"{i}.png", "width": w, "height": h}
                    for i, (w, h) in enumerate(sizes)
                ],
                "annotations": [
                    annotation(i + 1, i + 1, bbox=[8, 4, 12, 10]) for i in range(len(sizes))
                ],
                "categories": [{"id": 1, "name": "box"}],
            },
            "squares",
        )

    def read(self, index):
        width, height = self.annotations.sizes[index]
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[4:14, 8:20] = 255
        return pixels


def equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


def test_sizes_are_mmdetections():
    resize = Resize()
    assert resize.size(640, 480, 800) == (800, 1067)
    assert resize.size(480, 640, 800) == (1067, 800)
    assert resize.size(640, 360, 800) == (750, 1333)  # the longer side decides
    assert padded_shapes(resize) == ((800, 1344), (1344, 800))
    assert padded_shapes(resize, 4) == ((800, 1088), (1088, 800), (800, 1344), (1344, 800))
    assert padded_shapes(resize, 1) == ((1344, 1344),)
    with pytest.raises(UserError, match="1 or an even number of padded shapes, not 3"):
        padded_shapes(resize, 3)


@pytest.mark.parametrize("index", range(len(SIZES)))
@pytest.mark.parametrize("mirrored", [False, True])
def test_boxes_move_with_the_pixels(index, mirrored):
    resize = Resize(100, (64, 64), flip=float(mirrored))
    split = BoxedImages(Squares(), resize, padded_shapes(resize), training=True, capacity=3)
    example = split.draw(index, (1, 2, 3))
    height, width = example["size"]
    assert not example["image"][height:].any()
    assert not example["image"][:, width:].any()
    white = example["image"][..., 0] > 127
    rows, columns = np.flatnonzero(white.any(1)), np.flatnonzero(white.any(0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(example["boxes"][0], found, atol=1.0)
    assert example["label"].tolist() == [0, -1, -1]
    assert not example["boxes"][1:].any()
    file_width, file_height = SIZES[index]
    np.testing.assert_allclose(example["scale"] * [file_height, file_width], [height, width])


def test_sizes_are_drawn_from_the_key():
    resize = Resize(200, (40, 64), flip=0.5)
    split = BoxedImages(Squares(), resize, padded_shapes(resize), training=True)
    drawn = [split.draw(0, (0, step, 0)) for step in range(40)]
    short = {int(each["size"].min()) for each in drawn}
    assert min(short) < 46
    assert max(short) > 58
    assert all(40 <= each <= 64 for each in short)
    equal(split.draw(0, (0, 7, 0)), drawn[7])
    assert split[0]["size"].min() == 64


def test_batches_have_one_shape_and_resume():
    split = BoxedImages(Squares(), SMALL, padded_shapes(SMALL), training=True)
    assert set(split.groups) == {0, 1}
    rows = np.arange(2)

    def batches():
        return HostBatches(split, split.train_plan(2, 3), rows, None, 2, 0)

    with batches() as first:
        seen = [next(first) for _ in range(5)]
        state = json.loads(json.dumps(first.get_state()))
        expected = [next(first) for _ in range(4)]
    assert {batch["image"].shape for batch in seen + expected} == {
        (2, 64, 128, 3),
        (2, 128, 64, 3),
    }
    with batches() as again:
        again.set_state(state)
        for batch in expected:
            equal(next(again), batch)
    other = BoxedImages(Squares(SIZES[1:] + SIZES[:1]), SMALL, padded_shapes(SMALL))
    with pytest.raises(UserError, match="The saved data position was made with groups"):
        HostBatches(other, other.train_plan(2, 3), rows, None, 2, 0).set_state(state)


def test_an_epoch_shows_every_image_in_batches_of_one_group():
    groups = np.random.default_rng(0).integers(0, 3, 50)
    plan = GroupedTrainPlan(groups, 4, seed=1)
    epochs = [plan.epoch(number)[0] for number in range(3)]
    for order in epochs:
        assert len(order) == 4 * plan.steps
        assert set(order) == set(range(50))
        assert (groups[order].reshape(-1, 4) == groups[order][::4, None]).all()
        assert len(order) - 50 < 3 * 4
    assert (epochs[0] != epochs[1]).any()
    # Groups are mixed, not one after the other.
    assert len(set(groups[epochs[0]][::4][:6])) > 1
    np.testing.assert_array_equal(GroupedTrainPlan(groups, 4, 1).epoch(2)[0], epochs[2])


def test_a_group_smaller_than_a_batch_is_repeated():
    order, _ = GroupedTrainPlan([0, 0, 1], 5, 0).epoch(0)
    assert sorted(order.tolist()) in ([0] * 3 + [1] * 2 + [2] * 5, [0] * 2 + [1] * 3 + [2] * 5)


def test_evaluation_shows_every_image_once():
    split = BoxedImages(Squares(), SMALL, padded_shapes(SMALL))
    plan = split.evaluation_plan(4)
    found = list(HostBatches(split, plan, np.arange(4), None, 2, 0))
    kept = np.concatenate([batch["index"][batch["weight"] > 0] for batch in found])
    assert sorted(kept.tolist()) == list(range(len(SIZES)))
    assert len(found) == len(plan) == plan.steps
    assert GroupedEvaluationPlan(np.zeros(4, int), 4).epoch(0)[1].tolist() == [1] * 4


def test_refuses_what_does_not_fit():
    with pytest.raises(UserError, match=r"The image '0.png' has 64 x 85 .* than any of the shapes"):
        BoxedImages(Squares(), SMALL, [(64, 64)])
    split = BoxedImages(Squares(), SMALL, padded_shapes(SMALL))
    with pytest.raises(UserError, match="A batch would mix the padded shapes"):
        split.gather(np.array([0, 1]))
    with pytest.raises(UserError, match="There is no image to train on"):
        GroupedTrainPlan([], 4, 0)


def test_reads_the_drawn_images():
    drawn = shapes.open_shapes("detection", images={"train": 3})["train"]
    resize = Resize(128, (128, 128))
    split = BoxedImages(drawn, resize, padded_shapes(resize, 1), capacity=8)
    batch = split.gather(np.arange(3))
    assert batch["image"].shape == (3, 128, 128, 3)
    np.testing.assert_array_equal(batch["image"][1], drawn.read(1))
    first = drawn.annotations.corners[drawn.annotations.image == 1]
    np.testing.assert_allclose(batch["boxes"][1][: len(first)], first, rtol=1e-6)
