"""Tables of any form: one table written in many ways reads the same; others in a sentence."""

import itertools
import json

import numpy as np
import pandas
import pytest
from helpers.score_tables import sweep_results
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bocb_jax.coupling import scores
from bocb_jax.coupling.scores import Columns, Scale, from_results, metric_of
from bocb_jax.errors import UserError

BACKBONES, OPTIMIZERS = ["resnet18", "vit_s", "convnext_t"], ["sgd", "adamw", "lion", "adan"]
MEANS = np.array([[70.2, 72.4, 76.4], [72.0, 73.7, 78.4], [74.5, 76.5, 80.1], [73.1, 74.0, 79.3]])


def long_frame(seeds=3):
    """One row a run: optimizers x backbones x seeds."""
    rows = [
        (BACKBONES[b], OPTIMIZERS[o], s, round(MEANS[o, b] + 0.1 * s, 2))
        for o, b, s in itertools.product(range(4), range(3), range(seeds))
    ]
    return pandas.DataFrame(rows, columns=["backbone", "optimizer", "seed", "score"])


def wide_frame(percent="{:.1f}"):
    """Texts of means, optimizers down and backbones across."""
    cells = [[percent.format(value) for value in row] for row in MEANS]
    return pandas.DataFrame(cells, index=pandas.Index(OPTIMIZERS, name="optimizer"),
                            columns=BACKBONES)  # fmt: skip


@pytest.fixture
def read(tmp_path):
    def read(content, **options):
        path = tmp_path / "scores"
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content, "utf-8")
        return scores.from_file(path, **options)

    return read


def separated(frame, separator, decimal, header):
    names = {"lower": str.lower, "title": str.title, "upper": str.upper}[header]
    return frame.rename(columns=names).to_csv(sep=separator, decimal=decimal, index=False)


LONG = {
    "semicolons": lambda frame: frame.to_csv(sep=";", index=False),
    "decimal commas": lambda frame: frame.to_csv(sep=";", decimal=",", index=False),
    "quoted commas": lambda frame: frame.to_csv(decimal=",", index=False, quoting=1),
    "tabs": lambda frame: frame.to_csv(sep="\t", index=False),
    "Excel": lambda frame: ("sep=;\n" + frame.to_csv(sep=";", index=False)).encode("utf-16"),
    "byte order mark": lambda frame: frame.to_csv(index=False).encode("utf-8-sig"),
    "comments": lambda frame: "# mine\n\n" + frame.to_csv(index=False).replace("\n", "\n\n"),
    "index": lambda frame: frame.to_csv(),
    "records": lambda frame: frame.to_json(orient="records"),
    "JSON lines": lambda frame: frame.to_json(orient="records", lines=True),
    "columns": lambda frame: frame.to_json(),
    "lists": lambda frame: json.dumps(frame.to_dict("list")),
    "split": lambda frame: frame.to_json(orient="split"),
    "JSON index": lambda frame: frame.to_json(orient="index"),
    "no seeds": lambda frame: frame.drop(columns="seed").to_csv(index=False),
    "percent signs": lambda frame: frame.assign(score=frame["score"].map("{} %".format)).to_csv(),
    "fractions": lambda frame: frame.assign(score=frame["score"] / 100).to_csv(index=False),
    "shuffled columns": lambda frame: frame[["score", "seed", "optimizer", "backbone"]].to_csv(),
    "W&B": lambda frame: frame.set_axis(["model", "opt", "seed", "test/acc"], axis=1)
        .assign(Name="sunny", State="finished", Runtime=3).to_csv(index=False),
    "MLflow": lambda frame: frame.set_axis(
        ["params.model", "params.optimizer", "params.seed", "metrics.test_acc"], axis=1
    ).assign(status="FINISHED", run_id="a1", start_time="now").to_csv(index=False),
    "W&B's API": lambda frame: pandas.DataFrame({
        "summary": [str({"test_acc": value, "_runtime": 3}) for value in frame["score"]],
        "config": [str({"arch": b, "optim": o, "seed": s})
                   for b, o, s in frame[["backbone", "optimizer", "seed"]].to_numpy()],
        "name": "sunny",
    }).to_csv(),
    "nested": lambda frame: json.dumps([
        {"config": {"model": row.backbone, "opt": {"name": row.optimizer}, "seed": row.seed},
         "summary": {"test": {"acc": row.score}}} for row in frame.itertuples()
    ]),
}  # fmt: skip


