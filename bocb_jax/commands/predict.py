"""What the net of a run finds in images: `bocb predict RUN IMAGE... [--json FILE] [--out FOLDER]`.

Classes with probabilities, boxes with scores, or the joints of persons, from the best weights of
the run. An image that cannot be read costs a sentence and, at the end, exit code 2; the others are
predicted.
"""

import argparse
import json
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image
from pydantic import Field

from bocb_jax import pictures
from bocb_jax.checked import Count, FilePath, Fraction, Text
from bocb_jax.command_line import Parser, path_of, value_of
from bocb_jax.commands.weights import recorded_entry
from bocb_jax.console import console
from bocb_jax.data.annotated import open_annotated
from bocb_jax.data.photo import Photo, photos_in, read_photo
from bocb_jax.data.registry import open_dataset
from bocb_jax.errors import UserError
from bocb_jax.prediction.given_boxes import GivenBoxes
from bocb_jax.prediction.predictors import Boxes, Found, Predictor, predictor
from bocb_jax.prediction.recorded import Record, unknown_data
from bocb_jax.run_files import read_config, read_data
from bocb_jax.storage.files import finite, write_atomically
from bocb_jax.storage.remote import RUN_FILES, local_copy
from bocb_jax.tasks.described import describe

_JOINT_SCORE = 0.2  # of the joints that are drawn, at least
_Top = Annotated[Count, Field(le=1000)]


