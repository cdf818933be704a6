"""`bocb analyze`: every kind of input, the verdict in words, errors as sentences and exit code."""

import json
import subprocess
import sys

import pytest
from helpers import made_runs, synthetic_runs

from bocb_jax.__main__ import main
from bocb_jax.study.spec import Search, Study

QUICK = ["--resamples", "20"]


def run(capsys, *arguments):
    code = main(["analyze", *map(str, arguments), *QUICK])
    captured = capsys.readouterr()
    return code, captured.out, " ".join(captured.err.split())


def test_verdict_on_the_published_table(capsys):
    code, text, _ = run(capsys, "--published", "cifar100", "--no-report")
    assert code == 0
    understood, _, first, *_ = text.splitlines()
    assert understood == (
        "Read: the paper's table cifar100: 20 optimizers x 20 backbones, top-1 accuracy, mean of "
        "three trials."
    )
    assert first.startswith("SGD-like optimizers lead on AlexNet, VGG-13, R-50, DN-121, MobV2, ")
    assert "adaptive ones on the other 12" in first
    assert "costs 3.5 points on R-50, 3.3 on AlexNet and 2.7 on VGG-13" in text
    assert "SGDP and Adan: 0.22 and 1.28 (R-50)" in text
    assert (
        "- R-50: AdaBelief, NovoGrad or SGDP (within 1.3); Adan, the best elsewhere, costs " in text
    )
    assert "What these data cannot say:" in text


def test_replacing_a_report_is_announced(tmp_path, capsys):
    out, csv = tmp_path / "report", tmp_path / "scores.csv"
    csv.write_text("optimizer,a,b\nsgd,70.0,60.0\nadamw,69.5,66.0\n")
    code, text, _ = run(capsys, csv, "--output", out)
    assert (code, "The report: " in text) == (0, True)
    assert {"index.html", "report.json", "report.md", "pictures"} == {p.name for p in out.iterdir()}
    code, text, _ = run(capsys, csv, "--output", out)
    assert (code, "An earlier report was replaced" in text) == (0, True)


def test_parquet_with_curves_and_csv(tmp_path, capsys):
    frame = synthetic_runs.results(["a", "b", "c"], ["sgd", "adamw", "lamb"], rates=0)
    synthetic_runs.write_curves(frame, tmp_path / "runs")
    frame.to_parquet(tmp_path / "runs" / "results.parquet")
    out = tmp_path / "report"
    code, text, _ = run(capsys, tmp_path / "runs" / "results.parquet", "--output", out)
    assert code == 0
    assert "Read: 27 runs of a sweep" in text
    assert "9 of 9 cells have a score" in (out / "report.md").read_text()
    assert (out / "pictures" / "training_curves.svg").exists()
    csv = tmp_path / "scores.csv"
    csv.write_text("optimizer,a,b\nsgd,70.0,60.0\nadamw,69.5,66.0\nlamb,70.5,65.0\n")
    code, text, _ = run(capsys, csv, "--no-report", "--rule", "regret(2)")
    assert code == 0
    assert "regret" in text
    assert "- a: lamb, sgd or adamw (within 1.0); " in text


