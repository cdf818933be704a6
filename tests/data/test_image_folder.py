"""Image folders: which splits and images are found, and the messages about broken folders."""

import pytest
from helpers.image_folder import make_folder, write

from bocb_jax.data import open_dataset
from bocb_jax.errors import UserError


def open_folder(root, **options):
    return open_dataset(f"folder:{root}", **options)


def values(split, size=8):
    split = split.sized(size)
    return sorted(int(split[i]["image"][0, 0, 0]) for i in range(len(split)))


def test_all_three_splits(tmp_path):
    make_folder(tmp_path, train=10, val=3, test=4)
    data = open_folder(tmp_path)
    assert data.num_classes == 2
    assert data.class_names == ("cat", "dog")
    assert data.image_shape is None
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 20, "validation": 6, "test": 8,
    }  # fmt: skip
    for split in data.splits.values():
        split = split.sized(8)
        for i in range(len(split)):
            assert split[i]["image"].shape == (8, 8, 3)
            assert split[i]["label"] == split[i]["image"][0, 0, 0] % 2


def test_validation_is_held_out_of_train(tmp_path):
    make_folder(tmp_path, train=20, test=4)
    splits = open_folder(tmp_path).splits
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == (36, 4, 8)
    assert sorted(values(splits["train"]) + values(splits["validation"])) == list(range(40))
    assert sum(value % 2 for value in values(splits["validation"])) == 2  # stratified
    assert values(open_folder(tmp_path).splits["validation"]) == values(splits["validation"])
    others = {tuple(values(open_folder(tmp_path, split_seed=i).splits["validation"]))
              for i in range(4)}  # fmt: skip
    assert len(others) > 1


@pytest.mark.parametrize("name", ["val", "validation", "valid"])
def test_val_is_the_test_split_with_a_warning(tmp_path, caplog, name):
    make_folder(tmp_path, train=20, **{name: 3})
    splits = open_folder(tmp_path).splits
    assert (len(splits["train"]), len(splits["validation"]), len(splits["test"])) == (36, 4, 6)
    assert f"'{name}' is used as the test split" in caplog.text


def test_train_alone_is_divided_with_a_warning(tmp_path, caplog):
    make_folder(tmp_path, train=20)
    splits = open_folder(tmp_path).splits
    assert sorted(sum((values(split) for split in splits.values()), [])) == list(range(40))  # noqa: RUF017
    assert "neither 'val' nor 'test'" in caplog.text


def test_what_counts_as_an_image(tmp_path):
    make_folder(tmp_path, train=5, val=2, test=2)
    write(tmp_path / "train" / "cat" / "deeper" / "still" / "UPPER.JPG")
    write(tmp_path / "train" / "cat" / "naïve ñame.webp")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "cat" / ".hidden.png").write_bytes(b"")
    (tmp_path / "train" / ".git").mkdir()
    data = open_folder(tmp_path)
    assert data.num_classes == 2
    assert len(data.splits["train"]) == 12
    values(data.splits["train"])  # all of them can be read


def test_a_path_relative_to_the_data_dir(tmp_path):
    make_folder(tmp_path / "pets", train=5, val=2, test=2)
    assert len(open_dataset("folder:pets", data_dir=str(tmp_path)).splits["test"]) == 4


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: None, "There is no folder"),
        (lambda root: root.mkdir(), "has no folder 'train'"),
        (lambda root: write(root / "cat" / "1.png"), "has no folder 'train'"),
        (lambda root: (root / "train").mkdir(parents=True), "holds no folders"),
        (lambda root: write(root / "train" / "1.png"), "holds no folders"),
        (
            lambda root: (make_folder(root, train=3), (root / "train" / "eel").mkdir()),
            "class folder '.*eel' holds no image",
        ),
        (
            lambda root: (make_folder(root, train=3), write(root / "test" / "eel" / "1.png")),
            "class 'eel' that the training images do not have",
        ),
        (
            lambda root: (make_folder(root, train=3), (root / "val" / "cat").mkdir(parents=True)),
            "val' holds no images",
        ),
        (lambda root: make_folder(root, train=1), "too few"),
    ],
)
def test_unusable_folders_are_refused(tmp_path, spoil, message):
    root = tmp_path / "images"
    spoil(root)
    with pytest.raises(UserError, match=message) as caught:
        open_folder(root)
    assert "\n" not in str(caught.value)
