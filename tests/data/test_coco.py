"""What a file in COCO's format says, and how one that cannot be right is refused."""

import json
import os
import re
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from helpers import coco_files
from helpers.coco_files import BAD_JSON, annotation, changed, good, image_bytes, of_first, write
from PIL import Image, ImageOps

from bocb_jax.data.coco_folder import open_coco
from bocb_jax.data.coco_json import annotations_from_json
from bocb_jax.errors import UserError
from bocb_jax.pose.skeleton import COCO_PERSON

COCO_MINI = Path(os.environ.get("BOCB_JAX_COCO_MINI", "/nowhere"))


def read(data, joints=False):
    return annotations_from_json(data, "some.json", joints=joints)


def with_annotations(*annotations):
    return changed(lambda data: data["annotations"].extend(annotations))


def test_reads_boxes():
    found = read(good())
    assert found.file_names == ("1.png", "2.png")
    assert found.category_names == ("person", "dog")
    assert found.sizes.tolist() == [[64, 48]] * 2
    assert found.image.tolist() == [0, 0, 1]
    assert found.usable.all()
    assert found.capacity == 2
    assert found.notes == ("No annotation of dog.",)
    boxes, labels = found.padded_boxes(1, 3)
    assert boxes.dtype == np.float32
    assert boxes.tolist() == [[4, 6, 24, 36], [0] * 4, [0] * 4]
    assert labels.tolist() == [0, -1, -1]


def test_reads_joints():
    found = read(good(), joints=True)
    assert found.category_names == ("person",)
    assert found.skeleton.names == coco_files.NAMES
    assert found.skeleton.pairs == ((1, 2),)
    assert found.skeleton.limbs == ((0, 1), (0, 2))
    assert found.joints[0].tolist() == [[10, 8], [6, 20], [0, 0]]
    assert found.visible[0].tolist() == [2, 1, 0]
    assert found.persons.tolist() == [0, 1, 2]


def test_sorts_by_image_and_by_category_id():
    data = good()
    data["annotations"].reverse()
    data["categories"].reverse()
    found = read(data)
    assert found.ids.tolist() == [2, 1, 3]
    assert found.category_ids.tolist() == [1, 7]


def test_goes_back_to_json():
    found = read(good(), joints=True)
    again = read(found.as_json(), joints=True)
    for name in ("image_ids", "ids", "labels", "boxes", "areas", "crowd", "joints", "visible"):
        np.testing.assert_array_equal(getattr(again, name), getattr(found, name))


def test_takes_some_images():
    found = read(with_annotations(annotation(4, 2, bbox=[1, 1, 5, 5])), joints=True)
    some = found.subset([1])
    assert some.ids.tolist() == [3, 4]
    assert some.image.tolist() == [0, 0]
    assert some.joints.shape == (2, 3, 2)
    assert found.subset([1, 0]).ids.tolist() == [3, 4, 1, 2]
    assert not len(found.subset([]).ids)


# What is kept for the evaluation and left out of training: the annotation, the note, and whether
# its person has a crop nevertheless.
ODD = {
    "crowd": ({"iscrowd": 1}, "1 crowd region: for the evaluation alone", False),
    "ignored": ({"ignore": 1}, "1 annotation marked 'ignore': left out of training", True),
    "no-width": (
        {"bbox": [4, 6, 0, 10]},
        r"1 box of no pixel in the image: left out of training \(first: annotation 9, 1.png\)",
        False,
    ),
    "negative": ({"bbox": [4, 6, -3, 10]}, "of no pixel in the image", False),
    "narrow": ({"bbox": [4, 6, 0.5, 10]}, "1 box less than a pixel wide or high", True),
    "no-area": ({"area": 0}, "or of no area: left out of training", True),
    "outside": ({"bbox": [70, 6, 10, 10]}, "of no pixel in the image", False),
}


