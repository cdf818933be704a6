"""Tables of scores: CSV and results, and the sentences on what is wrong with them."""

import dataclasses
import os

import numpy as np
import pandas
import pytest

from bocb_jax.coupling import scores
from bocb_jax.errors import UserError

LONG = "backbone,optimizer,seed,score\n"


@pytest.fixture
def read(tmp_path):
    def read(text, **arguments):
        path = tmp_path / "scores.csv"
        path.write_text(text, "utf-8")
        return scores.from_csv(path, **arguments)

    return read


def test_a_long_table(read):
    found = read(
        "# of a study\nbackbone,optimizer,seed,score,status,learning_rate\n"
        "vit,sgd,0,60,finished,0.1\nvit,sgd,1,62,,0.1\nvit,adamw,0,,diverged,1e-3\n"
        "resnet,sgd,0,,crashed,0.1\nresnet,adamw,0,80,,1e-3\n",
        chance=10.0,
    )
    nothing = pytest.approx(np.nan, nan_ok=True)  # a diverged run does not score at chance
    assert found.matrix().to_dict() == {
        "vit": {"sgd": 61.0, "adamw": nothing},
        "resnet": {"sgd": nothing, "adamw": 80.0},
    }
    assert found.counts().loc["sgd"].tolist() == [2, 0]
    assert found.failed().to_numpy().tolist() == [[False, True], [True, False]]
    assert not found.one_seed
    said = "2 of 5 runs did not finish (1 diverged, 1 crashed): they have no score."
    assert said in found.notes


def test_a_wide_table_reads_like_a_long_one(read):
    wide = read("optimizer,vit,resnet\nsgd,60,78\nadamw,diverged,\n")
    assert wide.matrix().loc["sgd"].tolist() == [60, 78]
    assert wide.matrix().loc["adamw"].isna().all()
    assert wide.failed().loc["adamw"].tolist() == [True, False]
    assert wide.one_seed


def test_published_tables_are_read_as_wide_ones(tmp_path):
    own = scores.from_published("cifar100").matrix()
    path = tmp_path / "own.csv"
    own.to_csv(path, index_label="optimizer")
    pandas.testing.assert_frame_equal(scores.from_csv(path).matrix(), own)


def test_fractions_are_shown_in_percent(read):
    found = read(LONG + "vit,sgd,0,0.6\nvit,adamw,0,0.75\n")
    assert found.matrix()["vit"].tolist() == [60, 75]
    assert any("fractions" in note for note in found.notes)


