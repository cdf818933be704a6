"""The report as files: three formats with the same content, escaped, self-contained."""

import collections
import html.parser
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import synthetic_runs

from bocb_jax.coupling import curves, recommend
from bocb_jax.coupling.analysis import analyze
from bocb_jax.coupling.scores import from_published, from_results
from bocb_jax.errors import UserError
from bocb_jax.report import advice, plots, summary, write

ROOT = Path(__file__).parents[2]
EVIL = '<img src=x onerror="document.title=`hacked`">'
BACKBONES = ["resnet_mini", "vit_mini", "swin_mini", EVIL]
OPTIMIZERS = ["sgd", "adamw", "lamb", "</script><script>alert(1)</script>"]


class Page(html.parser.HTMLParser):
    """Elements of a page with their attributes, and its text."""

    def __init__(self, source):
        super().__init__()
        self.elements, self.text = [], []
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report on runs with malicious names, a failed cell and training curves."""
    workdir = tmp_path_factory.mktemp("runs")
    frame = synthetic_runs.results(BACKBONES, OPTIMIZERS, seeds=2, failing={(1, 0)})
    synthetic_runs.write_curves(frame, workdir)
    table = from_results(frame)
    analysis = analyze(table, resamples=50)
    folder = tmp_path_factory.mktemp("out") / "report"
    found = curves.read(table, workdir)
    drawn = ("heat_map", "shares", "training_curves")
    return analysis, write.write(analysis, folder, curves=found, pictures=drawn), found


def read(made, name):
    return (made[1].folder / name).read_text("utf-8")


def embedded(source):
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', source, re.S)[1]
    )


def test_the_page_fetches_nothing(made):
    page = Page(read(made, "index.html"))
    for tag, attributes in page.elements:
        for name in ("src", "href", "action", "data", "srcset", "poster"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, (tag, name, value)
        assert tag not in ("iframe", "object", "embed", "base", "form")
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy.partition("script-src")[2]
    styles = re.findall(r"<style.*?</style>", read(made, "index.html"), re.S)
    assert not re.search(r"@import|url\((?!#)", "".join(styles))


def test_names_never_become_markup(made):
    source = read(made, "index.html")
    page = Page(source)
    assert not [tag for tag, _ in page.elements if tag == "img"]
    assert [tag for tag, _ in page.elements].count("script") == 2
    assert not [a for _, a in page.elements if any(name.startswith("on") for name in a)]
    assert EVIL in "".join(page.text)
    assert EVIL in embedded(source)["backbones"]
    markdown = read(made, "report.md")
    assert "<img" not in markdown
    assert "<script" not in markdown


def test_json_and_page_hold_the_same(made):
    analysis, _, found = made
    record = json.loads(read(made, "report.json"))
    assert record["verdict"] == summary.verdict(analysis)
    assert [row["backbone"] for row in record["backbones"]] == analysis.table.backbones
    assert {"sentence", "use", "avoid", "freedom", "word", "median", "largest"} <= set(
        record["backbones"][0]
    )
    guide = (ROOT / "docs/guides/analyze.md").read_text("utf-8")
    assert not [key for key in record if f"`{key}`" not in guide]
    assert set(analysis.warnings) <= set(record["warnings"])
    data = embedded(read(made, "index.html"))
    scores = analysis.table.matrix()
    for o, optimizer in enumerate(data["optimizers"]):
        for b, backbone in enumerate(data["backbones"]):
            shown = data["measures"][0]["values"][o][b]
            score = scores.at[optimizer, backbone]
            assert shown == (None if np.isnan(score) else pytest.approx(score, rel=1e-6))
            facts = dict(data["cells"][o][b]["facts"])
            finished = not np.isnan(score)
            assert facts["n"] == ("2" if finished else "0")
            assert facts.get("seeds") == ("0, 1" if finished else None)
            assert float(facts["learning rate"]) == pytest.approx(1e-3)
            curve = data["cells"][o][b]["curve"]
            assert len(curve["x"]) <= curves.POINTS
    text = "".join(Page(read(made, "index.html")).text)
    markdown = read(made, "report.md").replace("\\", "").replace("&lt;", "<")
    for line in record["verdict"]:
        assert line in text
        assert line in markdown
    assert len(found.groupby(["backbone", "optimizer"])) == scores.size


def test_failed_cells_are_grey_and_the_rule_is_named(made):
    analysis, _, _ = made
    data = embedded(read(made, "index.html"))
    o, b = data["optimizers"].index("sgd"), data["backbones"].index("vit_mini")
    assert data["measures"][0]["colours"][o][b] == "failed"
    assert ["diverged", "2 of 2 runs"] in data["cells"][o][b]["facts"]
    text = "".join(Page(read(made, "index.html")).text)
    assert f"Outliers by {analysis.outliers.rule}" in text
    assert analysis.outliers.description in text


def test_cells_with_one_seed_are_marked_if_others_have_more(tmp_path):
    frame = synthetic_runs.results(["a", "b", "c"], ["sgd", "adamw", "lamb"], rates=0, seeds=2)
    single = (frame["model"] == "a") & (frame["optimizer"] == "sgd") & (frame["seed"] == 1)
    analysis = analyze(from_results(frame[~single]), resamples=20)
    write.write(analysis, tmp_path / "r", pictures=())
    data = embedded((tmp_path / "r" / "index.html").read_text("utf-8"))
    o, b = data["optimizers"].index("sgd"), data["backbones"].index("a")
    marked = [text for line in data["measures"][0]["texts"] for text in line if "°" in text]
    assert marked == [data["measures"][0]["texts"][o][b]]
    assert dict(data["cells"][o][b]["facts"])["n"] == "1"


def test_a_report_replaces_a_report_and_nothing_else(made, tmp_path):
    analysis = made[0]
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(UserError, match="no report of this program"):
        write.write(analysis, folder)
    assert [path.name for path in folder.iterdir()] == ["thesis.tex"]
    (folder / "report.json").write_text('{"made_by": "someone else"}')
    with pytest.raises(UserError, match="no report of this program"):
        write.check_folder(folder)
    file = tmp_path / "file"
    file.write_text("x")
    with pytest.raises(UserError, match="is a file"):
        write.check_folder(file)
    assert write.check_folder(tmp_path / "new") is False
    assert write.check_folder(made[1].folder) is True


def test_pictures_that_a_new_report_lacks_are_removed(tmp_path):
    frame = synthetic_runs.results(["a", "b", "c"], ["sgd", "adamw", "lamb"], rates=0, seeds=1)
    analysis, folder = analyze(from_results(frame), resamples=20), tmp_path / "r"
    first = write.write(analysis, folder, pictures=("shares", "regret"))
    assert "pictures/regret.svg" in first.files
    (folder / "pictures" / "my_own.svg").write_text("<svg/>")
    second = write.write(analysis, folder, pictures=("shares",))
    assert second.replaced
    left = {f"pictures/{path.name}" for path in (folder / "pictures").iterdir()}
    assert left == {"pictures/shares.svg", "pictures/shares.png", "pictures/my_own.svg"}
    assert left >= {name for name in second.files if "/" in name}


def test_sentences_on_the_published_table():
    analysis = analyze(from_published("cifar100"), resamples=20)
    text = summary.backbone_sentence(analysis, "R-50")
    # From Table 1: AdaBelief 80.53, NovoGrad 79.36, SGDP 79.25, ..., Adan 77.08, AdaGrad 73.30.
    assert text.startswith(
        "R-50: AdaBelief, NovoGrad or SGDP (within 1.3); Adan, the best elsewhere, costs 3.5 here; "
        "avoid AdaGrad (7.2 behind), RMSProp (6.3)"
    )
    advice = recommend.recommend(analysis.table, "R-50")
    assert advice.choices[0].optimizer == "AdaBelief"
    assert not re.search(
        r"\b(because of|causes?|due to|leads to)\b", " ".join(summary.verdict(analysis))
    )


@pytest.mark.parametrize("runs", [600, pytest.param(10_000, marks=pytest.mark.slow)])
def test_page_size(runs, tmp_path):
    side, rates, seeds = (5, 4, 20) if runs == 600 else (20, 20, 5)
    frame = synthetic_runs.results(
        [f"backbone{i}" for i in range(side)], [f"optimizer{i}" for i in range(side)],
        rates=rates, seeds=seeds, failing={(1, 3), (2, 3)},
    )  # fmt: skip
    assert len(frame) >= runs
    synthetic_runs.write_curves(frame, tmp_path / "runs", evaluations=200 if runs > 600 else 20)
    table = from_results(frame)
    analysis = analyze(table)
    found = curves.read(table, tmp_path / "runs")
    drawn = plots.NAMES if runs > 600 else ("heat_map", "sensitivity", "training_curves")
    written = write.write(analysis, tmp_path / "report", curves=found, pictures=drawn)
    assert written.page_bytes < 15e6


def test_each_backbone_is_judged_once_for_a_report(tmp_path, monkeypatch):
    analysis = analyze(from_published("imagenet"), resamples=2)
    judged = collections.Counter()

    def counting(function):
        def called(found, name):
            judged[function.__name__, name] += 1
            return function(found, name)

        return called

    monkeypatch.setattr(advice, "advise", counting(advice.advise))
    monkeypatch.setattr(recommend, "recommend", counting(recommend.recommend))
    write.write(analysis, tmp_path / "report", pictures=())
    assert len(judged) == 2 * len(analysis.table.backbones)
    assert set(judged.values()) == {1}