@pytest.mark.parametrize("name", ODD)
def test_leaves_out_of_training(name):
    fields, note, cropped = ODD[name]
    data = with_annotations(annotation(9, **fields))
    found = read(data)
    [odd] = np.flatnonzero(found.ids == 9)
    assert not found.usable[odd]
    assert found.usable.sum() == 3
    assert any(re.search(note, each) for each in found.notes), found.notes
    assert found.as_json()["annotations"][odd]["id"] == 9
    assert (odd in read(data, joints=True).persons) == cropped


def test_boxes_beyond_the_image_are_kept_and_told():
    found = read(of_first(bbox=[50, 40, 30, 20]))
    assert found.usable.all()
    assert found.clipped[0].tolist() == [50, 40, 64, 48]
    assert (
        "1 box beyond the edge of the image: cut to it in training (first: annotation 1, "
        "1.png)." in found.notes
    )


def test_persons_without_joints_are_left_out():
    found = read(of_first(keypoints=[0] * 9), joints=True)
    assert found.persons.tolist() == [1, 2]
    assert "1 person without a labelled joint: left out." in found.notes


@pytest.mark.parametrize(("joints", "area"), [(False, 600), (True, 0.53 * 600)])
def test_areas_may_be_missing(joints, area):
    found = read(of_first(area=None), joints=joints)
    assert found.areas.tolist() == [pytest.approx(area), 400, 400]
    assert any("1 annotation without an area: taken as" in note for note in found.notes)


@pytest.mark.parametrize("joints", [False, True], ids=["detection", "pose"])
@pytest.mark.parametrize("name", BAD_JSON)
def test_refuses(name, joints):
    data, says = BAD_JSON[name]
    if name.startswith("pose") and not joints:
        read(data)
    else:
        with pytest.raises(UserError, match=says) as raised:
            read(data, joints)
        assert "some.json" in str(raised.value)


def test_opens_a_folder(tmp_path):
    splits = open_coco(write(tmp_path), "detection")
    assert splits.keys() == {"train", "validation"}
    assert splits["train"].folder == str(tmp_path / "images")
    assert splits["train"].read(0).shape == (48, 64, 3)


