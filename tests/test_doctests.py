"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import pytest

import bocb_jax
from bocb_jax.data.registry import DATASETS
from bocb_jax.models.factory import MODELS
from bocb_jax.optim.registry import OPTIMIZERS

PACKAGES = (
    "bocb_jax",
    "bocb_jax.models",
    *(f"bocb_jax.{m.name}" for m in pkgutil.iter_modules(bocb_jax.__path__[:1]) if m.ispkg),
)


def modules():
    for package in map(importlib.import_module, PACKAGES):
        for module in (package.__name__, *_inside(package)):
            if not module.endswith("__main__"):
                tests = doctest.DocTestFinder().find(importlib.import_module(module))
                if any(test.examples for test in tests):
                    yield module


def _inside(package):
    return [
        f"{package.__name__}.{found.name}" for found in pkgutil.iter_modules(package.__path__[:1])
    ]


@pytest.mark.parametrize("name", sorted(set(modules())))
def test_examples(name, monkeypatch):
    for registry in (MODELS, OPTIMIZERS, DATASETS):  # what an example registers goes with it
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    outcome = doctest.testmod(importlib.import_module(name))
    assert outcome.attempted > 0
    assert outcome.failed == 0