@pytest.mark.parametrize("form", LONG)
def test_every_long_form_reads_to_the_same_table(read, form):
    frame = long_frame()
    found = read(LONG[form](frame))
    expected = scores.from_frame(frame)
    assert found.score == "test accuracy"
    pandas.testing.assert_frame_equal(found.matrix(), expected.matrix())
    assert (found.counts() == 3).to_numpy().all()
    assert "3 seeds" in found.described


@pytest.mark.parametrize(
    ("separator", "decimal", "header"),
    list(itertools.product(",;\t", ".,", ["lower", "title", "upper"])),
)
def test_separators_decimal_signs_and_cases(read, separator, decimal, header):
    found = read(separated(long_frame(), separator, decimal, header))
    np.testing.assert_allclose(found.matrix().to_numpy(), MEANS + 0.1)


CELL_FORMS = ["{:.1f}", "{:.1f}%", "{:.1f} ± 0.2", "{:.1f}+-0.2", "**{:.1f}**", "{:.1f} (0.2)",
              r"${:.1f} \pm 0.2$", "{:.1f} +/- 0.2 %"]  # fmt: skip


@pytest.mark.parametrize("separator", [",", ";", "\t"])
@pytest.mark.parametrize("cell", CELL_FORMS)
@pytest.mark.parametrize("turned", [False, True])
def test_every_wide_form_reads_to_the_same_table(read, separator, cell, turned):
    frame = wide_frame(cell)
    if turned:
        frame = frame.T.rename_axis("model")
    found = read(frame.to_csv(sep=separator))
    np.testing.assert_allclose(found.matrix().loc[OPTIMIZERS, BACKBONES].to_numpy(), MEANS)
    spread = 0.2 if "0.2" in cell else np.nan
    assert found.runs["spread"].tolist() == [pytest.approx(spread, nan_ok=True)] * 12
    across = "optimizers across (4 columns)" if turned else "backbones across (3 columns)"
    assert across in found.described


def test_known_names_tell_which_axis_is_which(read):
    frame = wide_frame().rename_axis(None)
    for found in (read(frame.to_csv()), read(frame.T.to_csv()), read(frame.T.to_json())):
        np.testing.assert_allclose(found.matrix().loc[OPTIMIZERS, BACKBONES].to_numpy(), MEANS)
    odd = pandas.DataFrame([[70.0, 71.0], [60.0, 65.0]], index=["mine", "yours"],
                           columns=["left", "right"])  # fmt: skip
    with pytest.raises(UserError, match=r"give --optimizer-column '', else --backbone-column ''\."):
        read(odd.to_csv())
    found = read(odd.to_csv(), columns=Columns(backbone=""))
    assert found.backbones == ["mine", "yours"]


def test_parquet_long_and_wide(tmp_path):
    long_frame().to_parquet(tmp_path / "long.parquet")
    wide_frame().to_parquet(tmp_path / "wide.parquet")
    for name in ("long.parquet", "wide.parquet"):
        found = scores.from_file(tmp_path / name)
        assert found.matrix().shape == (4, 3)
    results = long_frame().assign(model="a", phase="final", test_accuracy=1.0, status="x")
    with pytest.raises(UserError, match="is a table of results of bocb sweep: read it with"):
        scores.from_frame(results)


def test_rows_and_columns_that_sum_up_are_left_out(read):
    frame = wide_frame()
    frame.loc["mean"] = frame.iloc[0]
    found = read(frame.assign(category="a", Avg="70").to_csv())
    assert found.matrix().shape == (4, 3)
    assert found.notes == ("Left out: 'category', 'Avg', 'mean'.",)


def test_a_table_with_other_names_says_what_it_took_for_what(read):
    found = read("arch,solver,acc,std\nvit,sgd,70,0.3\nvit,adamw,72,0.2\n",
                 columns=Columns(optimizer="Solver"))  # fmt: skip
    assert found.described == (
        "2 rows: backbone = arch, optimizer = solver, score = acc (percent, ± its spread), "
        "1 figure a cell"
    )
    assert found.runs["spread"].tolist() == [0.3, 0.2]
    only = read("model,optimizer,CIFAR-100 (%)\nvit,sgd,70\nvit,adamw,72\n")
    assert "score = CIFAR-100 (%) (percent)" in only.described
    validated = read("model,optimizer,val_acc\nvit,sgd,70\nvit,adamw,72\n")
    assert validated.score == "validation accuracy"


