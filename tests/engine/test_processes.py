"""Several processes of one run: real ones, which are killed, differ, fail, or never come."""

import contextlib
import json
import re
import signal
import socket
import subprocess
import threading
import time

import jax
import pytest
from drills import processes as drill

from bocb_jax.config import ParallelConfig
from bocb_jax.engine import processes
from bocb_jax.engine.processes import _read_line, are_several, in_all, on_first
from bocb_jax.engine.sockets import addresses
from bocb_jax.errors import Diverged, Interrupted, UserError

# A run in which the code in the middle changes what process 1 does.
PROGRAM = """
import sys
import jax
from bocb_jax.__main__ import run_command
from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.engine.record import Record
from bocb_jax.train import main
{}
sys.exit(run_command(main))
"""
FAILS = """
def step_dispatched(self, before=Record.step_dispatched):
    before(self)
    if self.step == 30 and jax.process_index() == 1:
        raise {}
Record.step_dispatched = step_dispatched
"""
CANNOT_READ = """
def load(self, name, step, abstract, before=Checkpoints._load):
    if step == 22 and jax.process_index() == 1:
        raise ValueError("no such array")
    return before(self, name, step, abstract)
Checkpoints._load = load
"""


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def ended(started: list[subprocess.Popen]) -> list[tuple[int, str]]:
    """Exit code and what was written to stderr, without what Gloo says."""
    found = []
    for process in started:
        _, said = process.communicate(timeout=600)
        lines = [line for line in said.splitlines() if not line.startswith("[Gloo]")]
        found.append((process.returncode, "\n".join(lines)))
    return found


def has_saved(workdir) -> bool:
    return any(workdir.glob("*/checkpoints/last/*/checksums.*"))


def first_line(workdir) -> str:
    """The first line of metrics, with the time that it took: it is kept when a run resumes."""
    (path,) = workdir.glob("*/metrics.jsonl")
    return path.read_text().partition("\n")[0]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "victim"), [(2, 0), (2, 1), (3, 1)])
