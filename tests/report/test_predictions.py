"""Pictures of what nets find: that of the best run of each backbone, from folders of anybody."""

import numpy as np
import pytest
from helpers import synthetic_runs
from PIL import Image

from bocb_jax.coupling.analysis import analyze
from bocb_jax.coupling.scores import from_results
from bocb_jax.pictures import keep
from bocb_jax.report import write
from bocb_jax.report.plots import predictions

BACKBONES, OPTIMIZERS = ("resnet50", "vit_s"), ("sgd", "adamw", "lamb")


@pytest.fixture
def table():
    return from_results(synthetic_runs.results(BACKBONES, OPTIMIZERS, seeds=2))


def shade(value):
    return Image.new("RGB", (40, 30), (value, value, value))


def draw_all(table, workdir):
    """Two pictures of each run, the later one with a shade of its own; return those by run."""
    shades = {}
    for number, name in enumerate(table.runs["run"]):
        keep(workdir / name / "pictures", 9, shade(255))
        keep(workdir / name / "pictures", 10, shade(number))
        shades[name] = number
    return shades


def best(table, backbone):
    runs = table.runs[table.runs["backbone"] == backbone]
    return runs.loc[runs["score"].idxmax(), "run"]


def test_the_last_of_the_best_run_is_taken(table, tmp_path):
    shades = draw_all(table, tmp_path)
    found = predictions.read(table, tmp_path)
    assert list(found) == list(BACKBONES)
    for backbone in BACKBONES:
        assert found[backbone].shape == (30, 40, 3)
        assert (found[backbone] == shades[best(table, backbone)]).all()


def test_what_is_no_picture_is_left_out(table, tmp_path):
    draw_all(table, tmp_path)
    first, second = (tmp_path / best(table, name) / "pictures" for name in BACKBONES)
    (first / "11.png").write_bytes(b"no picture")
    Image.new("1", (5000, 4)).save(second / "12.png")
    assert predictions.read(table, tmp_path) == {}
    assert predictions.read(table, tmp_path / "nowhere") == {}


def test_a_report_shows_them(table, tmp_path):
    draw_all(table, tmp_path)
    analysis, out = analyze(table, resamples=20), tmp_path / "report"
    found = predictions.read(table, tmp_path)
    made = write.write(analysis, out, found_by=found, pictures=("predictions",))
    names = {f"pictures/predictions_{i}.{kind}" for i in (0, 1) for kind in ("svg", "png")}
    assert names <= set(made.files)
    page = (out / "index.html").read_text()
    assert "What the nets find" in page
    assert page.count("data:image/png;base64") == 2
    with Image.open(out / "pictures" / "predictions_0.png") as image:
        middle = np.asarray(image.convert("L"))[image.height // 2, image.width // 2]
    assert middle == found[BACKBONES[0]][0, 0, 0]
    write.write(analysis, out, pictures=("predictions",))  # of classification, say
    assert not list((out / "pictures").glob("predictions_*"))
    assert "What the nets find" not in (out / "index.html").read_text()
