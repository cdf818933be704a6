"""What a table cannot say: which sentences come, and that each is whole."""

import dataclasses

import numpy as np
import pytest
from helpers.score_tables import one_seed_table, sweep_results

from bocb_jax.coupling import analyze, significance
from bocb_jax.coupling.cells import MOST_CELLS
from bocb_jax.coupling.scores import from_published, from_results


def said(table, resamples=20):
    return " ".join(analyze(table, resamples=resamples).warnings)


def ended(table, status, share=1.0, optimizer="lamb"):
    """The table after that share of an optimizer's runs ended so, the first seeds first."""
    runs = table.runs.copy()
    rows = runs.index[runs["optimizer"] == optimizer]
    rows = rows[: int(share * len(rows))]
    runs.loc[rows, ["status", "score"]] = [status, np.nan]
    return dataclasses.replace(table, runs=runs)


def test_running_out_of_time_is_not_called_an_accident():
    table = from_results(sweep_results())
    text = said(ended(table, "timed_out"))
    assert "Runs with lamb ran out of time and count as not tried" in text
    assert "that is its cost and no accident" in text
    failed = analyze(ended(table, "timed_out"), resamples=20).failures
    assert set(failed["label"]) == {"did not finish"}
    assert failed["reason"].str.startswith("out of time, which the optimizer").all()
    assert "ran out of memory" in said(ended(table, "out_of_memory"))
    assert "ran out of" not in said(table)


@pytest.mark.parametrize("share", [0.1, 0.4])
def test_a_diverged_seed_breaks_no_sentence(share):
    table = ended(from_results(sweep_results(seeds=5)), "diverged", share)
    found = analyze(table, resamples=20)
    assert "some seeds diverged and others did not" in " ".join(found.warnings)
    texts = [*found.warnings, *found.claims["figure"], *found.claims["detail"]]
    texts += [found.budget.verdict, found.interaction.description]
    assert not any(word in " ".join(texts) for word in ("nan", "None", "inf%"))
    assert found.shares.drop(columns="dropped").notna().all().all()


def test_optimizers_far_behind_are_named_with_what_they_make_of_the_interaction():
    text = said(from_published("cifar100"))
    assert (
        "LARS and AdaGrad are far behind on average: the interaction is 40% of the variance, and "
        "17% without them. The difference is coupling too where they do well on some backbones"
    ) in text


def test_a_critical_difference_beyond_all_ranks_is_left_out():
    # 20 optimizers on 2 backbones: 21.0, and mean ranks lie at most 19 apart.
    table = from_published("cifar100").select(backbones=["R-50", "CNX-T"])
    found = analyze(table, resamples=20)
    assert found.nemenyi is None
    assert "No critical difference: that takes more backbones" in " ".join(found.warnings)
    three = [*table.backbones, "DN-121"]
    assert significance.nemenyi(from_published("cifar100").select(backbones=three).goodness())


def test_given_noise_replaces_the_sentence_on_one_seed():
    table = from_published("cifar100")
    assert "coupling cannot be told from noise" in said(table)
    text = said(dataclasses.replace(table, noise=0.2))
    assert "intervals and tests rest on the noise that is given" in text
    assert "coupling cannot be told from noise" not in text


@pytest.mark.slow
def test_a_large_table_leaves_out_what_grows_too_fast():
    side = int(np.sqrt(MOST_CELLS)) + 1
    table = one_seed_table(70 + np.random.default_rng(0).standard_normal((side, side)))
    found = analyze(table, resamples=100)
    assert (found.structure, found.clusters, found.nemenyi, found.pairwise) == (None,) * 4
    assert f"The table has {side**2} cells: axes of preference" in " ".join(found.warnings)
    assert "No axes of preference" not in " ".join(found.warnings)


@pytest.mark.slow
def test_noise_alone_makes_no_claim():
    table = one_seed_table(70 + np.random.default_rng(0).standard_normal((100, 100)))
    found = analyze(table, resamples=100)
    assert found.interaction is None
    assert found.clusters.number == 1
    assert (found.claims["verdict"] == "cannot be judged here").all()
