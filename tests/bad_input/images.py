"""Folders of images, and data sets of one's own."""

import os
from pathlib import Path

from bad_input.row import Row
from helpers.image_files import FORMS
from helpers.tiff import tiff

GOOD = FORMS["png"]
TRAIN = ["train", "--model", "resnet_mini", "--opt", "sgd", "--image-size", "32"]
SHORT = [
    "--epochs",
    "1",
    "--batch-size",
    "4",
    "--parallel.devices",
    "1",
    "--log.progress",
    "none",
    "--compile-cache",
    "",
]


def arguments(dataset="folder:pets", *further):
    return [*TRAIN, "--dataset", dataset, *SHORT, *further]


def pets(**extra):
    """A good folder of two classes, with files added, replaced, or (None) left out."""
    files = {
        f"pets/{split}/{name}/{i}.png": GOOD
        for split in ("train", "val", "test")
        for name in ("cat", "dog")
        for i in range(4)
    }
    files |= extra.get("files", {})
    return {name: content for name, content in files.items() if content is not None}


def without(*folders):
    return {name: None for name in pets() if name.startswith(tuple(f"pets/{x}/" for x in folders))}


def folder(id, says, files=None, prepare=None, **options):
    return Row(id, arguments(), says, files=pets(files=files or {}), prepare=prepare, **options)


def link(name, target):
    def prepare(folder: Path) -> None:
        path = folder / "pets" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    return prepare


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "pets" / "train" / "cat" / "pipe.jpg")


def flat(*names):
    return without("val", "test") | {f"pets/val/{name}": GOOD for name in names}


FOLDERS = [
    Row("no-folder", arguments(), "There is no folder '.*pets'; check the path", script=True),
    Row("a-file", arguments("folder:pets.zip"), r"pets\.zip' is a file; unpack it",
        files={"pets.zip": b"PK\x03\x04"}),
    Row("empty-path", arguments("folder:"), "has no folder 'train'"),
    Row("no-train", arguments(), "has no folder 'train'; put training images in",
        files={"pets/cat/1.png": GOOD, "pets/dog/1.png": GOOD}, script=True),
    Row("train-is-a-file", arguments(), "has no folder 'train'", files={"pets/train": b""}),
    Row("no-classes", arguments(), "holds no folders; give it one per class",
        files={"pets/train/1.png": GOOD}),
    Row("classes-in-archives", arguments(), r"unpack each CLASS\.tar into a folder",
        files={"pets/train/n01440764.tar": b""}),
    Row("one-class", arguments(), "holds one class only, 'cat'",
        files={f"pets/train/cat/{i}.png": GOOD for i in range(9)}, script=True),
    Row("one-class-and-thumbnails", arguments(), "holds one class only, 'cat'",
        files={f"pets/train/{name}/{i}.png": GOOD for i in range(9)
               for name in ("cat", ".ipynb_checkpoints", "@eaDir", "__MACOSX")}),
    folder("class-without-images", r"eel' holds no image .*end in \.npy", {
        "pets/train/eel/1.npy": b""}),
    folder("class-of-hidden-images", "eel' holds no image", {"pets/train/eel/._1.png": GOOD}),
    folder("class-of-thumbnails", "eel' holds no image", {"pets/train/eel/@eaDir/1.png": GOOD}),
    folder("unknown-class-in-test", "class 'eel' that the training images do not have", {
        "pets/test/eel/1.png": GOOD}),
    folder("unknown-class-in-val", "class 'eel' that the training images do not have", {
        "pets/val/eel/1.png": GOOD}),
    folder("other-case-in-test", "class 'Cat' that the training images do not have", {
        "pets/test/Cat/1.png": GOOD}),
    folder("empty-test", "test' holds no images; fill it", without("test") | {
        "pets/test/cat/notes.txt": b""}),
    folder("flat-test", "test' have no labels; sort them", without("test") | {
        "pets/test/1.png": GOOD}),
    folder("flat-val", r"val' have no labels: sort them .* LOC_val_solution\.csv", flat("1.png"),
           script=True),
    folder("labels-missing", r"val\.txt' has no label for the image '2\.png'",
           flat("1.png", "2.png") | {"pets/val.txt": "1.png cat\n"}),
    folder("labels-from-1", r"val\.txt' does not number its classes from 0 to 1",
           flat("1.png", "2.png") | {"pets/val.txt": "1.png 1\n2.png 2\n"}),
    folder("labels-too-many", r"val\.txt' does not number its classes from 0 to 1",
           flat("1.png", "2.png") | {"pets/val.txt": "1.png 0\n2.png 999\n"}),
    folder("labels-unknown", r"None of the classes in '.*val\.txt' is one of the training",
           flat("1.png") | {"pets/val.txt": "1.png eel\n"}),
    folder("labels-no-pairs", r"A line of '.*val\.txt' is not an image and its class",
           flat("1.png") | {"pets/val.txt": "cat\n"}),
    folder("labels-utf-16", r"val\.txt' is not UTF-8",
           flat("1.png") | {"pets/val.txt": "1.png cat".encode("utf-16")}),
    folder("ground-truth-alone", r"put the development kit's meta\.mat beside it",
           flat("1.png") | {"pets/ILSVRC2012_validation_ground_truth.txt": "1\n"}),
    folder("meta-mat-damaged", r"meta\.mat' is no meta\.mat of ImageNet's development kit",
           flat("1.png") | {"pets/ILSVRC2012_validation_ground_truth.txt": "1\n",
                            "pets/meta.mat": bytes(200)}),
    folder("too-few", "too few|fewer than one batch", without("train") | {
        "pets/train/cat/1.png": GOOD, "pets/train/dog/1.png": GOOD}),
    folder("accents-twice", "once with composed and once with decomposed accents", {
        "pets/train/\u00e9lan/1.png": GOOD, "pets/train/e\u0301lan/1.png": GOOD}),
    folder("control-characters", "has a control character in its name", {
        "pets/train/a\x1b[31m/1.png": GOOD}),
    folder("line-break-in-a-class", "has a control character in its name", {
        "pets/train/a\nb/1.png": GOOD}),
]  # fmt: skip
LINKS = [
    folder("val-is-train", "train/cat' belongs to both", without("val"), link("val", "train"),
           script=True),
    folder("test-is-train", "train/cat' belongs to both", without("test"), link("test", "train")),
    folder("test-is-val", "val/cat' belongs to both", without("test"), link("test", "val")),
    folder("class-leads-to-test", "test/dog' belongs to both", None,
           link("train/cat/more", "../../test/dog")),
    folder("class-is-another", "'cat' and 'kitten' in .* are one and the same", None,
           link("train/kitten", "cat")),
    folder("dangling", r"lost\.jpg' is no regular file, or a link that leads nowhere", None,
           link("train/cat/lost.jpg", "nowhere.jpg")),
    folder("link-to-itself", r"lost\.jpg' is no regular file, or a link that leads nowhere", None,
           link("train/cat/lost.jpg", "lost.jpg")),
    folder("device", r"zero\.jpg' is no regular file", None,
           link("test/dog/zero.jpg", "/dev/zero")),
    folder("pipe", r"pipe\.jpg' is no regular file", None, pipe, script=True),
]  # fmt: skip


