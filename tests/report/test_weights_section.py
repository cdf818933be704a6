"""The section on weights: which runs it takes, what it says, in the page, JSON and Markdown."""

import html.parser
import json

import numpy as np
import pandas
import pytest
from helpers import synthetic_runs

from bocb_jax.__main__ import main as bocb
from bocb_jax.coupling.analysis import analyze
from bocb_jax.coupling.scores import from_results
from bocb_jax.patterns import cells
from bocb_jax.patterns.spectra import METRICS
from bocb_jax.report import write

BACKBONES = ["resnet50", "vgg13_bn", "vit_s", "swin_t"]
OPTIMIZERS = ["sgd", "adamw", "lamb", "lion", "adan", "</table><b>"]
FAILING = {(b, o) for b in range(4) for o in (0, b % 2 + 1)}
# The rule of outliers would mark further cells in columns with so few scores left.
RULE = "regret(50)"


def made_layers(table, failing=FAILING, number=12):
    """Return layers whose alpha is twice its initial value in failed cells, and half elsewhere."""
    random, rows = np.random.default_rng(0), []
    for b, backbone in enumerate(table.backbones):
        for o, optimizer in enumerate(table.optimizers):
            factor = 2 if (b, o) in failing else 0.5
            for depth in range(number):
                start = {f"{name}_init": 4 + random.random() for name in METRICS}
                own = {name: start[f"{name}_init"] * random.uniform(0.9, 1.1) for name in METRICS}
                own["alpha"] = start["alpha_init"] * factor * random.uniform(0.9, 1.1)
                rows.append(
                    {"source": f"{b}-{o}", "backbone": backbone, "optimizer": optimizer,
                     "layer": f"layer{depth}", "depth": depth, "init": "own", **own, **start}
                )  # fmt: skip
    return pandas.DataFrame(rows)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    frame = synthetic_runs.results(BACKBONES, OPTIMIZERS, rates=0, seeds=2, failing=FAILING)
    table = from_results(frame)
    analysis = analyze(table, rule=RULE, resamples=99)
    found = cells.summarize(analysis, made_layers(table))
    folder = tmp_path_factory.mktemp("out") / "report"
    written = write.write(analysis, folder, patterns=found, pictures=("ridges",))
    return analysis, found, written


class Cells(html.parser.HTMLParser):
    """Text of all table cells of a page."""

    def __init__(self, source):
        super().__init__()
        self.cells = [""]
        self.feed(source)

    def handle_starttag(self, tag, attributes):
        if tag in ("td", "th"):
            self.cells.append("")

    def handle_data(self, data):
        self.cells[-1] += data


def test_cells_and_optimizers_hold_medians_over_layers(made):
    _, found, _ = made
    layers = found.layers
    for _, row in found.cells.iterrows():
        own = layers[
            layers[["backbone", "optimizer"]].eq(row[["backbone", "optimizer"]]).all(axis=1)
        ]
        assert row["alpha"] == np.median(own["alpha"])
        assert row["layers"] == 12
    sgd = found.optimizers.loc["sgd"]
    own = layers[layers["optimizer"] == "sgd"]
    assert (sgd["n"], sgd["backbones"], sgd["failed"]) == (48, 4, 4)
    assert sgd["entropy"] == np.median(own["entropy"])
    assert sgd["above"] == np.mean(own["alpha"] > 6)
    assert list(found.optimizers.index)[-1] == "sgd"  # sorted by regret


def test_only_the_planted_metric_goes_with_failure(made):
    _, found, _ = made
    assert found.cells["failed"].sum() == len(FAILING)
    predictions = found.predictions
    assert predictions.at["alpha", "auc_out_of_family"] == 1
    assert predictions.at["alpha", "direction"] == "larger"
    (alpha,) = [line for line in found.sentences if line.startswith("Alpha")]
    assert "accompanies failure" in alpha
    assert "8 failed of 24 cells" in alpha
    (rank,) = [line for line in found.sentences if line.startswith("Stable rank")]
    assert "is not shown to go with failure" in rank
    assert "None of this is a prediction in time" in found.sentences[-1]