def test_losses_may_exceed_one_hundred(read):
    found = read(LONG + "vit,sgd,0,130\nvit,adamw,0,0.5\n", score="train loss")
    assert not found.higher_is_better
    assert found.unit == "nats"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG + "vit,sgd,0,60\nvit,sgd,0,61\n",
         r"line 3 repeats line 2: backbone vit, optimizer sgd, seed 0; keep one"),
        (LONG + "vit,sgd,0,good\n", r"Line 2: the score 'good' is not a number\."),
        (LONG + "vit,sgd,0,inf\n", "Line 2: the score is infinite"),
        ("backbone,optimizer,seed\nvit,sgd,0\n", "no column 'score'; its columns are: backbone"),
        ("optimizer,score\nsgd,0\n", "no column 'backbone'"),
        (LONG + "vit,sgd,0,173\n", r"line 2: an accuracy is between 0 and 100 percent"),
        (LONG + "vit,sgd,0,-3\nvit,adamw,0,50\n", r"line 2: an accuracy is between"),
        (LONG + "vit,sgd,0\n", "line 2: 3 values, but the first line names 4 columns"),
        (LONG + ",sgd,0,3\n", "Line 2 names no backbone"),
        (LONG, "holds no score"),
        ("", "holds no score"),
        (LONG + "vit,sgd,0,\n", "holds no score"),
        ("optimizer,vit,vit\nsgd,1,2\n", "two columns named 'vit'"),
        ("backbone,optimizer,score,status\nvit,sgd,60,blue\n", "no status 'blue'"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_in_a_sentence_that_names_the_line(read, text, message):
    with pytest.raises(UserError, match=message) as caught:
        read(text)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match=r"cannot be read: there is no such file"):
        scores.from_csv(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("optimizer,é\nsgd,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not text in UTF-8"):
        scores.from_csv(tmp_path / "latin.csv")
    with pytest.raises(UserError, match="no published table of scores 'cifar'"):
        scores.from_published("cifar")


def results(**columns):
    rows = [
        ("search", "vit", "sgd", 0, 0.1, "finished", 0.55, None, 2.0),
        ("search", "vit", "sgd", 0, 1.0, "diverged", None, None, None),
        ("final", "vit", "sgd", 1, 0.1, "finished", 0.54, 0.5, 2.1),
        ("final", "vit", "adamw", 1, 0.1, "diverged", None, None, None),
        ("final", "net", "sgd", 1, 0.1, "out_of_memory", None, None, None),
        ("final", "net", "adamw", 1, 0.1, "finished", 0.8, 0.75, 0.7),
    ]
    names = ["phase", "model", "optimizer", "seed", "learning_rate", "status",
             "validation_accuracy", "test_accuracy", "train_loss"]  # fmt: skip
    frame = pandas.DataFrame(rows, columns=names)
    return frame.assign(num_classes=10, dataset="digits", run="x", **columns)


def test_results_of_a_sweep():
    found = scores.from_results(results())
    matrix = found.matrix()
    assert matrix.loc["sgd", "vit"] == 50
    assert found.chance == 10
    assert matrix.isna().to_numpy().tolist() == found.failed().to_numpy().tolist()
    assert np.isnan(matrix.loc["adamw", "vit"])
    assert np.isnan(matrix.loc["sgd", "net"])
    nothing = pytest.approx(np.nan, nan_ok=True)
    assert found.trials["score"].tolist() == [pytest.approx(55), nothing]
    loss = scores.from_results(results(), "train loss")
    assert loss.matrix().loc["sgd", "vit"] == 2.1
    assert np.isnan(loss.matrix().loc["adamw", "vit"])
    odds = scores.from_results(results(), "log-odds")
    assert odds.matrix().loc["sgd", "vit"] == pytest.approx(0)


@pytest.mark.parametrize("name", ["cifar100", "imagenet"])
def test_published_accuracies_in_log_odds(name):
    found = scores.from_published(name, scale=scores.Scale(log_odds=True, noise=0.01, equal=0.1))
    assert (found.unit, found.noise, found.equal) == ("log-odds", 0.01, 0.1)
    share = scores.from_published(name).matrix() / 100
    np.testing.assert_allclose(found.matrix(), np.log(share / (1 - share)))
    with pytest.raises(UserError, match=r"Log-odds need accuracies .* a table of box AP"):
        scores.from_published("coco_box", scale=scores.Scale(log_odds=True))


def test_blank_rows_and_empty_statuses_of_results():
    frame = results().astype(object)
    frame.loc[len(frame)] = None
    frame.loc[2, "status"] = frame.loc[4, "status"] = frame.loc[0, "phase"] = None
    found = scores.from_results(frame)
    assert found.optimizers == ["sgd", "adamw"]
    assert found.backbones == ["vit", "net"]
    assert found.notes == (
        "1 blank row of the results left out.",
        "2 runs without a status: finished if it has results.",
        "1 run that did not end yet left out.",
        "1 of 4 runs did not finish (1 diverged): they have no score.",
    )


def test_another_column_of_results_as_the_metric():
    frame = results(seconds_to_target=[None, None, 30.0, None, None, 20.0])
    metric = scores.metric_of(name="seconds_to_target", unit="s")
    found = scores.from_results(frame, metric=metric)
    assert found.runs["status"].tolist() == ["finished", "diverged", "out_of_memory", "finished"]
    assert found.matrix().loc["sgd", "vit"] == 30
    assert not found.higher_is_better
    missed = scores.from_results(frame.assign(status="finished"), metric=metric)
    assert missed.failed().to_numpy().sum() == 2
    with pytest.raises(UserError, match="no column of figures 'speed'"):
        scores.from_results(frame, metric=scores.metric_of(name="speed"))


def test_runs_that_still_train_are_left_out():
    frame = results(status=["finished"] * 3 + ["unfinished", "finished", "finished"])
    found = scores.from_results(frame)
    assert not found.failed().to_numpy().any()
    assert "1 run that did not end yet left out." in found.notes


def test_what_counts_as_equal_follows_the_unit():
    table = scores.from_results(results())
    assert table.equal == 1
    assert table.within == (1, 2)
    assert table.log_odds().equal == 0.05
    assert dataclasses.replace(table, test_images=50, equal=np.nan).equal == 2
    seconds = dataclasses.replace(table, unit="s", higher_is_better=False, equal=np.nan)
    assert seconds.equal == 1.2  # 2 % of the median of 50 and 75, to two digits
    assert seconds.select(backbones=["vit"]).equal == seconds.equal
    ratios = seconds.logarithms()
    assert ratios.equal == 0.02
    assert (ratios.unit, ratios.measured_unit) == ("log-ratio", "s")
    pandas.testing.assert_frame_equal(ratios.measured(), seconds.matrix())
    with pytest.raises(UserError, match="Ratios need positive scores, and a test accuracy is 0"):
        dataclasses.replace(table, runs=table.runs.assign(score=0.0)).logarithms()


def test_the_spread_of_a_figure_follows_its_scale():
    table = dataclasses.replace(scores.from_results(results()), noise=0.2)
    odds, ratios = table.log_odds(), table.logarithms()
    assert odds.noise is ratios.noise is None
    # d ln(p / (1 - p)) = dp / (p (1 - p)), d ln p = dp / p, of 50 and of 75 percent.
    assert odds.runs["spread"].dropna().tolist() == pytest.approx([0.002 / 0.25, 0.002 / 0.1875])
    assert ratios.runs["spread"].dropna().tolist() == pytest.approx([0.2 / 50, 0.2 / 75])


def test_a_search_alone_is_a_table_with_a_note():
    frame = results()
    found = scores.from_results(frame[frame["phase"] == "search"])
    assert found.matrix().to_numpy().tolist() == [[pytest.approx(55)]]
    assert any("too good" in note for note in found.notes)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (results().iloc[:0], "There are no runs to analyse"),
        (results().assign(dataset=["a", "b"] * 3), "The runs are on 2 datasets: a, b; choose one"),
        (results().drop(columns="model"), "no column 'model'"),
        (pandas.concat([results(), results()]), "vit ran twice with sgd and seed 1"),
        (results(model=["vit", None] * 3), "Row 2 of the results names no model"),
        (results(model="a\x1b[2J"), "The results: the name of the model is not printable"),
        (results(status="blue"), "Row 1 of the results: there is no status 'blue'"),
        (results(test_accuracy=71.5),
         r"Row 1 of the results \(vit with sgd\) has the test_accuracy 71\.5; results hold "
         r"fractions between 0 and 1\. Divide percentages"),
        (results(validation_accuracy=np.inf), "has the validation_accuracy inf; results hold"),
        (results().assign(test_accuracy=None, validation_accuracy=None, status="crashed"),
         "No run has a test accuracy: 4 runs"),
    ],
)  # fmt: skip
def test_results_that_cannot_be_analysed(frame, message):
    with pytest.raises(UserError, match=message):
        scores.from_results(frame)


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "scores.csv")
    with pytest.raises(UserError, match="is no regular file"):
        scores.from_csv(tmp_path / "scores.csv")
