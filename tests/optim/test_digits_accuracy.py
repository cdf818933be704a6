"""The accuracies on the digits in the descriptions: complete, and true of a run made now."""

import pytest
from drills import digits_run

from bocb_jax import list_optimizers, optim
from bocb_jax.optim import describe, digits_accuracy


def test_every_optimizer_was_measured():
    measured = digits_accuracy.accuracies()
    for name in list_optimizers():
        assert measured[name], name
        assert set(measured[name]) <= set(digits_run.MODELS)
    assert "python tests/drills/digits_run.py" in digits_accuracy.FILE.read_text()


@pytest.mark.parametrize("name", list_optimizers())
def test_the_description_says_which_defaults_do_not_learn(name):
    text = dict(describe.describe(name))["on the digits"]
    worst = min(digits_accuracy.accuracies()[name].values())
    assert ("see the notes" in text) == (worst < 80)
    assert worst >= 80 or optim.optimizer_info(name).notes


@pytest.mark.slow
@pytest.mark.parametrize("model", digits_run.MODELS)
@pytest.mark.parametrize("name", ["adamw", "schedule_free_sgd"])
def test_a_run_made_now_is_as_good(name, model, tmp_path, compile_cache):
    found = digits_run.accuracy(model, name, workdir=str(tmp_path), compile_cache=compile_cache)
    assert float(found) > digits_accuracy.accuracies()[name].get(model, 85) - 5
