"""Studies: what is read from a file, which trials a search asks for, which runs are planned."""

import math

import numpy as np
import pytest
from helpers import made_runs

from bocb_jax.errors import UserError
from bocb_jax.study.plan import Outcome
from bocb_jax.study.search import Point, ladder, propose, shares_of_trials, step_of, winner
from bocb_jax.study.spec import Search, Study, overrides_of, read_study, study_from_dict

WHOLE = {"backbones": ["vit_mini"], "optimizers": ["sgd"]}


# --- The file -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbones": []}, "backbones is .* a list of names"),
        ({"optimizers": "sgd"}, "optimizers is 'sgd'; it must be a list of names"),
        ({"bakbones": ["a"]}, "There is no setting bakbones"),
        ({"search": {"kind": "grit"}}, "search.kind is 'grit'; it must be one of default"),
        ({"search": {"lr": [0.1, 0.1]}}, "search.lr .* without repetition"),
        ({"search": {"lr": [0.1], "lr_factors": [1]}}, "left out where search.lr_factors"),
        ({"search": {"lr": [-1]}}, "search.lr is .* positive"),
        ({"search": {"lr": 0.1}}, "search.lr is 0.1; it must be a list"),
        ({"search": {"trials": 0}}, "search.trials is 0; it must be a whole number of at least 1"),
        ({"search": {"halving": 0.5}}, "search.halving is 0.5"),
        ({"search": 3}, "search is a table of settings"),
        ({"final": {"seeds": []}}, "final.seeds .* at least one"),
        ({"final": {"seeds": [1, 1]}}, "final.seeds .* different"),
        ({"budget": {"runs": 0}}, "budget.runs is 0; it must be a whole number of at least 1"),
        ({"train": {"epoch": 3}}, "There is no setting epoch"),
        ({"train": {"epochs": 0}}, "epochs is 0"),
        ({"train": {"lr": 0.1}}, "train is 'lr'; it must be without what the study itself"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "variants .* named differently"),
        ({"variants": {"a": 1}}, "variants is a list of tables"),
        ({"target": 90}, "target is 90"),
    ],
)
def test_an_invalid_study_raises_one_sentence(change, message):
    with pytest.raises(UserError, match=message) as caught:
        study_from_dict({**WHOLE, **change}, "name")
    assert "\n" not in str(caught.value)


