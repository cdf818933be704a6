"""`metrics.jsonl`: what a crash or a damaged disk leaves of it is kept, and gaps are marked."""

import json
import os

import pytest

from bocb_jax.engine.metrics import JsonLines
from bocb_jax.engine.outcome import summary
from bocb_jax.errors import UserError

STEPS = (10, 20, 30, 40, 50)
LINES = [{"step": step, "loss": 1 / step, "accuracy": 0.5, "seconds": 1.5} for step in STEPS]


def write(path, lines):
    path.write_text("".join(line if isinstance(line, str) else json.dumps(line) + "\n"
                            for line in lines))  # fmt: skip


def resumed(path, after=50, count=5):
    """Resume at a step, write one line more, and return the file's lines."""
    lines = JsonLines(path, after=after, count=count)
    lines.write({"step": 60, "loss": 0.0, "accuracy": 1.0})
    lines.close()
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_with_a_number_beyond_all_bounds_is_damaged(tmp_path):
    write(tmp_path / "m", [*LINES[:2], LINES[2] | {"loss": 10**400}, *LINES[3:]])
    assert [line["step"] for line in resumed(tmp_path / "m") if "gap" not in line] == [
        10, 20, 40, 50, 60,
    ]  # fmt: skip


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "m")
    with pytest.raises(UserError, match="is no regular file"):
        JsonLines(tmp_path / "m")


def test_a_whole_file_is_kept_and_later_lines_are_removed(tmp_path, caplog):
    write(tmp_path / "m", [*LINES, {"step": 60, "loss": 1.0, "accuracy": 0.0}, '{"step": 7'])
    assert resumed(tmp_path / "m")[:-1] == LINES
    assert not caplog.text


@pytest.mark.parametrize(
    "bad",
    ["\0\n", '{"step": 30, "lo\n', "[]\n", "null\n", '{"step": "30", "loss": 1, "accuracy": 1}\n',
     '{"step": 30, "loss": "x", "accuracy": 1}\n', '{"step": 30, "accuracy": 1}\n',
     '{"step": 3000, "loss": 1, "accuracy": 1}\n', '{"step": 5, "loss": 1, "accuracy": 1}\n',
     "[" * 10**5 + "\n", "",
    ],
)  # fmt: skip
@pytest.mark.parametrize("count", [5, None])
def test_a_damaged_or_missing_line_becomes_a_gap(tmp_path, bad, count, caplog):
    write(tmp_path / "m", [*LINES[:2], bad, *LINES[3:]])
    if not bad and count is None:  # of a version that did not count its lines
        assert resumed(tmp_path / "m", count=count)[:-1] == LINES[:2] + LINES[3:]
        return
    lines = resumed(tmp_path / "m", count=count)
    gap = {"step": 30, "gap": "lines between step 20 and step 30 were lost"}
    assert lines[:-1] == [*LINES[:2], gap, *LINES[3:]]
    assert caplog.text.count("lines between step 20 and step 30 were lost") == 1
    # It is said once: the next start finds a whole file.
    caplog.clear()
    assert resumed(tmp_path / "m", after=60, count=6)[:-1] == lines
    assert not caplog.text


@pytest.mark.parametrize("kept", [0, 2])
def test_a_file_that_is_gone_or_cut_short_is_a_gap_at_its_end(tmp_path, kept, caplog):
    if kept:
        write(tmp_path / "m", LINES[:kept])
    lines = resumed(tmp_path / "m")
    assert lines[:kept] == LINES[:kept]
    assert lines[kept] == {
        "step": 50,
        "gap": f"lines between step {10 * kept} and step 50 were lost",
    }
    assert len(lines) == kept + 2
    assert "is damaged" in caplog.text


def test_a_summary_leaves_gaps_out():
    gap = {"step": 40, "gap": "lines were lost"}
    found = summary([*LINES[:3], gap, LINES[4]], epoch_steps=20)
    assert found["train_loss"] == LINES[4]["loss"]
    assert summary([gap], epoch_steps=20)["train_loss"] is None
    assert summary([gap, LINES[4]], epoch_steps=50)["first_train_loss"] is None


def test_a_full_disk_is_a_sentence_once(tmp_path):
    lines = JsonLines(tmp_path / "m")
    file, lines._file = lines._file, open("/dev/full", "ab", buffering=0)  # noqa: SIM115
    file.close()
    with pytest.raises(UserError, match="m cannot be written: No space left on device; earlier"):
        lines.write(LINES[0])
    lines.close()
