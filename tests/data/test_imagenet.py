"""ImageNet as it is downloaded: small trees in the layouts of Kaggle and the development kit."""

import numpy as np
import pytest
import scipy.io
from helpers.image_folder import write

from bocb_jax.data import imagenet, open_dataset
from bocb_jax.errors import UserError

WNIDS = ("n01440764", "n01443537", "n02012849")
WORDS = ("tench, Tinca tinca", "goldfish, Carassius auratus", "crane")
# Of the validation images by number, in no order that follows from the names.
CLASSES = [WNIDS[i] for i in (2, 0, 0, 1, 2, 1, 0, 2)]
NAMES = [f"ILSVRC2012_val_{i:08}" for i in range(1, 9)]
KAGGLE = "ILSVRC/Data/CLS-LOC"


def make_images(train, val, classes=WNIDS):
    for label, wnid in enumerate(classes):
        for i in range(10):
            write(train / wnid / f"{wnid}_{i}.JPEG", value=10 * label)
    for name, wnid in zip(NAMES, CLASSES, strict=True):
        write(val / f"{name}.JPEG", value=10 * WNIDS.index(wnid))


def make_kaggle(root, classes=WNIDS):
    make_images(root / KAGGLE / "train", root / KAGGLE / "val", classes)
    write(root / KAGGLE / "test" / "ILSVRC2012_test_00000001.JPEG")
    (root / "LOC_synset_mapping.txt").write_text(
        "".join(f"{wnid} {words}\n" for wnid, words in zip(WNIDS, WORDS, strict=True))
    )
    rows = [f"{name},{wnid} 85 1 499 272 {wnid} 1 2 3 4 \n"
            for name, wnid in zip(NAMES, CLASSES, strict=True)][::-1]  # fmt: skip
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + "".join(rows))
    sets = root / "ILSVRC" / "ImageSets" / "CLS-LOC"
    sets.mkdir(parents=True)
    (sets / "val.txt").write_text("".join(f"{x} {i + 1}\n" for i, x in enumerate(NAMES)))


# The development kit numbers the classes in an order of its own, those with children last.
NUMBERS = {WNIDS[0]: 3, WNIDS[1]: 1, WNIDS[2]: 2, "n00001740": 1001}


def make_kit(kit):
    (kit / "data").mkdir(parents=True)
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object)]
    synsets = np.zeros((len(NUMBERS), 1), kind)
    for row, (wnid, number) in enumerate(NUMBERS.items()):
        synsets[row, 0] = number, wnid, "words"
    scipy.io.savemat(kit / "data" / "meta.mat", {"synsets": synsets}, do_compression=True)
    lines = "".join(f"{NUMBERS[wnid]}\n" for wnid in CLASSES)
    (kit / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text(lines)


def check(data, test=8):
    assert data.num_classes == 3
    assert {key: len(split) for key, split in data.splits.items()} == {
        "train": 27, "validation": 3, "test": test,
    }  # fmt: skip
    for split in data.splits.values():
        sized = split.sized(8)
        for i in range(len(split)):
            example = sized[i]
            assert abs(int(example["image"].mean()) - 10 * example["label"]) <= 2


@pytest.mark.parametrize("inner", ["", "ILSVRC", KAGGLE])
def test_kaggles_layout(tmp_path, inner):
    make_kaggle(tmp_path)
    data = open_dataset(f"folder:{tmp_path / inner}")
    check(data)
    if inner != "ILSVRC":  # then the files of words and labels are found from the folder of images
        assert data.class_names == tuple(map(" ".join, zip(WNIDS, WORDS, strict=True)))
    said = data.describe()
    assert "LOC_val_solution.csv'" in said
    assert "The images in 'test' have no labels and are not used." in said
    assert "0 = n01440764, 1 = n01443537, 2 = n02012849" in said


@pytest.mark.parametrize("kit", ["", "ILSVRC2012_devkit_t12"])
@pytest.mark.parametrize(
    "images", [("train", "val"), ("ILSVRC2012_img_train", "ILSVRC2012_img_val")]
)
def test_the_development_kits_layout(tmp_path, kit, images):
    make_images(*(tmp_path / name for name in images))
    make_kit(tmp_path / kit)
    data = open_dataset(f"folder:{tmp_path}")
    check(data)
    assert data.class_names == WNIDS
    assert "ILSVRC2012_validation_ground_truth.txt'" in data.describe()


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("val.txt", "{name}.JPEG {label}"),
        ("val.txt", "val/{name}.JPEG {wnid}"),
        ("imagenet_2012_validation_synset_labels.txt", "{wnid}"),
    ],
)
def test_other_files_of_labels(tmp_path, name, line):
    make_images(tmp_path / "train", tmp_path / "val")
    rows = zip(NAMES, CLASSES, strict=True)
    lines = [line.format(name=x, wnid=wnid, label=WNIDS.index(wnid)) for x, wnid in rows]
    (tmp_path / name).write_text("\n".join(lines))
    check(open_dataset(f"folder:{tmp_path}"))