def test_a_file_and_the_command_line(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text('backbones = ["vit_mini"]\noptimizers = ["sgd"]\n[train]\nepochs = 3\n')
    words = ["--search.trials", "9", "--train.epochs=5", "--optimizers", "lamb,lion"]
    study = read_study(path, overrides_of([*words, "--final.seeds", "[3, 4]"]))
    assert (study.name, study.search.trials, study.train["epochs"]) == ("mine", 9, 5)
    assert (study.optimizers, study.final.seeds) == (("lamb", "lion"), (3, 4))
    assert study_from_dict(study.to_dict()) == study
    for words, message in ((["3"], "'3' is not understood"), (["--name"], "--name needs a value")):
        with pytest.raises(UserError, match=message):
            overrides_of(words)
    with pytest.raises(UserError, match="cannot be read"):
        read_study(tmp_path / "none.toml")
    path.write_text("a = ")
    with pytest.raises(UserError, match="is not valid TOML"):
        read_study(path)


# --- Searches -------------------------------------------------------------------------------------


def go_through(search, center, score, published=None):
    """All trials of a search, asked for as a sweep does, with their scores."""
    scores = {}
    while True:
        points = propose(search, center, scores, published)
        new = [point for point in points if point not in scores]
        if not new:
            return points, scores
        scores |= {point: score(point) for point in new}


def test_a_grid_is_the_product():
    search = Search(lr_factors=(0.1, 1, 10), weight_decay=(0, 0.1))
    points, _ = go_through(search, (3e-4, 0.05), lambda point: 0.0)
    assert {(p.lr, p.weight_decay) for p in points} == {
        (lr, decay) for lr in (3e-5, 3e-4, 3e-3) for decay in (0, 0.1)
    }
    assert len(shares_of_trials(search, (3e-4, 0.05))) == 6
    assert len(propose(Search(weight_decay_factors=(0.1, 1)), (1, 0.0), {})) == 1


def test_the_ladder_goes_one_two_five():
    assert [ladder(n) for n in range(-3, 4)] == [0.1, 0.2, 0.5, 1, 2, 5, 10]
    assert all(step_of(ladder(n)) == n for n in range(-30, 30))
    assert step_of(3e-3) == step_of(2e-3)  # in logarithms 3 is nearer to 2 than to 5


def test_around_looks_at_five_by_five_values():
    points, _ = go_through(Search(kind="around"), (5e-4, 0.05), lambda p: -abs(p.lr - 5e-4))
    assert sorted({p.lr for p in points}) == [1e-4, 2e-4, 5e-4, 1e-3, 2e-3]
    assert {0.01, 0.02, 0.05, 0.1, 0.2} <= {p.weight_decay for p in points}
    assert len(shares_of_trials(Search(kind="around"), (5e-4, 0.05))) == 25


@pytest.mark.parametrize("best", [5e-5, 1e-2])
def test_around_moves_on_while_the_best_lies_at_the_edge(best):
    def score(point):
        return -abs(math.log(point.lr / best)) - abs(math.log(point.weight_decay / 0.05))

    points, scores = go_through(Search(kind="around"), (5e-4, 0.05), score)
    assert winner(points, scores).lr == best
    rates = sorted({p.lr for p in points})
    assert rates[0] < best < rates[-1]  # it no longer lies at the edge
    assert sorted({p.weight_decay for p in points}) == [0.01, 0.02, 0.05, 0.1, 0.2]
    few, _ = go_through(Search(kind="around", moves=0), (5e-4, 0.05), score)
    assert len(few) == 25


def test_around_no_decay_grows_upwards_alone():
    points, _ = go_through(Search(kind="around"), (0.1, 0.0), lambda p: p.weight_decay)
    decays = sorted({p.weight_decay for p in points})
    assert decays[0] == 0
    assert decays[:5] == [0, 1e-6, 1e-5, 1e-4, 1e-3]
    assert len(decays) == 8  # three moves


def test_halton_is_spread_the_same_for_all_and_inside_the_span():
    search = Search(kind="halton", trials=64, lr_span=10, weight_decay_span=4)
    points, _ = go_through(search, (1e-3, 0.1), lambda p: 0.0)
    logs = np.log10([p.lr / 1e-3 for p in points])
    assert len(set(points)) == 64
    assert np.abs(logs).max() <= 1
    # In each eighth of the span about an eighth of the points: far closer than chance.
    counts = np.histogram(logs, bins=8, range=(-1, 1))[0]
    assert counts.min() >= 6
    assert counts.max() <= 10
    assert max(abs(math.log(p.weight_decay / 0.1, 4)) for p in points) <= 1
    others, _ = go_through(search, (1.0, 0.1), lambda p: 0.0)
    np.testing.assert_allclose([p.lr for p in others], [1e3 * p.lr for p in points], rtol=1e-5)
    assert {p.weight_decay for p in propose(search, (1e-3, 0.0), {})} == {0.0}


def test_published_values_are_taken_where_there_are_any():
    search = Search(kind="published")
    assert propose(search, (1, 2), {}, (0.3, 0.4)) == [Point(0.3, 0.4)]
    assert propose(search, (1, 2), {}, None) == [Point(1, 2)]


def test_successive_halving_keeps_the_best_third_of_each_rung():
    search = Search(lr=tuple(range(1, 10)), halving=3, rungs=2)
    points, scores = go_through(search, (1, 0.0), lambda p: -abs(p.lr - 7) * p.share)
    by_share = {}
    for point in points:
        by_share.setdefault(point.share, []).append(point.lr)
    assert {share: len(found) for share, found in by_share.items()} == {
        0.111111: 9, 0.333333: 3, 1.0: 1
    }  # fmt: skip
    assert set(by_share[0.333333]) == {6, 7, 8}
    assert winner(points, scores) == Point(7, 0.0, 1.0)
    assert len(shares_of_trials(search, (1, 0.0))) == len(points) == 13


def test_a_search_is_a_function_of_the_scores_alone():
    search = Search(kind="around")
    score = {}

    def noisy(point):
        return score.setdefault(point, len(score) * 0.37 % 1)

    points, scores = go_through(search, (5e-4, 0.05), noisy)
    assert propose(search, (5e-4, 0.05), dict(reversed(scores.items()))) == points


# --- Plans ----------------------------------------------------------------------------------------


def plan(**search):
    study = Study(name="s", backbones=("a",), optimizers=("b",), search=Search(**search))
    return made_runs.Cell(made_runs.pair(), study, made_runs.Path("runs"))


def outcomes_of(planned, score):
    return {
        p.run: Outcome("finished", score(p.point), score(p.point))
        if score(p.point) is not None
        else Outcome("diverged")
        for p in planned
    }


def test_the_winner_is_trained_again_and_tested():
    cell = plan(lr=(0.1, 1, 10))
    trials = cell.planned({})
    assert [p.config["test"] for p in trials] == [False] * 3
    ended = outcomes_of(trials, lambda p: {0.1: 0.5, 1: 0.9, 10: None}[p.lr])
    last = cell.planned(ended)[-1]
    assert (last.phase, last.point.lr, last.config["test"]) == ("final", 1, True)
    assert cell.size == 4
    assert len({p.run for p in cell.planned(ended)}) == 4


def test_where_every_trial_failed_the_gentlest_stands_for_the_pair():
    cell = plan(lr=(10, 0.1, 1))
    ended = outcomes_of(cell.planned({}), lambda p: None)
    assert cell.planned(ended)[-1].point.lr == 0.1


def test_nothing_is_searched_where_there_is_nothing_to_choose():
    (only,) = plan(kind="default").planned({})
    assert (only.phase, only.point) == ("final", Point(0.1, 1e-4))


def test_a_lower_rung_is_shorter():
    epochs = {p.config["epochs"] for p in plan(lr=(1, 2, 3, 4), halving=2, rungs=1).planned({})}
    assert epochs == {2}
