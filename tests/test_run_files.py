"""The files of a run: what is damaged is a sentence, or values that the schema allows."""

import json

import pyarrow
import pytest
from bad_input.runs import CONFIG, RESULT
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from bocb_jax import results
from bocb_jax.config import TrainConfig, to_dict
from bocb_jax.coupling.scores import from_results
from bocb_jax.errors import UserError
from bocb_jax.run_files import read_config, read_result, read_study

WHOLE = {
    "config.json": json.dumps({**CONFIG, "config": TrainConfig().identity()}, indent=2),
    "result.json": json.dumps(RESULT, indent=2),
    "study.json": json.dumps({"name": "s", "target": 0.5}),
}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


def write(folder, **files):
    run = folder / "run"
    run.mkdir(exist_ok=True)
    for name, content in WHOLE.items():
        (folder / name if name == "study.json" else run / name).write_text(content)
    for name, content in files.items():
        at = folder if name == "study" else run
        (at / f"{name}.json").write_bytes(content)
    return folder


def read(folder):
    """Read all that commands read; only a sentence may come of it."""
    said = sentence(lambda: results.save(results.read_runs(folder), folder))
    if not said:
        results.load(folder / results.FILE)


def sentence(call):
    """Return the error for users of a call, or nothing; any other error is raised."""
    said = ""
    try:
        call()
    except UserError as error:
        said = str(error)
    assert "\n" not in said
    return said


def test_what_a_run_writes_is_read_whole(tmp_path):
    write(tmp_path)
    assert read_config(tmp_path / "run")["config"] == TrainConfig().identity()
    assert read_result(tmp_path / "run") == RESULT
    assert read_study(tmp_path)["target"] == 0.5
    assert read_config(tmp_path) is None


def test_a_byte_order_mark_and_unknown_settings_are_no_fault(tmp_path):
    config = to_dict(TrainConfig()) | {"later": {"setting": [1, "x"]}, "huge": 10**30}
    content = b"\xef\xbb\xbf" + json.dumps({**CONFIG, "config": config}).encode()
    write(tmp_path, config=content)
    frame = results.read_runs(tmp_path)
    assert frame["config.later.setting"].tolist() == ['[1, "x"]']
    assert frame["config.huge"].tolist() == [str(10**30)]
    read(tmp_path)


@pytest.mark.parametrize("name", ["config", "result", "study"])
def test_flipped_and_cut_files(tmp_path, name):
    whole = WHOLE[f"{name}.json"].encode()

    @settings(max_examples=100, deadline=5000)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255), st.integers(0, len(whole)))
    def check(at, flip, end):
        damaged = bytearray(whole)
        damaged[at] ^= flip
        read(write(tmp_path, **{name: bytes(damaged)}))
        read(write(tmp_path, **{name: whole[:end]}))

    check()


@pytest.mark.parametrize("name", ["config", "result", "study"])
def test_any_value_in_any_field(tmp_path, name):
    whole = json.loads(WHOLE[f"{name}.json"])
    fields = [(key,) for key in whole]
    fields += [
        (key, inner) for key in whole if isinstance(whole[key], dict) for inner in whole[key]
    ]

    @settings(max_examples=150, deadline=5000)
    @given(st.sampled_from(fields), JSON)
    def check(field, value):
        content = json.loads(json.dumps(whole))
        table = content if len(field) == 1 else content[field[0]]
        table[field[-1]] = value
        read(write(tmp_path, **{name: json.dumps(content).encode("utf-8", "replace")}))

    check()


def test_texts_of_a_table_are_utf8(tmp_path):
    path = results.save(results.read_runs(write(tmp_path)), tmp_path)
    table = parquet.read_table(path)
    column = table.schema.get_field_index("run")
    damaged = pyarrow.array([b"\xff"] * len(table)).view(pyarrow.string())
    parquet.write_table(table.set_column(column, "run", damaged), path)
    assert "UTF8" in sentence(lambda: from_results(results.load(path)))


def test_flipped_tables(tmp_path):
    frame = results.read_runs(write(tmp_path))
    whole = results.save(frame, tmp_path).read_bytes()
    path = tmp_path / "damaged.parquet"

    @settings(max_examples=60, deadline=5000)
    @given(st.integers(0, len(whole) - 1), st.integers(1, 255), st.integers(0, len(whole)))
    def check(at, flip, end):
        damaged = bytearray(whole)
        damaged[at] ^= flip
        for content in (bytes(damaged), whole[:end]):
            path.write_bytes(content)
            sentence(lambda: results.load(path))

    check()