def test_page_json_and_markdown_say_the_same(made):
    _, found, written = made
    page = (written.folder / "index.html").read_text("utf-8")
    record = json.loads((written.folder / "report.json").read_text("utf-8"))["weights"]
    markdown = (written.folder / "report.md").read_text("utf-8").replace("\\", "")
    assert record["sentences"] == list(found.sentences)
    assert len(record["cells"]) == 24
    assert record["predictions"][0]["auc_out_of_family"] == 1
    cells = Cells(page).cells
    for row in record["optimizers"]:
        assert f"{row['alpha']:.2f}" in cells
        assert f"| {row['alpha']:.2f} | {row['alpha_init']:.2f} |" in markdown
    assert all(line in markdown for line in found.sentences)
    assert "</table><b>" not in page
    assert page.count("<svg") == 8  # alpha and entropy of every backbone
    assert page.count("<details><summary>Entropy over") == 4


def test_ridges_of_an_earlier_report_are_removed(made, tmp_path):
    analysis, found, _ = made
    first = write.write(analysis, tmp_path / "r", patterns=found, pictures=("ridges",))
    assert "pictures/ridges_alpha_3.svg" in first.files
    (tmp_path / "r/pictures/ridges_alpha_of_mine.svg").write_text("<svg/>")
    write.write(analysis, tmp_path / "r", pictures=())
    left = [path.name for path in (tmp_path / "r/pictures").iterdir()]
    assert left == ["ridges_alpha_of_mine.svg"]
    assert json.loads((tmp_path / "r/report.json").read_text("utf-8"))["weights"] is None


def test_too_few_failures_are_reported_as_such(made):
    frame = synthetic_runs.results(BACKBONES, OPTIMIZERS, rates=0, seeds=2, failing={(1, 0)})
    table = from_results(frame)
    found = cells.summarize(analyze(table, resamples=20), made_layers(table, {(1, 0)}))
    assert found.predictions is None
    assert found.to_dict()["predictions"] is None
    failed = found.cells["failed"].sum()
    assert failed < 5
    assert f"cannot be said from these data: {failed} failed of 24 cells" in found.sentences[1]


def test_the_median_run_with_a_checkpoint_represents_a_cell(tmp_path):
    frame = synthetic_runs.results(["a", "b"], ["sgd"], rates=0, seeds=3)
    frame.loc[frame["model"] == "b", "run"] = "../" + frame["run"]
    table = from_results(frame)
    assert cells.find_runs(table, tmp_path) == {}
    runs = table.runs[table.runs["backbone"] == "a"].sort_values("score")["run"].tolist()
    for run in runs:
        (tmp_path / run / "checkpoints/best").mkdir(parents=True)
        (tmp_path / run / "checkpoints/best/x").write_bytes(bytes(100))
    found = cells.find_runs(table, tmp_path)
    assert found == {("a", "sgd"): tmp_path / runs[1]}
    assert cells.checkpoint_bytes(found) == 100
    (tmp_path / runs[1] / "checkpoints").rename(tmp_path / "gone")
    assert cells.find_runs(table, tmp_path) == {("a", "sgd"): tmp_path / runs[2]}


@pytest.mark.parametrize("asked", ["auto", "yes", "no"])
def test_unreadable_weights_cost_the_section_but_not_the_report(asked, tmp_path, capsys):
    frame = synthetic_runs.results(["a", "b"], ["sgd", "adamw"], rates=0, seeds=1)
    frame.to_parquet(tmp_path / "results.parquet")
    for run in frame["run"]:
        (tmp_path / run / "checkpoints/best/7").mkdir(parents=True)
        (tmp_path / run / "config.json").write_text("no JSON")
    arguments = [str(tmp_path / "results.parquet"), "--patterns", asked, "--resamples", "20"]
    code = bocb(["analyze", *arguments, "--output", str(tmp_path / "report")])
    said = capsys.readouterr()
    assert code == (2 if asked == "yes" else 0)
    assert ("config.json cannot be read" in said.out + said.err) == (asked != "no")
    assert (tmp_path / "report/index.html").exists() == (asked != "yes")
