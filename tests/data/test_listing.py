"""Which files are images of a class: what is passed over, links, pipes, and odd names."""

import dataclasses
import os
import socket
import unicodedata

import numpy as np
import pytest
from helpers.image_folder import make_folder, write

from bocb_jax.data import image_folder, listing, open_dataset
from bocb_jax.errors import UserError


def open_folder(root, **options):
    return open_dataset(f"folder:{root}", **options)


def names(data, key):
    records = data.splits[key]._records
    return [os.path.relpath(records.name(i), records.root) for i in range(len(records))]


def sizes(data):
    return {key: len(split) for key, split in data.splits.items()}


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "pets"
    make_folder(root, train=6, val=2, test=2)
    return root


SIZES = {"train": 12, "validation": 4, "test": 4}
LEFT_BEHIND = (
    ".ipynb_checkpoints", "@eaDir", "@EADIR", "__MACOSX", ".AppleDouble", "lost+found", "#recycle",
    "$RECYCLE.BIN", "System Volume Information", ".thumbnails", ".git",
)  # fmt: skip


@pytest.mark.parametrize("name", LEFT_BEHIND)
def test_what_systems_leave_behind_is_passed_over(folder, name):
    for split in ("train", "val", "test"):
        write(folder / split / name / "cat" / "1.png")  # as a class
        write(folder / split / "cat" / name / "1.png")  # in a class
        write(folder / split / "cat" / "deep" / name / "deeper" / "1.png")
        write(folder / split / "cat" / "._000.png")
        (folder / split / ".DS_Store").write_bytes(b"")
        (folder / split / "cat" / "Thumbs.db").write_bytes(b"")
    data = open_folder(folder)
    assert data.class_names == ("cat", "dog")
    assert sizes(data) == SIZES


def test_loops_of_links_end(folder):
    before = names(open_folder(folder), "train")
    for number, target in enumerate((".", "..", "../..", folder, folder.parent, "loop2")):
        (folder / "train" / "cat" / f"loop{number}").symlink_to(target)
    (folder / "train" / "dog" / "deeper").mkdir()
    (folder / "train" / "dog" / "deeper" / "loop").symlink_to("..")
    data = open_folder(folder)
    assert names(data, "train") == before
    assert sizes(data) == SIZES


def test_a_linked_folder_counts_for_the_class_that_holds_it(folder):
    (folder / "train" / "cat" / "also").symlink_to("../dog")
    write(folder / "train" / "dog" / "young" / "1.png")
    (folder / "train" / "cat" / "aaa").symlink_to("../dog/young")
    elsewhere = folder.parent / "more"
    write(elsewhere / "1.png")
    for name in ("more", "again"):
        (folder / "train" / "cat" / name).symlink_to(elsewhere)
    found = names(open_folder(folder), "train")
    assert "dog/young/1.png" in found
    assert [name for name in found if name.startswith(("cat/also", "cat/aaa"))] == []
    assert [name for name in found if name.startswith(("cat/more", "cat/again"))] == [
        "cat/again/1.png"
    ]


def test_linked_class_folders_are_read(folder):
    (folder / "train" / "dog").rename(folder.parent / "dogs")
    (folder / "train" / "dog").symlink_to(folder.parent / "dogs")
    assert sizes(open_folder(folder)) == SIZES


def test_two_classes_in_one_folder_are_refused(folder):
    (folder / "train" / "kitten").symlink_to("cat")
    with pytest.raises(UserError, match=r"'cat' and 'kitten' in .* are one and the same"):
        open_folder(folder)


@pytest.mark.parametrize("split", ["val", "test"])
def test_splits_that_share_a_folder_are_refused(folder, split):
    (folder / split).rename(folder.parent / "away")
    (folder / split).symlink_to("train")
    with pytest.raises(UserError, match="belongs to both the"):
        open_folder(folder)


def test_a_link_from_a_class_to_the_test_images_is_refused(folder):
    (folder / "train" / "cat" / "more").symlink_to(folder / "test" / "dog")
    with pytest.raises(UserError, match=r"test/dog' belongs to both the (train and the )?test"):
        open_folder(folder)


def test_each_file_is_taken_once(folder, caplog):
    train = folder / "train"
    for number in range(3):
        (train / "cat" / f"again{number}.png").symlink_to("000.png")
    (train / "cat" / "leak.png").symlink_to(folder / "test" / "cat" / "000.png")
    (folder / "val" / "cat" / "leak.png").symlink_to(folder / "test" / "cat" / "001.png")
    data = open_folder(folder)
    assert sizes(data) == SIZES
    assert "cat/leak.png" not in names(data, "train") + names(data, "validation")
    assert "4 of the train images" in caplog.text
    assert "1 of the validation images" in caplog.text


