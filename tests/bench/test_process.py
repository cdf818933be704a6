"""Processes beside the benchmark: their answers, and why there are none."""

import sys

import pytest

from bocb_jax.bench.process import Timed
from bocb_jax.errors import UserError

READY = """import json, os, sys; print(json.dumps({"ready": True}), flush=True);"""


def run(script, settings=None, **kwargs):
    return Timed([sys.executable, "-c", script], settings, **kwargs)


def test_every_request_has_its_answer():
    script = (
        READY
        + """
print("a library says something", flush=True)
print(json.dumps(["so", "does", "another"]), flush=True)
add, = json.loads(sys.argv[1])
for line in sys.stdin:
    print(json.dumps({"sum": json.loads(line)["x"] + add, "of": os.environ["OF"]}), flush=True)
"""
    )
    with run(script, [3], environment={"OF": "here"}) as side:
        assert side.problem is None
        assert side.ask(x=4) == {"sum": 7, "of": "here"}
        side.send(x=5)
        assert side.receive()["sum"] == 8


def test_bytes_come_before_the_requests():
    script = (
        READY
        + """
sent = sys.stdin.buffer.read(2**20)
for line in sys.stdin.buffer:
    print(json.dumps({"sum": sum(sent), "line": line.decode()}), flush=True)
"""
    )
    with run(script, sent=b"\1" * 2**20) as side:
        assert side.ask(x=1) == {"sum": 2**20, "line": '{"x": 1}\n'}


@pytest.mark.parametrize("sent", [b"", bytes(2**20)])
def test_a_missing_library_is_the_problem(sent):
    with run("import no_such_library", sent=sent) as side:
        assert side.problem == (
            "the process has ended: ModuleNotFoundError: No module named 'no_such_library'"
        )
        assert side.ask() == {"error": side.problem}


def test_an_end_in_the_middle_is_an_error_with_its_reason():
    with run(READY + "sys.exit('out of luck')") as side:
        assert side.problem is None
        for _ in range(2):
            assert side.ask(x=1) == {"error": "the process has ended: out of luck"}


def test_a_command_that_is_not_there_is_a_sentence():
    with pytest.raises(UserError, match="'/no/python' cannot be started"):
        Timed(["/no/python", "-c", ""], None)
