"""The benchmark on accelerators: which batch and form count, what does not run, and a rehearsal."""

import contextlib
import json
import subprocess
import sys

import pytest

from bocb_jax.bench import gpu


class Pretended:
    """A side that answers with set rates, images per second by (form, batch)."""

    problem = None

    def __init__(self, rates):
        self.rates, self.asked, self.waiting = rates, [], []

    def send(self, **request):
        self.waiting.append(request)

    def receive(self):
        request = self.waiting.pop()
        self.asked.append(request)
        rate = self.rates.get((request["form"], request["batch"]))
        if rate is None:
            return {"error": "out of memory"}
        peak = max(request["batch"] for request in self.asked)
        return {"seconds": request["batch"] / rate, "warm": 9.0, "peak": peak}

    def ask(self, **request):
        self.send(**request)
        return self.receive()


@pytest.fixture
def compare(monkeypatch):
    def run(ours, theirs, name="resnet50", batch_sizes=(128, 256)):
        sides = iter([Pretended(ours), Pretended(theirs)])
        monkeypatch.setattr(gpu, "Timed", lambda *_, **__: contextlib.nullcontext(next(sides)))
        monkeypatch.setattr(gpu, "_step_flops", lambda name, size: 1e9)
        return gpu.compare(
            name,
            image_size=224,
            batch_sizes=batch_sizes,
            steps=5,
            rounds=3,
            python=["python"],
            peak_flops=1e12,
        )

    return run


def test_each_side_counts_at_its_fastest_batch_and_form(compare):
    found = compare(
        {("compiled", 128): 300.0, ("compiled", 256): 500.0},
        {("compiled", 128): 400.0, ("compiled", 256): 200.0, ("eager", 128): 100.0},
    )
    assert (found.ours.batch_size, found.ours.images_per_second) == (256, 500)
    assert (found.theirs.batch_size, found.theirs.form) == (128, "compiled")
    assert found.ratio == pytest.approx(1.25)
    assert found.utilization == pytest.approx(500 * 1e9 / 1e12)
    assert found.problems == ("theirs, eager, batch 256: out of memory",)


def test_a_side_that_never_fits_leaves_no_ratio(compare):
    found = compare({}, {("eager", 128): 100.0})
    assert found.ours is None
    assert found.ratio is None
    assert found.utilization is None
    assert "ours, compiled, batch 128: out of memory" in found.problems


def test_a_further_round_that_fails_is_named(compare, monkeypatch):
    rates = {("compiled", 128): 300.0}

    def receive(self, before=Pretended.receive):
        answer = before(self)
        if len(self.asked) == 6:  # after two batch sizes, each warmed up and timed, and a round
            return {"error": "out of memory"}
        return answer

    monkeypatch.setattr(Pretended, "receive", receive)
    found = compare(rates, {}, name="resnet_mini")
    assert found.ours.images_per_second == 300
    assert "ours, compiled, batch 128, a further round: out of memory" in found.problems


def test_a_backbone_that_pytorch_lacks_is_timed_alone(compare):
    found = compare({("compiled", 128): 300.0}, {}, name="resnet_mini")
    assert found.theirs is None
    assert found.ours.images_per_second == 300


def test_batches_grow_since_the_peak_of_memory_is_that_of_a_process(compare):
    found = compare(
        {("compiled", 128): 500.0, ("compiled", 256): 300.0}, {}, batch_sizes=[256, 128, 256]
    )
    assert (found.ours.batch_size, found.ours.peak_bytes) == (128, 128)


def test_a_side_that_cannot_start_says_why(compare, monkeypatch):
    monkeypatch.setattr(Pretended, "problem", "the process has ended: no torch here")
    found = compare({("compiled", 128): 300.0}, {})
    assert found.problems == (
        "ours: the process has ended: no torch here",
        "theirs: the process has ended: no torch here",
    )


@pytest.mark.slow
def test_the_rehearsal_runs_on_a_cpu(tmp_path):
    words = "--only resnet_mini --members 1 2 --steps 1 --rounds 1 --image-size 32 --batch-sizes 4"
    command = [sys.executable, "-m", "bocb_jax", "bench", "--gpu", *words.split()]
    done = subprocess.run(
        [*command, "--json", "gpu.json"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "resnet_mini" in done.stdout
    product, alone, together = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert product["matmul_flops"] > 0
    assert [alone["members"], together["members"]] == [1, 2]
