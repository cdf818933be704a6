"""Data sets of images with boxes or joints: which images train, validate and test."""

import pytest
from helpers.coco_files import annotation, changed, write

from bocb_jax.data.annotated import open_annotated
from bocb_jax.errors import UserError


def split(images, **fields):
    """A file of some images with an annotation each."""

    def change(data):
        data["images"] = [
            {"id": i, "file_name": f"{i}.png", "width": 64, "height": 48} for i in images
        ]
        data["annotations"] = [annotation(i, i, **fields) for i in images]

    return changed(change)


def folder(path, count=8, **fields):
    train, val = range(1, count + 1), range(count + 1, count + 4)
    names = [f"{i}.png" for i in (*train, *val)]
    return write(path, train=split(train), val=split(val, **fields), images=names)


def opened(path, task="detection", **options):
    return open_annotated(f"coco:{path}", task, **options)


def names(images):
    return set(images.annotations.file_names)


def test_the_second_of_two_splits_tests_and_training_images_validate(tmp_path):
    found = opened(folder(tmp_path)).splits
    assert names(found["test"]) == {"9.png", "10.png", "11.png"}
    train, validation = names(found["train"]), names(found["validation"])
    assert train | validation == {f"{i}.png" for i in range(1, 9)}
    assert not train & validation
    assert names(opened(tmp_path, split_seed=1).splits["validation"]) != validation
    paper = opened(tmp_path, held_out=False).splits
    assert names(paper["train"]) == train | validation
    assert names(paper["validation"]) == names(paper["test"]) == names(found["test"])


@pytest.mark.parametrize("task", ["detection", "pose"])
def test_a_split_of_crowds_alone_has_nothing_to_find(task, tmp_path):
    folder(tmp_path, iscrowd=1)
    what = "box of a single object" if task == "detection" else "person with a labelled joint"
    with pytest.raises(UserError, match=f"The validation split of 'coco:.*' has no {what}"):
        opened(tmp_path, task, held_out=False)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_few_images_are_enough_or_a_sentence(count, tmp_path):
    folder(tmp_path, count)
    if count == 1:
        with pytest.raises(UserError, match="1 training images are too few to hold out"):
            opened(tmp_path)
        return
    found = opened(tmp_path).splits
    assert len(found["train"]) + len(found["validation"]) == count