def test_each_column_is_in_percent_or_in_fractions(read):
    found = read("model,opt,acc,val_acc,train_acc\na,sgd,71,0.7,1\na,lion,72,0.71,0.9\n")
    assert found.runs["score"].tolist() == [71, 72]
    assert found.runs["validation_score"].tolist() == [70, 71]
    assert found.runs["train_accuracy"].tolist() == [100, 90]
    average = read("model,opt,AP\na,sgd,0.38\na,lion,0.4\n", metric=metric_of(name="AP"))
    assert average.runs["score"].tolist() == [38, 40]
    assert (average.unit, average.equal) == ("AP", 1)


def test_words_in_place_of_scores_and_statuses(read):
    found = read(
        "model,optimizer,seed,acc,state\na,sgd,0,70,ok\na,sgd,1,,failed\na,adamw,0,OOM,\n"
        "a,adamw,1,N/A,nan\na,lion,0,-,\na,lion,1,71,FINISHED\na,adan,0,72,running\n"
    )
    statuses = found.runs.set_index(["optimizer", "seed"])["status"].to_dict()
    assert statuses == {
        ("sgd", 0): "finished", ("sgd", 1): "crashed", ("adamw", 0): "out_of_memory",
        ("adamw", 1): "diverged", ("lion", 1): "finished",
    }  # fmt: skip
    assert "The status 'failed' is taken for crashed (1 run)." in found.notes
    assert "1 row without a score or a status left out." in found.notes
    assert "1 run that did not end yet left out." in found.notes


def test_rows_that_differ_in_settings_are_a_search(read):
    found = read(
        "backbone,optimizer,seed,lr,score\na,sgd,0,0.1,70\na,sgd,1,0.10000000149,71\n"
        "a,sgd,0,0.2,75\na,sgd,1,0.2,60\na,adam,0,0.1,diverged\na,adam,0,0.2,72\n"
    )
    assert found.matrix()["a"].tolist() == [70.5, 72]  # 75 and 60 have a lower mean
    assert found.trials["score"].count() == 5
    assert any("they are a search" in note for note in found.notes)
    assert found.described.endswith("1 to 2 seeds, the best of 6 trials")


def test_a_row_per_epoch_is_not_a_seed(read):
    with pytest.raises(UserError, match="has a row per epoch of each run: keep the row of the"):
        read("model,optimizer,epoch,acc\na,sgd,1,70\na,sgd,2,72\na,adam,1,71\na,adam,2,73\n")


TIMES = "optimizer,fastmri,wmt,ogbg\nnadamw,1800.8,,\nlion,1394.2,15475.6,7224\nmuon,1869.8,inf,\n"


def test_times_are_censored_and_compared_as_ratios(read):
    found = read(TIMES, metric=metric_of(name="time to target", unit="s"))
    assert not found.higher_is_better
    assert found.relative
    assert found.failed().sum().tolist() == [0, 2, 2]
    assert (found.unit, found.measured_unit) == ("log-ratio", "s")
    assert found.measured().loc["lion", "ogbg"] == pytest.approx(7224)
    regret = found.goodness().max() - found.goodness()
    assert np.exp(regret.at["nadamw", "fastmri"]) == pytest.approx(1800.8 / 1394.2)
    assert "(s, lower is better, empty: not reached)" in found.described
    plain = read(TIMES.replace("inf", ""), metric=metric_of(name="time", not_reached=False),
                 scale=Scale(relative=False, equal=30))  # fmt: skip
    assert not plain.failed().to_numpy().any()
    assert (plain.unit, plain.equal, plain.matrix().loc["lion", "wmt"]) == ("time", 30, 15475.6)


def test_perplexities_are_compared_as_they_are(read):
    text = "backbone,optimizer,score\nlstm_1,sgd,85.1\nlstm_1,adam,84.3\nlstm_2,sgd,67.4\n"
    found = read(text, metric=metric_of(name="perplexity"), scale=Scale(noise=0.5))
    assert (found.higher_is_better, found.relative, found.unit) == (False, False, "perplexity")
    assert found.equal == 1.5  # 2 % of the median of 84.3 and 67.4
    assert found.noise == 0.5
    ratios = read(text, metric=metric_of(name="perplexity"), scale=Scale(relative=True, noise=0.1))
    assert ratios.noise == pytest.approx(np.log(1.1))


