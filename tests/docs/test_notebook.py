"""The notebook is stored without outputs and holds a valid study. `.ci/run` executes it."""

import json
import tomllib

import pytest
from helpers.pages import ROOT

from bocb_jax.study.spec import study_from_dict

CELLS = json.loads((ROOT / "experiments/colab.ipynb").read_text("utf-8"))["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs():
    cells = [cell for cell in CELLS if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in cells)


def test_its_study_is_the_quickstart_made_smaller():
    [cell] = [source for source in CODE if source.startswith("%%writefile quickstart.toml\n")]
    small = study_from_dict(tomllib.loads(cell.partition("\n")[2]))
    whole = study_from_dict(tomllib.loads((ROOT / "experiments/quickstart.toml").read_text()))
    assert set(small.backbones) < set(whole.backbones)
    assert set(small.optimizers) < set(whole.optimizers)
    assert small.search.lr_factors == whole.search.lr_factors
    assert small.train["image_size"] == whole.train["image_size"]


@pytest.mark.parametrize("source", CODE, ids=range(len(CODE)))
def test_commands_fail_the_cell(source):
    """`!command` would hide a failure; `%%bash` does not."""
    assert not any(line.startswith("!") for line in source.splitlines())