def test_some_of_the_classes(tmp_path):
    make_kaggle(tmp_path, WNIDS[1:])
    data = open_dataset(f"folder:{tmp_path}")
    assert data.num_classes == 2
    assert len(data.splits["test"]) == 5
    assert "; 3 of other classes are left out." in data.describe()
    for i in range(5):
        example = data.splits["test"].sized(8)[i]
        assert abs(int(example["image"].mean()) - 10 * (example["label"] + 1)) <= 2


def test_validation_images_in_class_folders_need_no_file(tmp_path):
    make_kaggle(tmp_path)
    for name, wnid in zip(NAMES, CLASSES, strict=True):
        image = tmp_path / KAGGLE / "val" / f"{name}.JPEG"
        (image.parent / wnid).mkdir(exist_ok=True)
        image.rename(image.parent / wnid / image.name)
    (tmp_path / "LOC_val_solution.csv").unlink()
    with pytest.raises(UserError, match="have no labels; sort them"):  # the flat test
        open_dataset(f"folder:{tmp_path}")
    (tmp_path / KAGGLE / "test" / "ILSVRC2012_test_00000001.JPEG").unlink()
    (tmp_path / KAGGLE / "test").rmdir()
    check(open_dataset(f"folder:{tmp_path}"))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, r"have no labels: sort them .*LOC_val_solution\.csv"),
        ({"val.txt": "ILSVRC2012_val_00000001.JPEG 0\n"}, "does not number its classes from 0 to"),
        (
            {"val.txt": "".join(f"{x} {i + 1}\n" for i, x in enumerate(NAMES))},
            "does not number its classes from 0 to 2",
        ),
        ({"val.txt": f"{NAMES[0]} {WNIDS[0]}\n"}, "no label for the image"),
        ({"val.txt": f"{NAMES[0]}\n"}, "is not an image and its class"),
        ({"val.txt": "".join(f"{x} cat\n" for x in NAMES)}, "None of the classes"),
        ({"val.txt": b"\xff\xfe\x00"}, "not UTF-8"),
        ({"LOC_val_solution.csv": "ImageId,PredictionString\n"}, "no label for the image"),
        ({"ILSVRC2012_validation_ground_truth.txt": "1\n" * 8}, r"put .* meta\.mat beside it"),
        (
            {"ILSVRC2012_validation_ground_truth.txt": "1\n" * 8, "meta.mat": b"MATLAB 5.0"},
            r"meta\.mat' is no meta\.mat of ImageNet's development kit",
        ),
        (
            {"ILSVRC2012_validation_ground_truth.txt": "1\n" * 8, "meta.mat": b""},
            r"meta\.mat' is no meta\.mat of ImageNet's development kit",
        ),
        ({"imagenet_2012_validation_synset_labels.txt": WNIDS[0]}, "no label for the image"),
    ],
)
def test_files_of_labels_that_do_not_fit_are_refused(tmp_path, files, message):
    make_images(tmp_path / "train", tmp_path / "val")
    for name, content in files.items():
        content = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        open_dataset(f"folder:{tmp_path}")
    assert "\n" not in str(caught.value)


def test_numbers_that_the_kit_does_not_know_are_refused(tmp_path):
    make_images(tmp_path / "train", tmp_path / "val")
    make_kit(tmp_path)
    (tmp_path / "data" / "ILSVRC2012_validation_ground_truth.txt").write_text("7\n" * 8)
    with pytest.raises(UserError, match=r"names a class that '.*meta\.mat' lacks: 7"):
        open_dataset(f"folder:{tmp_path}")


def test_a_kit_that_unpacks_to_gigabytes_is_refused(tmp_path, monkeypatch):
    make_images(tmp_path / "train", tmp_path / "val")
    make_kit(tmp_path)
    monkeypatch.setattr(imagenet, "MAX_LABEL_BYTES", 1000)
    path = tmp_path / "data" / "meta.mat"
    scipy.io.savemat(path, {"synsets": np.zeros(10_000)}, do_compression=True)
    with pytest.raises(UserError, match=r"meta\.mat' is no .*it unpacks to more than"):
        open_dataset(f"folder:{tmp_path}")