@pytest.mark.parametrize(
    ("name", "unit", "higher", "censored"),
    [("test error", None, False, False), ("mIoU", None, True, False), ("FID", None, False, False),
     ("steps to target", "steps", False, True), ("AP", None, True, False),
     ("images_per_second", None, True, False), ("samples/sec", None, True, False),
     ("it/s", None, True, False), ("epochs per hour", "1/h", True, False),
     ("seconds per epoch", None, False, True), ("epoch seconds", None, False, True)],
)  # fmt: skip
def test_names_tell_the_direction_of_a_metric(name, unit, higher, censored):
    found = metric_of(name=name, unit=unit)
    assert (found.higher_is_better, found.censored) == (higher, censored)
    assert metric_of(name=name, unit=unit, higher_is_better=not higher).higher_is_better != higher


def test_a_scale_of_log_odds_is_one_whatever_the_score_is_called(read):
    text = "backbone,optimizer,score\na,sgd,70\na,adam,71\n"
    found = read(text, scale=Scale(log_odds=True))
    pandas.testing.assert_frame_equal(found.runs, read(text, score="log-odds").runs)
    assert found.unit == "log-odds"
    frame = sweep_results()
    assert from_results(frame, scale=Scale(log_odds=True)).unit == "log-odds"
    with pytest.raises(UserError, match="Log-odds need accuracies"):
        from_results(frame, "train loss", scale=Scale(log_odds=True))


def test_a_table_of_ninety_thousand_cells_is_read_as_it_is(read):
    names = [f"n{i}" for i in range(300)]
    values = np.random.default_rng(0).uniform(60, 80, (300, 300)).round(2)
    frame = pandas.DataFrame(values, index=pandas.Index(names, name="optimizer"), columns=names)
    found = read(frame.to_csv())
    np.testing.assert_allclose(found.matrix().to_numpy(), values)


def test_a_column_of_long_texts_is_passed_over(read):
    found = read(f"backbone,optimizer,score,config\na,sgd,70,{'x' * 200_000}\na,adam,71,\n")
    assert found.matrix()["a"].tolist() == [70, 71]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model,optimizer,test_error\na,sgd,5\n", "--metric 'test_error' for a metric of another"),
        ("model,optimizer,cifar10,cifar100\na,sgd,75,3\n", "figures: cifar10, cifar100"),
        ("model,Model,optimizer,score\na,b,sgd,5\n", "columns model and Model; say which one"),
        ("optimizer,vit,res\nsgd,70.1(3),71\n", r"Line 2: the score '70.1\(3\)' is not a number"),
        ("optimizer,vit,res\nsgd,70,1,71,2\n", "If commas are decimal, separate the columns with"),
        ("optimizer,vit\nsgd\x1b[2J,70\n", "Line 2: the name of the optimizer is not printable"),
        ("optimizer,vit\n" + "s" * 300 + ",70\n", "at most 200 characters"),
        ("backbone,optimizer,score\na,sgd,diverged\n", "holds no score"),
        ("backbone,optimizer,score\na,sgd,1e300\n", "the score is too large"),
        ("backbone,optimizer,score,dataset\na,sgd,70,x\na,sgd,71,y\n", "on 2 datasets: x, y"),
        ("[]", "its list of records is empty"),
        ("[1, 2]", "no list of records"),
        ("[" * 100_000, "nested too deeply"),
        ('[{"score": 1, "score": 2}]', "names a key twice"),
        ('{"a": 1}\n{"a": ', "line 2"),
        ('{"a": [1], "b": [1, 2]}', "columns have different lengths"),
        ('{"columns": ["a"], "data": [[1, 2]]}', "its rows do not fit its columns"),
        ('[{"backbone": "a", "optimizer": "b", "score": true}]', "Record 1: the score 'True'"),
        (b"PK\x03\x04...", "is an archive or an Excel workbook"),
        (b"\x1f\x8b...", "is compressed"),
        (b"PAR1 and more", "is not a Parquet file"),
        (b"\xff\xfe\x00\xd8\x00", "not text"),
    ],
)  # fmt: skip
def test_what_cannot_be_read_is_refused_in_a_sentence(read, content, message):
    with pytest.raises(UserError, match=message) as caught:
        read(content)
    assert "\n" not in str(caught.value)


