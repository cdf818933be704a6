"""Several processes of one run: real ones, which are killed, differ, or never come."""

import socket
import subprocess
import time

import pytest
from drills import processes

from bocb_jax.config import ParallelConfig
from bocb_jax.engine.processes import _addresses, _differences, _read_line, are_several, on_first


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def ended(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and what was written to stderr, without what Gloo says."""
    found = []
    for process in started:
        _, said = process.communicate(timeout=240)
        lines = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
        found.append((process.returncode, "\n".join(lines)))
    return found


def begun(workdir) -> bool:
    return any(path.stat().st_size > 2000 for path in workdir.glob("*/metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_when_one_is_killed_and_the_same_command_goes_on(tmp_path, cache, victim):
    started = processes.start(tmp_path, cache, 2, "--epochs", "20", piped=True)
    deadline = time.monotonic() + 240
    while not begun(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    started[victim].kill()
    began = time.monotonic()
    code, said = ended([started[1 - victim]])[0]
    assert time.monotonic() - began < 30
    assert code == 75
    assert f"Process {victim} of 2 is gone; start the same command again." in said
    started[victim].communicate()
    again = ended(processes.start(tmp_path, cache, 2, "--epochs", "20", piped=True))
    assert [code for code, _ in again] == [0, 0]


@pytest.mark.slow
def test_settings_that_differ_are_refused_in_all(tmp_path, cache):
    started = processes.start(tmp_path, cache, 2, each=[["--lr", "0.1"], ["--lr", "0.2"]])
    (first, one), (second, other) = ended(started)
    assert (first, second) == (2, 2)
    assert "different settings" in one
    assert "lr is 0.2, 0.1 in process 0" in other
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_ended_run_that_is_to_start_anew_is_refused_in_all(tmp_path, cache):
    for options, code in (((), 0), (("--no-resume",), 2)):
        started = processes.start(tmp_path, cache, 2, "--epochs", "1", *options, piped=True)
        assert [found for found, _ in ended(started)] == [code, code]


@pytest.mark.slow
def test_a_partner_that_never_starts(tmp_path, cache):
    started = processes.start(tmp_path, cache, 2, "--parallel.wait", "12", piped=True)
    started[1].kill()
    started[1].communicate()
    ((code, said),) = ended(started[:1])
    assert code == 2
    assert "Waiting for all processes of this run to start (this is process 0 of 2" in said
    assert "did not start within 12 s" in said


def test_what_differs_is_named():
    first = {"lr": 0.1, "parallel": {"processes": 2, "fsdp": 1}}
    assert _differences(first, first) == []
    here = {"lr": 0.2, "parallel": {"processes": 2, "fsdp": 2}}
    assert _differences(first, here) == [
        "lr is 0.2, 0.1 in process 0",
        "parallel.fsdp is 2, 1 in process 0",
    ]


@pytest.mark.parametrize(("sent", "found"), [
    (b'{"process": 1}\n', {"process": 1}), (b"", None), (b"GET / HTTP/1.0\n", None),
    (b"[1]\n", None), (b'{"process": 1}', None),
])  # fmt: skip
def test_what_is_no_message_closes_a_connection(sent, found):
    here, there = socket.socketpair()
    with here, there:
        there.sendall(sent)
        there.shutdown(socket.SHUT_WR)
        assert _read_line(here) == found


def test_one_process_needs_no_partners():
    assert not are_several(ParallelConfig())
    assert are_several(ParallelConfig(coordinator="host:1"))
    assert on_first(lambda: 3) == 3
    assert _addresses(ParallelConfig(coordinator="[::1]:80"))[0] == "::1"
