"""Categories of optimizers: one table for the analysis, without JAX, and for the optimizers."""

import subprocess
import sys

from bocb_jax import paper
from bocb_jax.coupling.contrasts import category_of
from bocb_jax.optim import list_optimizers, optimizer_info
from bocb_jax.optim.describe import describe
from bocb_jax.paper.categories import (
    category,
    descriptions,
    published_category,
    to_opt,
    to_paper,
)

# The paper's definition in our words: step 3 decides a, c or (b, d), step 2 b or d.
BY_STEPS = {
    "muon": "a", "soap": "b", "shampoo": "b", "mars": "b", "ademamix": "b", "adopt": "b",
    "madgrad": "b", "adam_mini": "c", "prodigy": "c", "psgd_kron": "c",
    "schedule_free_sgd": None, "schedule_free_adamw": None,
}  # fmt: skip


def test_the_papers_rows_have_the_papers_category():
    names = [name for name in list_optimizers() if optimizer_info(name).category in "abcd"]
    assert len(names) >= 20
    for name in names:
        assert category(name)[0] == optimizer_info(name).category, name


def test_every_later_optimizer_is_decided_or_says_why_not():
    later = [name for name in list_optimizers() if optimizer_info(name).category == "later"]
    assert {name: category(name)[0] for name in BY_STEPS} == BY_STEPS
    for name in later:
        found, reason = category(name)
        base = name.rpartition("+")[2]
        assert found in ("a", "b", "c", "d") or BY_STEPS[base] is None, name
        assert len(reason) > 10, name
        assert f"{found or 'none'} by the paper's definition" in dict(describe(name))["category"]


def test_wrappers_are_what_they_wrap():
    for name, base in {
        "sam+sgd": "sgd", "lookahead+adamw": "adamw", "cadamw": "adamw", "clion": "lion",
        "lars@openmixup": "lars", "sam+cadamw": "adamw", "cmars": "mars",
    }.items():  # fmt: skip
        assert category(name)[0] == category(base)[0] is not None


def test_the_analysis_takes_both_names_and_your_own():
    found = category_of(["SGD-M", "sgd", "muon", "mine", "yours"], {"mine": "d"})
    assert found.to_list() == ["a", "a", "a", "d", None]


def test_names_of_the_paper_and_of_this_project():
    for row in paper.rows("optimizers"):
        assert to_opt(row["optimizer"]) == row["opt"]
        assert to_paper(row["opt"]) == row["optimizer"]
        assert row["opt"] in list_optimizers()
        assert published_category(row["opt"]) == row["category"] in descriptions()
    assert to_opt("muon") == to_paper("muon") == "muon"
    assert published_category("muon") is None
    assert published_category("lars@openmixup") == "c"


def test_without_jax():
    code = "import sys, bocb_jax.coupling.contrasts; assert 'jax' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
