"""The drawn data set: what it shows is where its annotations say."""

import numpy as np
import pytest

from bocb_jax.data import shapes
from bocb_jax.data.figures import SHAPES, Figure, Shape, random_shape
from bocb_jax.errors import UserError
from bocb_jax.pose.skeleton import COCO_PERSON

FEW = {"train": 30, "validation": 5, "test": 5}


@pytest.fixture(scope="module")
def detection():
    return shapes.open_shapes("detection", images=FEW)


@pytest.fixture(scope="module")
def pose():
    return shapes.open_shapes("pose", images=FEW)


def test_is_a_pure_function_of_seed_split_and_index(detection):
    again = shapes.open_shapes("detection", images=FEW)["train"]
    train = detection["train"]
    np.testing.assert_array_equal(again.annotations.boxes, train.annotations.boxes)
    np.testing.assert_array_equal(again.read(3), train.read(3))
    # More images change none of the first.
    more = shapes.open_shapes("detection", images={"train": 31})["train"].annotations
    np.testing.assert_array_equal(more.subset(range(30)).boxes, train.annotations.boxes)
    for other in (detection["validation"], shapes.open_shapes("detection", seed=1)["test"]):
        assert (other.read(3) != train.read(3)).any()


def test_images_differ_and_a_subset_shows_its_own(detection):
    train = detection["train"]
    some = shapes.DrawnSplit(train.annotations.subset([7, 2]), "train", 0, shapes.SIDE)
    np.testing.assert_array_equal(some.read(0), train.read(7))
    assert (train.read(7) != train.read(2)).any()


def test_every_category_is_there_and_every_box_is_of_use(detection):
    found = detection["train"].annotations
    assert found.category_names == shapes.CATEGORIES
    assert set(found.labels) == set(range(len(shapes.CATEGORIES)))
    assert found.usable.all()
    assert found.notes == ()
    np.testing.assert_array_equal(found.clipped, found.corners)


def test_boxes_fit_what_is_painted():
    """Without the photograph, the pixels that differ from the ground are those of the boxes."""
    for index in range(12):
        scene = shapes.compose(0, "train", index)
        for thing in scene.things:
            ground = shapes.Scene((), scene.photograph, scene.cut, False, 0.0)  # black
            alone = shapes.Scene((thing,), scene.photograph, scene.cut, False, 0.0)
            rows, columns = np.nonzero((shapes.paint(alone) != shapes.paint(ground)).any(-1))
            painted = [columns.min(), rows.min(), columns.max(), rows.max()]
            np.testing.assert_allclose(painted, thing.box, atol=1.0, err_msg=thing.name)


def test_joints_are_in_their_box_and_on_the_figure(pose):
    found = pose["train"].annotations
    assert found.skeleton is COCO_PERSON
    assert len(found.persons) == len(found.ids) >= 30
    corners = np.tile(found.corners[:, None], (1, 17, 1))
    assert (found.joints >= corners[..., :2] - 0.5).all()
    assert (found.joints <= corners[..., 2:]).all()
    names = list(COCO_PERSON.names)
    for index in range(5):
        for thing in shapes.compose(0, "train", index).things:
            if isinstance(thing, Figure):
                scene = shapes.Scene((thing,), 0, (0, 0, 1, 1), False, 0.0)
                image = shapes.paint(scene)
                for name in ("left_wrist", "right_ankle", "left_knee", "right_shoulder"):
                    x, y = thing.joints[names.index(name)].round().astype(int)
                    assert image[y, x].any(), name


def test_figures_face_the_viewer(pose):
    found = pose["train"].annotations
    left, right = (COCO_PERSON.names.index(f"{side}_shoulder") for side in ("left", "right"))
    assert (found.joints[:, left, 0] > found.joints[:, right, 0]).all()


def test_covered_joints_are_hidden():
    figure = next(t for t in shapes.compose(0, "train", 0).things if isinstance(t, Figure))
    cover = Shape("circle", figure.joints[0], 6.0, np.zeros((0, 2)), (255, 0, 0))
    scene = shapes.Scene((figure, cover), 0, (0, 0, 1, 1), False, 1.0)
    assert scene.visible(0)[0] == 1
    assert scene.visible(0)[9:].tolist() == [2] * 8
    assert (shapes.Scene((cover, figure), 0, (0, 0, 1, 1), False, 1.0).visible(1) == 2).all()


@pytest.mark.parametrize("name", SHAPES)
def test_areas_and_insides_agree(name):
    shape = random_shape(np.random.default_rng(0), name, 10.0)
    axis = (np.arange(400) + 0.5) / 400 * 24 - 12
    points = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    inside = shape.covers(points)
    assert inside.sum() * 0.06**2 == pytest.approx(shape.area, rel=0.01)
    low, high = points[inside].min(0), points[inside].max(0)
    np.testing.assert_allclose(np.concatenate([low, high]), shape.box, atol=0.2)


def test_refuses_other_tasks_and_tiny_images():
    with pytest.raises(UserError, match="'detection' or 'pose', not 'depth'"):
        shapes.open_shapes("depth")
    with pytest.raises(UserError, match="at least 32 pixels a side, not 8"):
        shapes.open_shapes("pose", side=8)