def test_the_others_end_when_one_is_killed_and_the_same_command_resumes(
    tmp_path, cache, count, victim
):
    # 960 of the images for training are a number of batches of 60 or 64 for 3 or 2 processes.
    options = ["--epochs", "8", "--batch-size", "60" if count == 3 else "64"]
    started = drill.start(tmp_path, cache, count, *options, piped=True)
    deadline = time.monotonic() + 600
    while not has_saved(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    killed = started.pop(victim)
    killed.kill()
    killed.communicate()
    for code, said in ended(started):
        assert code == 75, said
        assert f"Process {victim} of {count} is gone; start the same command again." in said
    assert not list(tmp_path.glob("*/result.json"))
    before = first_line(tmp_path)
    again = ended(drill.start(tmp_path, cache, count, *options, piped=True))
    assert [code for code, _ in again] == [0] * count
    assert first_line(tmp_path) == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "codes"), [
    (signal.SIGTERM, {143}),
    (signal.SIGINT, {130, 143}),  # the others are told by SIGTERM
])  # fmt: skip
def test_all_stop_at_one_step_when_one_is_asked_to(tmp_path, cache, number, codes):
    started = drill.start(tmp_path, cache, 2, "--epochs", "400", piped=True)
    deadline = time.monotonic() + 600
    while not has_saved(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    started[1].send_signal(number)
    found = ended(started)
    assert {code for code, _ in found} <= codes, found
    assert all("saved" in said for _, said in found), found
    assert not list(tmp_path.glob("*/result.json"))


@pytest.mark.slow
def test_all_stop_at_one_step_when_the_time_is_over(tmp_path, cache):
    limit = ["--epochs", "4000", "--max-minutes", "0.5"]
    found = ended(drill.start(tmp_path, cache, 2, *limit, piped=True))
    assert [code for code, _ in found] == [143, 143], found
    steps = {re.search(r"Stopped at step (\d+) and saved", said)[1] for _, said in found}
    assert len(steps) == 1, found
    assert any("The time of --max-minutes is over." in said for _, said in found)
    assert not list(tmp_path.glob("*/result.json"))


# Work that process VICTIM fails in.
WORK = """
import sys
from bocb_jax.__main__ import run_command
from bocb_jax.engine.outcome import in_a_sentence
from bocb_jax.engine.processes import in_all, together
from bocb_jax.train import parse

def main(arguments):
    config = parse(arguments)
    with together(config), in_a_sentence(config.workdir):
        for step in range(100_000):
            if step == 20 and config.parallel.process == VICTIM:
                raise ERROR
            in_all(True)
    return 0

sys.exit(run_command(main))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("error", "code", "said"), [
    ("ValueError('no luck')", 1, "ValueError: no luck"),
    ("MemoryError", 2, "Memory ran out; use a smaller --batch-size"),
    ("KeyboardInterrupt", 130, "Stopped at once, without another save"),
    ("SystemExit(4)", 4, "SystemExit: 4"),
])  # fmt: skip
@pytest.mark.parametrize("victim", [0, 1])
def test_the_others_end_as_one_that_fails(tmp_path, cache, error, code, said, victim):
    program = ["-c", WORK.replace("VICTIM", str(victim)).replace("ERROR", error)]
    found = ended(drill.start(tmp_path, cache, 3, piped=True, program=program))
    assert [found_code for found_code, _ in found] == [code] * 3
    del found[victim]
    for _, text in found:
        assert f"Process {victim} of 3 ended: {said}" in text


@pytest.mark.slow
def test_a_state_that_one_process_cannot_read_is_set_aside_in_all(tmp_path, cache):
    program = ["-c", PROGRAM.format(FAILS.format("ValueError"))]
    ended(drill.start(tmp_path, cache, 2, piped=True, program=program))
    program = ["-c", PROGRAM.format(CANNOT_READ)]
    (one, first), (two, second) = ended(
        drill.start(tmp_path, cache, 2, piped=True, program=program)
    )
    assert (one, two) == (0, 0), first + second
    assert "The checkpoint of step 22 cannot be read (by another process); renamed to" in first
    assert "Resuming from the checkpoint of step 11 instead." in first
    assert "step 22" not in second
    assert len(list(tmp_path.glob("*/checkpoints/last/22.damaged"))) == 1


@pytest.mark.slow
def test_settings_that_differ_are_refused_in_all(tmp_path, cache):
    started = drill.start(tmp_path, cache, 2, each=[["--lr", "0.1"], ["--lr", "0.2"]])
    (first, one), (second, other) = ended(started)
    assert (first, second) == (2, 2)
    assert "different settings" in one
    assert "process 1 differs from process 0: lr: 0.1 there, 0.2 here" in other
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_an_ended_run_that_is_to_start_anew_is_refused_in_all(tmp_path, cache):
    for options, code in (((), 0), (("--no-resume",), 2)):
        started = drill.start(tmp_path, cache, 2, "--epochs", "1", *options, piped=True)
        assert [found for found, _ in ended(started)] == [code, code]


@pytest.mark.slow
def test_a_partner_that_never_starts(tmp_path, cache):
    started = drill.start(tmp_path, cache, 2, "--parallel.wait", "12", piped=True)
    started[1].kill()
    started[1].communicate()
    ((code, said),) = ended(started[:1])
    assert code == 2
    assert "Waiting for all processes of this run to start (this is process 0 of 2" in said
    assert "did not start within 12 s" in said


@pytest.mark.parametrize(("sent", "found"), [
    (b'{"process": 1}\n', {"process": 1}), (b"", None), (b"GET / HTTP/1.0\n", None),
    (b"[1]\n", None), (b'{"process": 1}', None),
])  # fmt: skip
def test_what_is_no_message_closes_a_connection(sent, found):
    here, there = socket.socketpair()
    with here, there:
        there.sendall(sent)
        there.shutdown(socket.SHUT_WR)
        with here.makefile("rb") as stream:
            assert _read_line(stream) == found


def as_process(monkeypatch, index: int, count: int, *from_first: str) -> None:
    """Let this process be one of a run, and the first process send it these texts."""
    texts = iter(from_first)
    monkeypatch.setattr(jax, "process_index", lambda: index)
    monkeypatch.setattr(jax, "process_count", lambda: count)
    monkeypatch.setattr(processes, "_from_first", lambda text: next(texts, text))


def test_an_address_where_something_else_listens_is_passed_by(monkeypatch, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with socket.create_server(("127.0.0.2", port)) as first:
            where = json.dumps([["127.0.0.1", "127.0.0.2"], port])
            as_process(monkeypatch, 1, 2, "hello answer", where)
            said = []

            def serve():
                connection, _ = other.accept()
                with connection:
                    connection.sendall(b'{"hello": "stranger"}\n')
                connection, _ = first.accept()
                with connection, connection.makefile("rb") as stream:
                    connection.sendall(b'{"hello": "hello"}\n')
                    said.extend([_read_line(stream), _read_line(stream)])

            serving = threading.Thread(target=serve)
            serving.start()
            processes._Partners(ParallelConfig()).leave()
            serving.join()
    assert said == [
        {"answer": "answer", "process": 1},
        {"process": 1, "code": 0, "message": ""},
    ]
    assert not capsys.readouterr().err


def test_process_0_turns_strangers_away_and_says_whom_it_misses(monkeypatch, capsys):
    as_process(monkeypatch, 0, 3, "hello answer")
    monkeypatch.setattr(processes, "_ACCEPT_SECONDS", 3.0)
    server = processes._listening(3)
    monkeypatch.setattr(processes, "_listening", lambda backlog: server)
    address = ("localhost", server.getsockname()[1])
    stranger, other = (socket.create_connection(address) for _ in range(2))
    with stranger, other:
        stranger.sendall(b"GET / HTTP/1.0\n")
        other.sendall(b'{"answer": "answer", "process": 2}\n')
        partners = processes._Partners(ParallelConfig())
        partners.leave(2, "no")
        with other.makefile("rb") as stream:
            assert _read_line(stream) == {"hello": "hello"}
            assert _read_line(stream) == {"process": 0, "code": 2, "message": "no"}
    assert "Process 0 has no connection to process 1:" in capsys.readouterr().err


def test_what_the_others_are_told_of_an_error():
    saved = Interrupted("Stopped.", signal_number=15)
    assert processes._farewell(saved) == processes._farewell(Diverged("", step=3)) == (0, "")
    assert processes._farewell(Interrupted("At once.", signal_number=2, saved=False)) == (
        130,
        "At once.",
    )
    assert processes._farewell(SystemExit())[0] == 0
    assert processes._farewell(SystemExit("why"))[0] == 1
    code, said = processes._farewell(ValueError("a\n" * 5000))
    assert code == 1
    assert len(said) == 2000


def test_one_process_needs_no_partners():
    assert not are_several(ParallelConfig())
    assert are_several(ParallelConfig(coordinator="host:1"))
    assert on_first(lambda: 3) == 3
    assert in_all(True)
    assert not in_all(False)
    assert addresses("[::1]:80")[0] == "::1"


def test_the_others_are_told_of_an_error_before_what_waits_for_them_is_closed(monkeypatch):
    """A save that has begun waits for all processes when it is closed."""
    order, late = [], threading.Event()
    partners = processes._Partners.__new__(processes._Partners)
    partners._ending = False
    monkeypatch.setattr(partners, "leave", lambda code, message: order.append((code, message)))
    monkeypatch.setattr(processes, "_NEWS_SECONDS", 0.0)
    monkeypatch.setattr(processes, "_end_soon", lambda code, message: late.set())

    def fail():
        with contextlib.ExitStack() as stack:
            stack.callback(order.append, "closed")
            stack.enter_context(partners.telling())
            raise UserError("The disk is full.")

    with pytest.raises(UserError):
        fail()
    assert order == [(2, "The disk is full."), "closed"]
    assert late.wait(10)  # and this process ends even if that cannot be closed


def test_no_error_is_told_of_a_run_that_all_have_saved(monkeypatch):
    partners = processes._Partners.__new__(processes._Partners)
    partners._ending = False
    with pytest.raises(Interrupted), partners.telling():
        raise Interrupted("Stopped.", signal_number=15)
    assert not partners._ending