def test_a_small_file_cannot_fill_the_memory(tmp_path):
    long = pandas.DataFrame({"backbone": ["x" * 1_000_000] * 2000, "optimizer": "o", "score": 1.0})
    long.to_parquet(tmp_path / "bomb.parquet")
    assert (tmp_path / "bomb.parquet").stat().st_size < 1_000_000
    with pytest.raises(UserError, match="has more than 256 MiB of values"):
        scores.from_file(tmp_path / "bomb.parquet")


def test_nothing_in_a_cell_is_executed(read, tmp_path):
    call = f"__import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()"
    for cell in (call, "{'a': " + call + "}"):
        frame = pandas.DataFrame({"config": [cell], "model": "a", "optimizer": "b", "score": 70})
        assert read(frame.to_csv(index=False)).matrix().to_numpy() == 70
    assert not (tmp_path / "made").exists()


FIGURES = st.one_of(
    st.floats(0, 100).map("{:.2f}".format),
    st.floats(0, 100).map("{:.1f} ± 0.2".format),
    st.sampled_from(["", "-", "N/A", "nan", "diverged", "OOM", "71 (0.1)", "71 %", "0", "1e5"]),
)  # fmt: skip
ODD = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True).map(str),
    st.floats(0, 100).map("{:.2f}".format).map(lambda text: text.replace(".", ",")),
    st.sampled_from(
        ["x", "True", "1,234", "1.234,5", "{", "'", '"', "± 3", "()", "%", "#", "\x1b"]
    ),
    st.text(max_size=6),
)
NAMES = {
    "backbone": st.sampled_from(["a", "b", "vit", "R-50"]),
    "optimizer": st.sampled_from(["sgd", "adamw", "lion", "mine"]),
    "seed": st.sampled_from(["0", "1", "2", ""]),
    "status": st.sampled_from(["", "finished", "failed", "nan", "running"]),
}
KNOWN = ["lr", "std", "vit", "sgd", "mean", "dataset", "epoch", "config", "train_loss", "val_acc"]


@st.composite
def tables(draw):
    """Text of a long or wide table, with a few cells and headers that do not belong."""
    header = draw(st.sampled_from([
        ["backbone", "optimizer", "score"], ["model", "opt", "acc", "seed"],
        ["optimizer", "a", "b"],
        ["score", "status", "optimizer", "backbone"], ["arch", "sgd", "adamw"], ["", "sgd", "lion"],
        ["model", "optimizer", "loss", "seed", "status"], ["opt", "seed", "vit", "R-50"],
    ]))  # fmt: skip
    further = draw(st.lists(st.one_of(st.sampled_from(KNOWN), st.text(max_size=5)), max_size=2))
    header = list(dict.fromkeys([*header, *further])) if draw(st.booleans()) else header
    roles = {"model": "backbone", "arch": "backbone", "opt": "optimizer", "": "optimizer"}
    kinds = [NAMES.get(roles.get(name, name), FIGURES) for name in header]
    rows = [list(row) for row in draw(st.lists(st.tuples(*kinds), min_size=1, max_size=8))]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        row = draw(st.sampled_from(rows))
        row[draw(st.integers(0, len(row) - 1))] = draw(ODD)
    return pandas.DataFrame(rows, columns=header)


@settings(max_examples=200, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(st.data())
def test_random_tables_are_read_or_refused_in_a_sentence(read, data):
    frame = data.draw(tables())
    text = frame.to_csv(sep=data.draw(st.sampled_from([",", ";", "\t"])), index=False)
    metric = data.draw(st.sampled_from([None, metric_of(name="loss"), metric_of(name="time")]))
    try:
        found = read(text, metric=metric)
    except UserError as refused:
        said = str(refused)
    else:
        said = " ".join([found.described, *found.notes])
        check_sound(found)
    assert said.isprintable()
    assert "nan" not in said.replace("'nan'", "")


def check_sound(found):
    """Assert what holds of every table that was read."""
    runs = found.runs
    known = runs["score"].notna()
    assert np.isfinite(runs["score"][known]).all()
    assert known.any()
    assert (runs["status"][known] == "finished").all()
    assert all(name.isprintable() and name for name in [*found.backbones, *found.optimizers])
    assert not runs.duplicated(["backbone", "optimizer", "seed"]).any()
