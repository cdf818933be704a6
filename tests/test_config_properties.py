"""Any TOML made from the declarations of a config is a run that can begin, or one sentence.

python -m pytest tests/test_config_properties.py -m slow    # thousands of files, steps too
"""

import dataclasses
import json
import math
import types
import typing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bocb_jax.__main__ import main
from bocb_jax.config import TrainConfig, from_toml
from bocb_jax.errors import UserError
from bocb_jax.train import Run

# Small enough to be made in no time whatever else the file asks for.
SMALL = {"model": "mixer_mini", "dataset": "digits", "image_size": 16, "batch_size": 8}


def names(kind=TrainConfig, where=""):
    """Dotted names of all settings with their annotations."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.default):
            yield from names(type(field.default), f"{where}{field.name}.")
        else:
            yield f"{where}{field.name}", hints[field.name]


# Not to be tried: they leave the folder of the test or start other processes.
ELSEWHERE = {"workdir", "scratch", "compile_cache", "data.dir", "data.workers"}
ELSEWHERE |= {"parallel.distributed", "parallel.coordinator", "log.wandb", "log.tensorboard"}
NAMES = [name for name, _ in names() if name not in ELSEWHERE]

texts = st.sampled_from(
    ["", " ", "none", "auto", "paper", "cosine", "step", "sgd", "adamw", "lamb", "vit_mini", "bce",
     "resnet_mini", "convnext_mini", "pytorch", "deit", "digits", "os:getcwd", "a:b", "../x", "/",
     "folder:nowhere", "tfds:", "rand-m9", "rand-m9-n2-mstd0.5", "float32", "no", "zero", "epoch"]
) | st.text(max_size=12)  # fmt: skip
numbers = (
    st.sampled_from([0, 1, 2, 3, 7, -1, 100, 10**9, 2**31, 2**63, 0.5, 1.5, 0.1, 1.0, -0.1, 1e-9])
    | st.integers(-(2**65), 2**65)
    | st.floats()
)
scalars = numbers | texts | st.booleans()
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(texts, scalars, max_size=2)


def fitting(hint):
    """Values of an annotation's own kind, which are right more often than not."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    if typing.get_origin(hint) is typing.Literal:
        return st.sampled_from(kinds)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of(*map(fitting, kinds))
    if typing.get_origin(hint) is tuple:
        return st.lists(st.sampled_from([0.2, 0.5, 0.9]), min_size=2, max_size=2, unique=True)
    return {
        bool: st.booleans(),
        int: st.integers(0, 4),
        float: st.sampled_from([0.1, 0.5, 0.9, 1.0]),
        str: texts,
    }.get(hint, st.just({}))


CHOICES = st.one_of(
    *(
        st.tuples(st.just(name), st.one_of(fitting(hint), fitting(hint), fitting(hint), values))
        for name, hint in names()
        if name in NAMES
    )
)


def toml(value):
    """A value as TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")  # TOML's escapes are JSON's
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return repr(value)


def config_of(chosen, path):
    given_here = SMALL | dict(chosen)
    path.write_text("".join(f"{name} = {toml(value)}\n" for name, value in given_here.items()))
    return path


def surrogates(chosen):
    return any("\\ud" in toml(value) for _, value in chosen)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("configs") / "run.toml"


def begin(chosen, path):
    """The run of a file, ready for its first step; None if it was refused in a sentence."""
    try:
        config = from_toml(str(config_of(chosen, path)))
        return Run(dataclasses.replace(config, workdir=str(path.parent / "runs")))
    except UserError as error:
        text = str(error)
        assert text.strip(), chosen
        assert "Traceback" not in text
        return None


relaxed = settings(
    deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much]
)


@settings(relaxed, max_examples=150)
@given(st.lists(CHOICES, max_size=4, unique_by=lambda each: each[0]))
def test_a_config_is_a_run_or_a_sentence(path, chosen):
    if surrogates(chosen):
        return
    begin(chosen, path)


@pytest.mark.slow
@settings(relaxed, max_examples=3000)
@given(st.lists(CHOICES, max_size=6, unique_by=lambda each: each[0]))
def test_thousands_of_configs_are_runs_or_sentences(path, chosen):
    if surrogates(chosen):
        return
    begin(chosen, path)


@pytest.mark.slow
@settings(relaxed, max_examples=60)
@given(st.lists(CHOICES, max_size=3, unique_by=lambda each: each[0]))
def test_a_config_that_is_taken_trains(tmp_path_factory, path, chosen):
    chosen = [each for each in chosen if each[0] not in ("epochs", "test", "checkpoint.discard")]
    if surrogates(chosen) or begin(chosen, path) is None:
        return
    runs = tmp_path_factory.mktemp("runs")
    words = [
        "--epochs",
        "1",
        "--batch-size",
        "600",
        "--log.progress",
        "none",
        "--workdir",
        str(runs),
    ]
    assert main(["train", "--config", str(path), *words]) in (0, 2, 3)
