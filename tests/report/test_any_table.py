"""What a report says on any table: no "None", "nan" or "inf", no empty interval, valid JSON."""

import json
import re

import numpy as np
import pandas
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bocb_jax.coupling.analysis import analyze
from bocb_jax.coupling.score_table import SCORES, ScoreTable
from bocb_jax.coupling.scores import from_frame
from bocb_jax.report import markdown, summary
from bocb_jax.report.heat_map_data import build_heat_map
from bocb_jax.report.more_runs import Sweep, more_runs
from bocb_jax.report.sections import build_document

OPTIMIZERS = ["sgd", "adamw", "lamb", "lion", "adagrad", "my_own"]
BACKBONES = ["resnet50", "vgg13_bn", "vit_s", "swin_t", "convnext_t", "mine", "mixer_s"]
STATUSES = ["diverged", "out_of_memory", "timed_out", "crashed", "not_reached"]
BAD = re.compile(
    r"\b(None|nan|NaN|inf|Infinity|null|True|False)\b|\(0(\.0+)? to 0(\.0+)?\)"
    r"|(?<![\d.])-0(\.0+)?(?![\d.])|\de\+\d|\de-[1-9]\d"  # -0.00, 1e+02, 1e-16
)


@st.composite
def tables(draw):
    """Tables of 1 x 1 to 6 x 7 cells: gaps, ties, constants, failures, one seed or several."""
    optimizers = OPTIMIZERS[: draw(st.integers(1, 6))]
    backbones = draw(st.permutations(BACKBONES))[: draw(st.integers(1, 7))]
    seeds = draw(st.sampled_from([1, 1, 2, 3]))
    kind = draw(st.sampled_from(["constant", "ties", "effects", "noise", "near the top"]))
    noise = draw(st.sampled_from([0.0, 0.1, 1.0, 10.0]))
    gaps, failing = (draw(st.sampled_from([0.0, 0.0, 0.2, 0.7])) for _ in range(2))
    score = draw(st.sampled_from(["test accuracy"] * 3 + ["train loss", "seconds"]))
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    means = np.full((len(optimizers), len(backbones)), 50.0)
    if kind in ("effects", "near the top"):
        means += rng.normal(0, 5, (len(optimizers), 1)) + rng.normal(0, 5, (1, len(backbones)))
        means += rng.normal(0, 5, means.shape) * draw(st.sampled_from([0, 1, 3]))
    if kind == "near the top":
        means = 99.5 - np.abs(means - 50) / 50
    if kind == "constant":
        noise = 0.0
    rows = []
    for o, optimizer in enumerate(optimizers):
        for b, backbone in enumerate(backbones):
            if rng.random() < gaps:
                continue
            for seed in range(seeds):
                value = means[o, b] + noise * rng.standard_normal()
                value = np.round(value) if kind == "ties" else value
                status = rng.choice(STATUSES) if rng.random() < failing else "finished"
                rows.append((backbone, optimizer, seed, float(np.clip(value, 0, 100)), status))
    frame = pandas.DataFrame(rows, columns=["backbone", "optimizer", "seed", "score", "status"])
    frame["score"] = frame["score"].where(frame["status"] == "finished")
    empty = ("spread", "learning_rate", "weight_decay", "train_loss", "train_accuracy")
    frame = frame.assign(**dict.fromkeys((*empty, "first_train_loss", "validation_score"), np.nan))
    frame["run"] = None
    unit, higher = SCORES.get(score, ("s", False))
    table = ScoreTable(
        runs=frame, trials=None, score=score, unit=unit, higher_is_better=higher, chance=None,
        source="made", noise=draw(st.sampled_from([None, None, 0.0, 0.5])),
    )  # fmt: skip
    positive = bool((frame["score"].dropna() > 0).all())
    if score == "seconds" and positive and draw(st.booleans()):
        table = table.logarithms()
    return table


def said(analysis):
    """Everything in words: terminal and Markdown."""
    found = [
        summary.data(analysis),
        *summary.verdict(analysis),
        *summary.statistics(analysis),
        *summary.warnings(analysis),
    ]
    found += [summary.backbone_sentence(analysis, name) for name in analysis.table.backbones]
    for wanted in more_runs(analysis, Sweep("study.toml", "runs", 0)):
        found += [wanted.sentence, wanted.command]
    page = markdown.render(build_document(analysis), build_heat_map(analysis))
    return [*found, *page.splitlines()]


def check(table):
    if not table.runs["score"].notna().any():
        return
    analysis = analyze(table, resamples=5)
    for line in said(analysis):
        assert not BAD.search(line), line
    text = json.dumps(analysis.to_dict(), allow_nan=False)
    assert not re.search(r'"[^"]*\b(None|nan|inf)\b[^"]*"', text)


def test_no_optimizer_on_most_backbones():
    """Then there is no portfolio."""
    cells = [
        ("vit_s", "sgd"), ("resnet50", "adamw"), ("vit_s", "adamw"), ("vgg13_bn", "lamb"),
        ("convnext_t", "lamb"), ("resnet50", "lion"), ("mine", "lion"),
    ]  # fmt: skip
    frame = pandas.DataFrame(cells, columns=["backbone", "optimizer"])
    table = from_frame(frame.assign(accuracy=50.0, seed=0))
    assert analyze(table, resamples=5).portfolio.empty
    check(table)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
def test_nothing_unknown_is_printed(table):
    check(table)


@pytest.mark.slow
@settings(max_examples=2000, deadline=None, suppress_health_check=list(HealthCheck))
@given(table=tables())
def test_nothing_unknown_is_printed_on_many_tables(table):
    check(table)