LAYOUTS = {
    "coco": ("annotations/instances_{}2017.json", "{}2017"),
    "yolo": ("annotations/instances_{}.json", "images/{}2017"),
    "roboflow": ("{}/_annotations.coco.json", "{}"),
    "plain": ("{}.json", "{}"),
    "flat": ("annotations/{}.json", ""),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_finds_other_layouts(layout, tmp_path):
    made = write(tmp_path / "made")
    file, folder = LAYOUTS[layout]
    here = tmp_path / "here"
    for split in ("train", "val"):
        target = here / file.format(split)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(made / "annotations" / f"instances_{split}.json", target)
        shutil.copytree(made / "images", here / folder.format(split), dirs_exist_ok=True)
    splits = open_coco(here, "detection")
    assert splits["validation"].folder == str((here / folder.format("val")).resolve())


FOLDERS = {
    "no-json": ({"train": "{"}, r"instances_train.json' is no JSON \(.*may be cut off"),
    "no-utf-8": ({"train": '{"é": 1}'.encode("latin-1")}, "is not UTF-8"),
    "deep": ({"train": "[" * 100_000}, "is no JSON"),
    "no-image": ({"images": ()}, "None of the 2 images of .* is there; the first, '1.png'"),
    "missing-image": (
        {"images": ("2.png",)},
        "1 of the 2 images of .* are not in .*images', the first of them '1.png'. Fetch them",
    ),
    "other-categories": (
        {"val": changed(lambda data: data["categories"][1].update(name="cat"))},
        "Category 7 is 'cat' in .*val.json' and 'dog' in .*train.json'",
    ),
    "fewer-categories": (
        {"val": changed(lambda data: data["categories"].pop())},
        "Category 7 is 'missing' in",
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_refuses_a_folder(name, tmp_path):
    given, says = FOLDERS[name]
    with pytest.raises(UserError, match=says):
        open_coco(write(tmp_path, **given), "detection")


def test_refuses_a_folder_that_is_none(tmp_path):
    with pytest.raises(UserError, match="lost' is not there"):
        open_coco(tmp_path / "lost", "pose")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file; unpack it"):
        open_coco(tmp_path / "file", "pose")
    with pytest.raises(UserError, match="has no training annotations for pose: annotations/person"):
        open_coco(tmp_path, "pose")
    write(tmp_path)
    for file in (tmp_path / "annotations").glob("*val*"):
        file.unlink()
    with pytest.raises(UserError, match=r"has no validation annotations .*/instances_val\.json"):
        open_coco(tmp_path, "detection")


def test_reads_what_tools_on_windows_write(tmp_path):
    def named(data):
        for image in data["images"]:
            image["file_name"] = f"images\\{image['file_name']}"

    data = "\ufeff" + json.dumps(changed(named))
    split = open_coco(write(tmp_path, train=data, val=data), "detection")["train"]
    assert split.annotations.file_names == ("images/1.png", "images/2.png")
    assert split.read(1).shape == (48, 64, 3)


def test_images_may_lie_behind_links(tmp_path):
    def named(data):
        for image in data["images"]:
            image["file_name"] = f"linked/{image['file_name']}"

    write(tmp_path / "elsewhere")
    data = changed(named)
    write(tmp_path / "coco", train=data, val=data, images=())
    (tmp_path / "coco" / "images" / "linked").symlink_to(tmp_path / "elsewhere" / "images")
    assert open_coco(tmp_path / "coco", "detection")["train"].read(1).shape == (48, 64, 3)


IMAGES = {
    "damaged": (image_bytes()[:100], r"images/1.png' cannot be decoded \(.*Replace it"),
    "empty": (b"\n", "cannot be decoded"),
    "other-size": (
        image_bytes(32, 40),
        "has 32 x 40 pixels, but 64 x 48 in .*instances_train.json'. Make both agree",
    ),
    "turned": (image_bytes(48, 64), "48 x 64 pixels, but 64 x 48 .* of the picture turned upright"),
}


@pytest.mark.parametrize("name", IMAGES)
def test_refuses_an_image(name, tmp_path):
    encoded, says = IMAGES[name]
    split = open_coco(write(tmp_path, encoded=encoded), "detection")["train"]
    with pytest.raises(UserError, match=says):
        split.read(0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_photographs_as_the_tools_that_draw_boxes_show_them(orientation, tmp_path):
    stored = (48, 64) if orientation >= 5 else (64, 48)
    encoded = image_bytes(*stored, orientation)
    split = open_coco(write(tmp_path, encoded=encoded), "detection")["train"]
    expected = np.asarray(ImageOps.exif_transpose(Image.open(BytesIO(encoded))))
    np.testing.assert_array_equal(split.read(0), expected)


def test_does_not_turn_a_photograph_whose_boxes_are_in_pixels_of_the_file(tmp_path):
    encoded = image_bytes(orientation=6)
    split = open_coco(write(tmp_path, encoded=encoded), "detection")["train"]
    np.testing.assert_array_equal(split.read(0), np.asarray(Image.open(BytesIO(encoded))))


@pytest.mark.skipif(not COCO_MINI.is_dir(), reason="BOCB_JAX_COCO_MINI does not name coco_mini")
def test_reads_coco():
    splits = open_coco(COCO_MINI, "detection")
    train = splits["train"].annotations
    assert (len(train), len(train.ids), train.crowd.sum()) == (130, 1209, 13)
    assert len(train.category_ids) == 80
    validation = splits["validation"].annotations
    assert (len(validation), len(validation.ids), validation.crowd.sum()) == (128, 987, 10)
    assert len(np.unique(validation.labels)) == 78
    assert splits["validation"].read(3).ndim == 3
    persons = open_coco(COCO_MINI, "pose")["train"].annotations
    assert persons.skeleton is COCO_PERSON
    assert len(persons.persons) == 143