def test_each_file_with_hard_links_is_taken_once(folder, caplog, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(listing, "_identities", None)  # would ask for each of a million files
        open_folder(folder)
    train = folder / "train"
    (train / "cat" / "again.png").hardlink_to(train / "cat" / "000.png")
    (train / "dog" / "leak.png").hardlink_to(folder / "test" / "cat" / "000.png")
    (folder / "val" / "cat" / "leak.png").hardlink_to(folder / "test" / "cat" / "001.png")
    data = open_folder(folder)
    assert sizes(data) == SIZES
    assert "leak.png" not in str(names(data, "train") + names(data, "validation"))
    assert "2 of the train images" in caplog.text
    assert "1 of the validation images" in caplog.text


def test_only_files_whose_number_repeats_are_asked_for_theirs(folder, monkeypatch):
    (folder / "train" / "cat" / "again.png").hardlink_to(folder / "train" / "cat" / "000.png")
    asked = []
    identities = listing._identities
    monkeypatch.setattr(
        listing, "_identities", lambda records: (asked.append(len(records)), identities(records))[1]
    )
    assert sizes(open_folder(folder)) == SIZES
    assert sum(asked) == 2


@pytest.mark.parametrize("number", [0, 2**32 - 1])
def test_where_folders_have_no_inode_numbers_no_file_is_asked(folder, monkeypatch, number):
    list_images = listing.list_images

    def listed(*arguments, **options):
        found = list_images(*arguments, **options)
        return dataclasses.replace(found, inodes=np.full_like(found.inodes, number))

    monkeypatch.setattr(image_folder, "list_images", listed)
    monkeypatch.setattr(listing, "_identities", None)
    assert sizes(open_folder(folder)) == SIZES


@pytest.mark.parametrize("link", ["symlink_to", "hardlink_to"])
def test_a_class_whose_images_are_all_in_the_test_split_is_refused(folder, link):
    for path in (folder / "train" / "cat").iterdir():
        path.unlink()
    for path in (folder / "test" / "cat").iterdir():
        getattr(folder / "train" / "cat" / path.name, link)(path)
    with pytest.raises(UserError, match=r"No training image of the class 'cat' .* is left"):
        open_folder(folder)


def test_an_image_with_two_links_is_never_in_train_and_validation(folder):
    pool = folder.parent / "pool"
    for number in range(30):
        write(pool / f"{number}.png", value=number)
        for name in "ab":
            (folder / "train" / "cat" / f"{name}{number}.png").symlink_to(pool / f"{number}.png")
    for split in ("val", "test"):
        (folder / split).rename(folder.parent / split)
    data = open_folder(folder)
    assert sum(sizes(data).values()) == 12 + 30
    real = {
        key: {os.path.realpath(records.name(i)) for i in range(len(records))}
        for key, records in ((key, split._records) for key, split in data.splits.items())
    }
    assert not real["train"] & real["validation"]
    assert not real["train"] & real["test"]


def make_pipe(path):
    os.mkfifo(path)


def make_socket(path):
    # The path of a socket must be short.
    here = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(path.name)
    finally:
        os.chdir(here)


STRANGE = {
    "pipe": make_pipe,
    "socket": make_socket,
    "device": lambda path: path.symlink_to("/dev/zero"),
    "dangling": lambda path: path.symlink_to("nowhere.png"),
    "itself": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("make", STRANGE.values(), ids=STRANGE)
def test_only_regular_files_are_images(folder, make, caplog):
    make(folder / "train" / "cat" / "strange.jpg")
    with pytest.raises(UserError, match=r"cat/strange\.jpg' is no regular file, or a link that"):
        open_folder(folder)
    data = open_folder(folder, on_corrupt="skip")
    assert sizes(data) == SIZES
    assert "strange.jpg" in caplog.text


def test_a_pipe_in_place_of_a_listed_file_is_not_waited_for(folder):
    split = open_folder(folder).splits["train"]
    path = folder / "train" / "cat" / "000.png"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(UserError, match=r"000\.png cannot be read .*no regular file"):
        split[0]


def test_a_huge_file_is_not_read(folder, monkeypatch):
    split = open_folder(folder).splits["train"]
    with open(folder / "train" / "cat" / "000.png", "r+b") as file:
        file.truncate(2**40)  # sparse
    with pytest.raises(UserError, match="its 1,048,576 MiB exceed 512 MiB"):
        split[0]


def test_a_folder_that_may_not_be_read_is_named(folder, monkeypatch):
    scandir = os.scandir

    def refuse(path):  # root may read everything
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    (folder / "train" / "cat" / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"locked' cannot be read \(Permission denied\)"):
        open_folder(folder)


def test_a_file_that_may_not_be_read_is_named(folder, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(listing, "read_file", refuse)
    with pytest.raises(UserError, match=r"000\.png cannot be read .*Permission denied"):
        open_folder(folder).splits["train"][0]


def test_deep_folders(folder):
    deep = folder / "train" / "cat" / os.path.join(*["d"] * 900)
    deep.mkdir(parents=True)
    write(deep / "1.png")
    assert len(names(open_folder(folder), "train")) == 13


# Names.


@pytest.mark.parametrize(
    "name", ["two words", "ünïcode", "猫", "-dash", "a'b\"c", "100%", "{x}", "CON", "a" * 200]
)
def test_class_names_of_any_characters(folder, name):
    for split in ("train", "val", "test"):
        (folder / split / "dog").rename(folder / split / name)
    data = open_folder(folder)
    assert set(data.class_names) == {"cat", name}
    assert sizes(data) == SIZES
    assert name in data.describe()


def test_accents_may_be_composed_differently(folder):
    for split, form in (("train", "NFC"), ("val", "NFD"), ("test", "NFD")):
        (folder / split / "dog").rename(folder / split / unicodedata.normalize(form, "élan"))
    data = open_folder(folder)
    assert sizes(data) == SIZES
    assert np.bincount([data.splits["test"][i]["label"] for i in range(4)]).tolist() == [2, 2]
    write(folder / "train" / unicodedata.normalize("NFD", "élan") / "1.png")
    with pytest.raises(UserError, match="once with composed and once with decomposed"):
        open_folder(folder)


@pytest.mark.parametrize("name", [b"caf\xe9", b"two\nlines", b"\x1b[31mred"])
def test_class_names_that_cannot_be_shown_are_refused(folder, name):
    os.mkdir(os.path.join(os.fsencode(folder), b"train", name))
    with pytest.raises(UserError, match="control character in its name, or one that is not UTF-8"):
        open_folder(folder)


@pytest.mark.parametrize("name", [b"caf\xe9.png", b"two\nlines.png", b"\x1b[31mred.png"])
def test_file_names_are_shown_without_control_characters(folder, name):
    path = os.path.join(os.fsencode(folder), b"train", b"cat", name)
    with open(path, "wb") as file:
        file.write(b"no image")
    split = open_folder(folder).splits["train"]
    with pytest.raises(UserError, match="cannot be read") as caught:
        [split[i] for i in range(len(split))]
    said = str(caught.value)
    assert said == listing.shown(said)
    said.encode()


@pytest.mark.parametrize("ending", [".jpg", ".JPG", ".Jpeg", ".PNG", ".TIF", ".WebP"])
def test_endings_of_any_case(folder, ending):
    write(folder / "train" / "cat" / f"odd{ending}")
    assert sizes(open_folder(folder))["train"] == 13


# Classes.


def test_one_class_is_refused(tmp_path):
    for number in range(9):
        write(tmp_path / "train" / "cat" / f"{number}.png")
    with pytest.raises(UserError, match="one class only, 'cat'"):
        open_folder(tmp_path)
    write(tmp_path / "train" / "__MACOSX" / "cat" / "1.png")  # is no second one
    with pytest.raises(UserError, match="one class only, 'cat'"):
        open_folder(tmp_path)


def test_a_class_without_images_says_what_it_holds(folder):
    for name in ("a.npy", "b.npy", "c.txt", "README"):
        path = folder / "train" / "eel" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    with pytest.raises(UserError, match=r"eel' holds no image .*; its files end in \.npy, \.txt;"):
        open_folder(folder)


def test_classes_may_be_missing_in_test_and_of_any_size(folder):
    for path in (folder / "test" / "dog").iterdir():
        path.unlink()
    (folder / "test" / "dog").rmdir()
    for number in range(100):
        write(folder / "train" / "cat" / f"more{number}.png")
    assert sizes(open_folder(folder)) == {"train": 112, "validation": 4, "test": 2}


def test_the_order_of_classes_is_torchvisions_and_is_said(folder):
    for name in ("Zebra", "ant", "10", "9"):
        write(folder / "train" / name / "1.png")
    data = open_folder(folder)
    assert data.class_names == ("10", "9", "Zebra", "ant", "cat", "dog")
    assert data.describe() == (
        "6 classes; 16 train, 4 validation, 4 test images. Classes are numbered by the sorted "
        "names of their folders, as in torchvision: 0 = 10, 1 = 9, 2 = Zebra, ..., 5 = dog."
    )


def test_an_archive_is_to_be_unpacked(tmp_path):
    (tmp_path / "pets.zip").write_bytes(b"PK")
    with pytest.raises(UserError, match="is a file; unpack it"):
        open_folder(tmp_path / "pets.zip")
