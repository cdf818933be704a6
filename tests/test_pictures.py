"""Drawings: shapes of known places, and which pictures of a run stay."""

import numpy as np
import pytest
from PIL import Image

from bocb_jax import pictures
from bocb_jax.pictures import COLORS, Canvas, captioned, in_rows


def black(width=400, height=300):
    return np.zeros((height, width, 3), np.uint8)


def test_a_box_is_where_it_is():
    canvas = Canvas(black())
    canvas.box((50, 60, 150, 200), "", 1)
    found = np.asarray(canvas.image)
    assert found.shape == (300, 400, 3)
    colored = (found == COLORS[1]).all(-1)
    rows, columns = np.flatnonzero(colored.any(1)), np.flatnonzero(colored.any(0))
    assert (rows[0], rows[-1], columns[0], columns[-1]) == (60, 200, 50, 150)
    assert colored[60, 50:151].all()
    assert colored[60:201, 150].all()
    assert not found[64:197, 54:147].any()  # the image shows through


@pytest.mark.parametrize(("width", "height"), [(2600, 1300), (16, 8)])
def test_large_images_shrink_and_small_ones_grow(width, height):
    canvas = Canvas(black(width, height), 1280)
    longer = 1280 if width > 1280 else 256
    assert canvas.image.size == (longer, longer // 2)
    canvas.box((width / 4, height / 4, width / 2, height / 2), "", 0)
    colored = (np.asarray(canvas.image) == COLORS[0]).all(-1)
    columns = np.flatnonzero(colored.any(0))
    assert (columns[0], columns[-1]) == (longer // 4, longer // 2)


def test_joints_and_limbs_are_where_they_are():
    canvas = Canvas(black())
    joints = np.array([[99.5, 49.5], [199.5, 49.5], [99.5, 249.5]])
    canvas.person(joints, np.array([True, True, False]), [(0, 1), (0, 2)], 2)
    found = (np.asarray(canvas.image) == COLORS[2]).all(-1)
    assert found[50, 100]  # pixel 99.5, counted by centers, is 100 by corners
    assert found[50, 150]  # the limb
    assert not found[70:].any()  # that of a joint that is not shown


@pytest.mark.parametrize("corners", [(np.nan,) * 4, (-1e9, -1e9, 1e9, 1e9), (9, 9, 3, 3)])
def test_odd_places_raise_nothing(corners):
    canvas = Canvas(black(30, 20))
    canvas.box(corners, "a\u4e2d", 100)
    canvas.person(np.array([[np.inf, np.nan]]), np.array([True]), [(0, 0)], 0)


def test_captions_and_tables_hold_everything():
    image = Image.fromarray(black(100, 50))
    labelled = captioned(image, ["a caption that is wider than the image is", "cat 90 %"])
    assert labelled.width > 100
    assert labelled.height > 50
    table = in_rows([(image, labelled), (labelled, image)], ("truth", "prediction"))
    assert table.width > 2 * labelled.width
    assert table.height > 2 * labelled.height


def test_the_latest_pictures_of_a_run_stay(tmp_path):
    folder = tmp_path / "pictures"
    (tmp_path / "pictures").mkdir()
    (folder / "mine.png").write_bytes(b"")
    for step in range(5, 5 * (pictures.KEPT + 4), 5):
        pictures.keep(folder, step, Image.fromarray(black(4, 4)))
    kept = [int(path.stem) for path in pictures.kept(folder)]
    assert len(kept) == pictures.KEPT
    assert kept == sorted(kept)
    assert kept[-1] == 5 * (pictures.KEPT + 3)
    assert (folder / "mine.png").exists()
    assert len(list(folder.iterdir())) == pictures.KEPT + 1