def main(arguments: list[str]) -> int:
    """Predict as the command line says, and return the exit code.

    Raises:
      UserError: an option is wrong, or images could not be read; the others were predicted.
    """
    options = _parser().parse_args(arguments)
    logging.getLogger("absl").setLevel(logging.CRITICAL)  # Orbax's errors; ours is one sentence
    if options.json is not None and not options.json.absolute().parent.is_dir():
        raise UserError(f"{options.json} cannot be written: its folder does not exist.")
    paths = [path for given in options.images for path in photos_in(given)]
    targets = _targets(paths, options.out)
    with local_copy(options.run, is_file=lambda file: False, wanted=_is_needed) as folder:
        record = _record(Path(folder), options)
        model = predictor(record, top=options.top)
        given = None if options.boxes is None else GivenBoxes(options.boxes, options.min_score)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
        found, failed = [], 0
        for path, photo, result in _predictions(model, paths, given):
            found.append({"image": path, **result})
            if photo is None:
                failed += 1
                console.print(result["error"], markup=False, soft_wrap=True)
            elif options.out is not None:
                limbs = record.skeleton().limbs if record.task == "pose" else ()
                drawn = _drawn(photo, result, record.names, limbs, options.min_score)
                pictures.save(drawn, targets[len(found) - 1])
    text = json.dumps(finite(found), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    if options.json is None:
        sys.stdout.write(text)
    else:
        write_atomically(options.json, text)
    if failed:
        raise UserError(f"{failed} of {len(found)} images could not be read; see above.")
    return 0


def _parser() -> Parser:
    parser = Parser(
        prog="bocb predict",
        description="What the net of a run finds in images: classes, boxes or joints.",
    )
    parser.add_argument(
        "run", type=value_of(FilePath), metavar="RUN", help="a run directory; a path or a URL"
    )
    parser.add_argument(
        "images", type=value_of(FilePath), nargs="+", metavar="IMAGE",
        help="image files, or folders of them",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=path_of, metavar="FILE",
        help="write what was found to a file. Default: to standard output",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=path_of, metavar="FOLDER", help="also write a picture of each image there"
    )
    parser.add_argument(
        "--top", type=value_of(_Top), default=5, metavar="N",
        help="classes to name. Default: 5",
    )  # fmt: skip
    parser.add_argument(
        "--boxes", type=value_of(FilePath), metavar="FILE",
        help="the boxes of persons, for a pose net: what `bocb predict` wrote for a detector, or "
        "COCO's result format. Default: one person who fills the image",
    )  # fmt: skip
    parser.add_argument(
        "--min-score", type=value_of(Fraction), default=0.3, metavar="SCORE",
        help="of the boxes that are drawn, and of those taken from --boxes. Default: 0.3",
    )  # fmt: skip
    parser.add_argument(
        "--model", type=value_of(Text), metavar="PATH",
        help="the import path of the run's backbone, if it is one of yours; a run directory may "
        "come from somebody else, so the one in it is not followed",
    )  # fmt: skip
    parser.add_argument(
        "--data", type=value_of(FilePath), metavar="NAME",
        help="the run's data set, for a run of an earlier version, which does not describe it",
    )  # fmt: skip
    return parser


def _is_needed(file: Path) -> bool:
    """Whether a file of a run at a URL is read."""
    return "checkpoints/best/" in file.as_posix() or file.name in (*RUN_FILES, "dataset.json")


def _record(folder: Path, options: argparse.Namespace) -> Record:
    """Return the record of a run.

    Raises:
      UserError: it is no run, or does not say what it must.
    """
    stored = read_config(folder)
    if stored is None:
        raise UserError(f"{options.run} is not a run directory: there is no config.json in it.")
    config, task = stored["config"], stored["config"].get("task", "classification")
    if options.boxes is not None and task != "pose":
        raise UserError(f"--boxes is for a pose net; this run is one of {task[:60]}.")
    entry = recorded_entry(config["model"], options.model)
    data = read_data(folder)
    if options.data is not None:
        if task == "classification":
            data = describe(open_dataset(options.data))
        else:
            data = describe(open_annotated(options.data, task))
    elif data is None and "opt" in config:
        raise UserError(
            f"{options.run} was made by an earlier version and does not describe its data; give "
            "the name of the data set with --data, or run the command of the run again."
        )
    elif data is None:
        console.print(
            f"{options.run} holds imported weights: images are normalized as ImageNet's, and "
            "classes have numbers.",
            markup=False,
            soft_wrap=True,
        )
        data = unknown_data()
    return Record(folder, entry, config, stored.get("resolved") or {}, data)


def _targets(paths: Sequence[str], out: Path | None) -> list[Path]:
    """Return where the picture of each image is written; names that occur again get numbers.

    Raises:
      UserError: a picture would take the place of an image.
    """
    if out is None:
        return []
    taken: set[str] = set()
    targets = []
    for path in paths:
        stem, number = Path(path).stem, 1
        name = stem
        while name in taken:
            number += 1
            name = f"{stem}-{number}"
        taken.add(name)
        targets.append(out / f"{name}.png")
    images = {os.path.realpath(path) for path in paths}
    for target in targets:
        if os.path.realpath(target) in images:
            raise UserError(
                f"{target} is one of the images, and its picture would take its place; choose "
                "another --out."
            )
    return targets


def _predictions(
    model: Predictor, paths: Sequence[str], given: GivenBoxes | None
) -> Iterator[tuple[str, Photo | None, Found]]:
    """Yield what is found in each image, in order; of one that cannot be read, the "error"."""
    for first in range(0, len(paths), model.batch_size):
        batch = paths[first : first + model.batch_size]
        read = [_read(path, given) for path in batch]
        good = [each for each in read if not isinstance(each, str)]
        results = iter(_predict(model, good))
        for path, each in zip(batch, read, strict=True):
            result = each if isinstance(each, str) else next(results)
            if isinstance(result, str):
                yield path, None, {"error": result}
            else:
                assert not isinstance(each, str)
                yield path, each[0], result


def _read(path: str, given: GivenBoxes | None) -> tuple[Photo, Boxes | None] | str:
    """Return an image with the boxes of its persons, or the sentence why there is none."""
    try:
        return read_photo(path), None if given is None else given.of(path)
    except UserError as error:
        return str(error)


def _predict(model: Predictor, read: Sequence[tuple[Photo, Boxes | None]]) -> Sequence[Found | str]:
    """Return what is found in some images; of one that cannot be decoded, a sentence."""
    if not read:
        return []
    try:
        return model.predict([photo for photo, _ in read], [boxes for _, boxes in read])
    except UserError as error:
        if len(read) == 1:
            return [str(error)]
        return [result for each in read for result in _predict(model, [each])]


def _drawn(
    photo: Photo,
    found: Found,
    names: Sequence[str],
    limbs: Sequence[tuple[int, int]],
    min_score: float,
) -> Image.Image:
    """Return a picture of what is found in an image."""
    canvas = pictures.Canvas(photo.pixels())
    if "classes" in found:
        lines = [f"{each['class']}  {each['probability']:.1%}" for each in found["classes"]]
        return pictures.captioned(canvas.image, lines)
    for box in reversed(found.get("boxes", ())):  # the best on top
        if box["score"] >= min_score:
            left, top, width, height = box["bbox"]
            text = f"{box['category']} {box['score']:.0%}"
            corners = left, top, left + width, top + height
            canvas.box(corners, text, names.index(box["category"]))
    for color, person in enumerate(found.get("persons", ())):
        _draw_person(canvas, person, limbs, color)
    return canvas.image


def _draw_person(
    canvas: pictures.Canvas, person: dict[str, Any], limbs: Sequence[tuple[int, int]], color: int
) -> None:
    joints = np.array([[joint["x"], joint["y"]] for joint in person["joints"]])
    shown = np.array([joint["score"] >= _JOINT_SCORE for joint in person["joints"]])
    canvas.person(joints, shown, limbs, color)
