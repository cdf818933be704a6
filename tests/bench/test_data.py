"""`bocb bench --data`: throughput of the data pipeline, with and without PyTorch beside it."""

import json
import sys

import pytest

from bocb_jax.__main__ import main
from bocb_jax.bench import __main__ as bench
from bocb_jax.bench.data import Speed, measure_folder
from bocb_jax.errors import UserError


def pretended(monkeypatch):
    """Let each part of the benchmark have its figures at once, without PyTorch."""
    share = {"whole_seconds": [2.0], "model_seconds": [1.0]}
    folder = Speed("folder", 224, [5.0], [])
    monkeypatch.setattr(bench, "folder_speed", lambda **_: folder)
    monkeypatch.setattr(
        bench, "augmentation_speed", lambda size, **_: Speed("augmentation", size, [5.0], [])
    )
    monkeypatch.setattr(
        bench, "_outside_the_model", lambda recipe, rounds: {"recipe": recipe, **share}
    )


@pytest.mark.parametrize("measured", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_data(measured, tmp_path, capsys, monkeypatch):
    if not measured:
        pretended(monkeypatch)
    file = tmp_path / "data.json"
    assert main(["bench", "--data", "--rounds", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "DeiT recipe's augmentation, 224 px" in printed
    assert "outside it" in printed
    *speeds, pytorch, deit = json.loads(file.read_text())["rows"]
    found = [(row["of"], row["size"]) for row in speeds]
    assert found == [("folder", 224), ("augmentation", 32), ("augmentation", 224)]
    assert (pytorch["recipe"], deit["recipe"]) == ("pytorch", "deit")
    assert all(row["model_seconds"][0] > 0 for row in (pytorch, deit))


def fake_torch(answer):
    """Return the command of an interpreter that evaluates `answer` for every line it is sent."""
    ready = """print('{"ready": true}', flush=True)"""
    script = f"import sys; {ready}; [{answer} for _ in sys.stdin]"
    return [sys.executable, "-c", script]


def test_a_folder_is_read_in_turn_with_a_fake_torch():
    python = fake_torch("""print('{"rate": 123}', flush=True)""")
    speed = measure_folder(rounds=2, images=8, batch=2, unseen=1, python=python)
    assert (speed.of, speed.size, speed.theirs) == ("folder", 224, [123, 123])
    assert len(speed.ours) == 2
    assert speed.ratio == pytest.approx(sum(speed.ours) / 2 / 123)


def test_pytorch_failing_is_a_message_for_users():
    with pytest.raises(UserError, match=r"side of the comparison failed: .* ended: no posterize"):
        measure_folder(
            rounds=1,
            images=4,
            batch=2,
            unseen=1,
            python=fake_torch("sys.exit('no posterize here')"),
        )


def test_without_pytorch_there_is_no_ratio():
    speed = measure_folder(rounds=1, images=4, batch=2, unseen=1, python=[sys.executable, "-c", ""])
    assert (len(speed.ours), speed.theirs, speed.ratio) == (1, [], None)
