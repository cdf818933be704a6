"""`bocb models`, `optimizers` and `recipes`: tables that fit a terminal, and JSON."""

import json

import pytest

from bocb_jax import paper
from bocb_jax.__main__ import main
from bocb_jax.commands import tables
from bocb_jax.commands.tables import Column
from bocb_jax.models import list_models
from bocb_jax.optim import list_optimizers


@pytest.fixture
def width(request, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(request.param))
    monkeypatch.setattr(tables.output, "_width", request.param)
    return request.param


def printed(capsys, *words):
    assert main(list(words)) == 0
    return capsys.readouterr().out.splitlines()


def first_column(lines):
    """The names in a table, which ends with an empty line."""
    return [line.split()[0] for line in lines[1 : lines.index("")]]


@pytest.mark.parametrize("width", [40, 80, 200], indirect=True)
@pytest.mark.parametrize("what", ["models", "optimizers"])
def test_the_papers_come_first_one_line_each(what, width, capsys):
    lines = printed(capsys, what)
    of_paper = {"models": paper.backbones, "optimizers": paper.optimizers}[what]()
    assert len(of_paper) == {"models": 21, "optimizers": 20}[what]
    assert first_column(lines) == of_paper
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in lines)
    assert f"`bocb {what} --all`" in " ".join(lines)  # which may be wrapped
    everything = {"models": list_models, "optimizers": list_optimizers}[what]()
    found = first_column(printed(capsys, what, "--all"))
    assert found[: len(of_paper)] == of_paper
    assert sorted(found) == everything


@pytest.mark.parametrize("width", [80], indirect=True)
def test_patterns_and_what_is_left_out(width, capsys):
    lines = printed(capsys, "models", "conv*")
    assert sorted(first_column(lines)) == list_models("conv*")
    assert "reference" in lines[-1]
    assert main(["models", "x*"]) == 2
    assert "No backbone matches 'x*'" in capsys.readouterr().err


def test_json_is_for_programs(capsys):
    (row, *_), (first, *_) = (
        json.loads("\n".join(printed(capsys, what, "--json"))) for what in ("models", "optimizers")
    )
    assert (row["name"], row["num_params"]) == ("alexnet", 61_100_840)
    assert (first["name"], first["learning_rate"]) == ("sgd", 0.1)
    card = json.loads("\n".join(printed(capsys, "optimizers", "adan", "--json")))
    assert isinstance(card, dict)


@pytest.mark.parametrize("width", [80], indirect=True)
@pytest.mark.parametrize("words", [(), ("--dataset", "imagenet"), ("--check",)])
def test_recipes_fit_a_terminal(words, width, capsys):
    lines = printed(capsys, "recipes", *words)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for name in ("pytorch", "deit", "convnext", "rsb_a1", "rsb_a2", "rsb_a3"):
        assert name in text
    assert "rand-m9-mstd0.5-inc1" in text


@pytest.mark.parametrize("width", [12], indirect=True)
def test_columns_are_left_out_whole(width, capsys):
    columns = [Column("name"), Column("n", is_number=True), Column("a long one")]
    tables.show_table(columns, [["ab", "5", "x"], ["c", "12", "y"]])
    assert capsys.readouterr().out.splitlines()[:3] == ["name   n", "ab     5", "c     12"]
    tables.show_in_parts(columns, [["ab", "5", "x"]])
    assert capsys.readouterr().out.splitlines() == [
        "name  n", "ab    5", "", "name  a long one", "ab    x", "",
    ]  # fmt: skip