# What the openers in helpers.bad_data_sets return, or fail to.
OWN = [
    Row(f"own-{name.replace('_', '-')}", arguments(f"helpers.bad_data_sets:{name}"), says)
    for name, says in {
        "float_images": r"float64 of shape .* give uint8 .*\(images \* 255\)\.round",
        "bool_images": r"bool of shape .* give uint8 .* \* 255",
        "images_with_nan": "float64 of shape",
        "channels_first": r"give uint8 .*Channels come last: images\.transpose\(0, 2, 3, 1\)",
        "four_channels": "give uint8 of shape",
        "images_of_two_sizes": "images of 'mine' are no array .* give a NumPy array",
        "object_images": "images of 'mine' are object .* Bring the images to one size",
        "masked_images": "images of 'mine' are masked in part",
        "images_without_pixels": "have no pixels",
        "no_images": "no training images",
        "float_labels": r"labels of 'mine' are float64 .* labels\.astype\(int\)",
        "labels_with_nan": "labels of 'mine' are float64",
        "text_labels": "labels of 'mine' are <U",
        "one_hot_labels": r"give one integer for each of the 40 .* labels\.argmax\(1\)",
        "column_of_labels": r"give one integer for each of the 40 .* labels\[:, 0\]",
        "fewer_labels": "give one integer for each of the 40 images",
        "negative_labels": "start at -1; count from 0",
        "huge_labels": "go up to 5,000,000,000; count from 0|go up to 5000000000",
        "sparse_labels": "go up to 9,000, but only 4 occur; number the classes from 0",
        "one_class": "'mine' has 1 class",
        "too_few_names": "labels up to 3, but 2 class names",
        "mean_of_bytes": r"mean of 'mine' is \(125.*scaled to 0",
        "mean_of_one": r"mean of 'mine' is \(0\.5,\)",
        "mean_of_text": "mean of 'mine' is half",
        "std_of_zero": r"std of 'mine' is \(0",
        "std_of_nan": r"std of 'mine' is \(nan",
        "held_out_all": "held_out of 'mine' is 1.0; give a fraction",
        "held_out_most": "leaves none to train on; make held_out smaller",
        "split_seed": "split_seed of 'mine' is -1",
        "shapes_of_splits": "images of different shapes",
        "no_test_split": "'mine' has no split 'test'",
        "no_classes": "num_classes of 'mine' is None",
        "flat_shape": r"image_shape of 'mine' is \(8, 8\)",
    }.items()
]
# These are read in the first batch, after the run directory was made.
BROKEN = [
    folder(f"image-{name}", says, {"pets/train/cat/0.png": data}, writes=True)
    for name, data, says in (
        ("cut-off", GOOD[: len(GOOD) // 2], r"train/cat/0\.png cannot be read \(.*\)\. Remove"),
        ("of-floats", tiff(1, 1, b"\0\0\x7f\x43", bits=32, form=3), "floats from 255 to 255"),
    )
]
ROWS = [*FOLDERS, *LINKS, *OWN, *BROKEN]