# Tables that were refused or read wrongly, as their authors wrote them; options, what is said.
READ = {
    "W&B": ("model,opt,seed,test_acc\na,sgd,0,70\na,lion,0,71\nb,sgd,0,60\nb,lion,0,66\n", (),
            "4 rows: backbone = model, optimizer = opt, score = test_acc (percent), 1 figure a"),
    "semicolons": ("Optimizer;a;b\nsgd;70,1;60,2\nlion;71;66 ± 0,2\n", ("--noise", "0.2"),
                   "backbones across (2 columns), score = test accuracy (percent, ± its spread)"),
    "transposed": ("backbone,sgd,lion\na,70%,71%\nb,60%,66%\n", ("--within", "2"),
                   "2 rows: backbones down (backbone), optimizers across (2 columns)"),
    "times": ("optimizer,a,b\nsgd,70,\nlion,71,6600\nadan,75,7000\n",
              ("--metric", "time", "--unit", "s"),
              "score = time (s, lower is better, empty: not reached), 1 figure a cell; relative"),
    "perplexity": ("backbone,optimizer,score\na,sgd,170\na,lion,171\nb,sgd,160\nb,lion,166\n",
                   ("--metric", "perplexity", "--lower-is-better"),
                   "score = score (lower is better), 1 figure a cell"),
    "own names": ("net name,solver,y\na,sgd,70\na,lion,71\nb,sgd,60\nb,lion,66\n",
                  ("--backbone-column", "net name", "--optimizer-column", "solver",
                   "--score-column", "y", "--test-images", "50"),
                  "backbone = net name, optimizer = solver, score = y (percent)"),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_what_was_understood_of_a_table_is_said_first(name, tmp_path, capsys):
    content, options, said = READ[name]
    (tmp_path / "t").write_text(content)
    code, text, error = run(capsys, tmp_path / "t", "--no-report", *options)
    assert (code, error) == (0, "")
    first, *rest = text.splitlines()
    assert first.startswith("Read: ")
    assert said in first
    assert len(rest) > 3


BAD = {
    "twice.csv": ("backbone,optimizer,seed,score\na,sgd,0,70\na,sgd,0,71\n", "line 3"),
    "text.csv": ("backbone,optimizer,seed,score\na,sgd,0,seventy\n", "line 2"),
    "column.csv": ("backbone,optimizer\na,sgd\n", "no column 'score'"),
    "empty.csv": ("", "empty"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_csv_file_is_reported_in_a_sentence(name, tmp_path, capsys):
    content, said = BAD[name]
    (tmp_path / name).write_text(content)
    code, _, error = run(capsys, tmp_path / name, "--output", tmp_path / "out")
    assert code == 2
    assert said.lower() in error.lower()
    assert not (tmp_path / "out").exists()


def test_bad_folders_are_reported_in_a_sentence(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    code, _, error = run(capsys, tmp_path / "empty", "--output", tmp_path / "out")
    assert (code, "no runs in" in error) == (2, True)
    (tmp_path / "file").write_text("x")
    code, _, error = run(capsys, "--published", "cifar100", "--output", tmp_path / "file")
    assert (code, "is a file" in error) == (2, True)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    code, _, error = run(capsys, "--published", "cifar100", "--output", tmp_path / "full")
    assert (code, "nothing was written" in error) == (2, True)
    (tmp_path / "bad.parquet").write_text("x")
    code, _, error = run(capsys, tmp_path / "bad.parquet", "--no-report")
    assert (code, "not a Parquet file" in error) == (2, True)


@pytest.mark.parametrize(
    "arguments",
    [("--published", "cifar10"), ("--published", "cifar100", "--rule", "guess"),
     ("--published", "cifar100", "--score", "loss")],
)  # fmt: skip
def test_bad_options_are_reported_in_a_sentence(arguments, capsys):
    code, _, error = run(capsys, *arguments, "--no-report")
    assert code == 2
    assert error.endswith(".")
    assert "Traceback" not in error


def test_imports_no_jax():
    code = "import sys, bocb_jax.analyze, bocb_jax.coupling.analysis, bocb_jax.report.write; "
    code += "assert not {'jax', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("score", "near", "behind"),
    [
        ("accuracy", "1 point", "20.0"),
        ("loss", "0.05 nats", "1.5"),
        ("log-odds", "0.05 log-odds", "0.98"),  # ln(4) - ln(1.5)
    ],
)
def test_sentences_state_what_is_good_and_what_to_avoid(tmp_path, capsys, score, near, behind):
    # Two optimizers are close together, and one is far from both on every scale.
    scores = {"sgd": 60.0, "lamb": 80.0, "adamw": 80.0}
    if score == "loss":
        scores = {"sgd": 2.0, "lamb": 0.5, "adamw": 0.5}
    lines = [f"{backbone},{name},{value}" for backbone in "abc" for name, value in scores.items()]
    csv = tmp_path / "scores.csv"
    csv.write_text("\n".join(["backbone,optimizer,score", *lines]))
    code, text, _ = run(capsys, csv, "--score", score, "--output", tmp_path / "report")
    assert code == 0
    assert (
        f"- b: lamb or adamw (equal); a middling choice loses nothing; avoid sgd ({behind}" in text
    )
    assert (
        f"Distances of up to {near} count as equal"
        in (tmp_path / "report" / "index.html").read_text()
    )


def test_the_command_for_more_runs_names_the_url_that_was_given(tmp_path, capsys, monkeypatch):
    study = Study(name="made", backbones=("net*",), optimizers=("opt*",), search=Search(seed=3))
    made_runs.finish_all(made_runs.cells(study, tmp_path / "runs", 2, 2), tmp_path / "runs")
    (tmp_path / "runs" / "study.json").write_text(json.dumps(study.to_dict()))
    (tmp_path / "made.toml").write_text(
        'name = "made"\nbackbones = ["net0"]\noptimizers = ["opt*"]\n[search]\nseed = 3\n'
    )
    monkeypatch.chdir(tmp_path)
    for source in ("runs", f"file://{tmp_path}/runs"):
        code, text, _ = run(capsys, source, "--no-report")
        assert code == 0
        command = f"bocb sweep made.toml --workdir {source} --backbones net0,net1 "
        # Not seed 3, which is that of the search.
        assert f"{command}--optimizers opt0,opt1 --final.seeds '[0, 4, 5]'" in text
