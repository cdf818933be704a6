"""Sweeps of real, tiny runs: kills, failures, bad input, what is compiled."""

import errno
import json
import os
import re
import sys
import time
from pathlib import Path

import pandas
import pytest
from drills import kill_sweep
from helpers import made_runs
from helpers.studies import TINY, Pretended, answer, command, died, ready, study, write

from bocb_jax import results, sweep, train
from bocb_jax.engine import outcome
from bocb_jax.engine.checkpoint import _reporting_failures
from bocb_jax.errors import UserError
from bocb_jax.storage.lock import only_writer
from bocb_jax.storage.remote import Workdir
from bocb_jax.study import resolve
from bocb_jax.study.messages import UNWRITABLE, Answer, Event, EventKind, Request, Task
from bocb_jax.study.plan import Cell
from bocb_jax.study.pool import share_out
from bocb_jax.study.progress import Lines, Progress
from bocb_jax.study.scheduler import Scheduler
from bocb_jax.study.search import Point
from bocb_jax.study.spec import read_study
from bocb_jax.study.worker import Executor

EXPERIMENTS = Path(os.environ.get("BOCB_JAX_SOURCE", Path(__file__).parents[1])) / "experiments"


@pytest.mark.slow
def test_kills_lose_and_double_nothing():
    kill_sweep.main(["--kills", "4", "--seed", "1"])


# --- Scheduling, with workers that only pretend ---------------------------------------------------


def run(tmp_path, ends, *, pairs=2, workers=2, **options):
    cells = made_runs.cells(study(), tmp_path, pairs, 1)
    pool, outcomes = Pretended(workers, ends), {}
    progress = Progress(cells, outcomes, workers)
    scheduler = Scheduler(cells, outcomes, pool, progress, workdir=Workdir.at(tmp_path), **options)
    deadline = time.monotonic() + 20
    complete = scheduler.run(lambda: time.monotonic() > deadline)
    return complete, outcomes, pool, scheduler


def finishing(tmp_path):
    def ends(worker, settings):
        for cell in made_runs.cells(study(), tmp_path, 2, 1):
            for planned in (
                *cell.planned({}),
                *cell._finals(Point(settings["lr"], 1e-4)),
            ):
                if planned.config == settings:
                    made_runs.finish(planned, tmp_path)
                    return [answer(worker)]
        raise AssertionError(settings)

    return ends


def test_a_worker_stays_with_a_pair_as_long_as_there_is_work(tmp_path):
    complete, outcomes, pool, _ = run(tmp_path, finishing(tmp_path))
    assert complete
    assert len(outcomes) == 8
    assert {model for worker, model, _ in pool.order if worker == 0} == {"net0"}
    assert {model for worker, model, _ in pool.order if worker == 1} == {"net1"}


def test_a_full_disk_stops_the_sweep_and_fails_no_run(tmp_path):
    said = "runs/a cannot be written: No space left on device."

    def ends(worker, settings):
        return [Event(EventKind.DONE, worker, Answer([UNWRITABLE], said))]

    with pytest.raises(UserError, match=r"on device\. The sweep has stopped"):
        run(tmp_path, ends)
    assert not list(tmp_path.glob("*/result.json"))


def of_the_system(number, path):
    raise OSError(number, os.strerror(number), str(path))


def of_a_file(number, path):
    try:
        of_the_system(number, path)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}.") from error


def of_a_checkpoint(number, path):
    with _reporting_failures(path):  # TensorStore calls it an exhausted resource
        raise ValueError(f"RESOURCE_EXHAUSTED: {path}: [OS error: {os.strerror(number)}]")


@pytest.mark.parametrize("fails", [of_the_system, of_a_file, of_a_checkpoint])
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO]
)
def test_a_worker_records_no_failure_of_the_disk(tmp_path, monkeypatch, number, fails):
    monkeypatch.setattr(train, "train", lambda config: fails(number, tmp_path / "file"))
    (planned,) = made_runs.cells(study(), tmp_path, 1, 1)[0].planned({})[:1]
    found = Executor().answer(Request(Task.TRAIN, [planned.config]))
    assert found.statuses == [UNWRITABLE]
    assert str(tmp_path) in found.error
    assert not list(tmp_path.glob("*/result.json"))


def test_a_full_quota_is_not_taken_for_full_memory():
    said = outcome.explanation(ValueError("RESOURCE_EXHAUSTED: Disk quota exceeded"), "runs/a")
    assert said.startswith("runs/a cannot be written: Disk quota exceeded; ")
    said = outcome.explanation(RuntimeError("RESOURCE_EXHAUSTED: Out of memory"), "runs/a")
    assert said.startswith("Memory ran out")


def test_idle_workers_help_once_the_first_run_of_a_pair_has_ended(tmp_path):
    finish = finishing(tmp_path)
    first = []

    def ends(worker, settings):
        if not first:
            first.append(worker)
            return []  # still compiling
        return finish(worker, settings)

    cells = made_runs.cells(study(), tmp_path, 1, 1)
    pool = Pretended(2, ends)
    scheduler = Scheduler(cells, {}, pool, Progress(cells, {}, 2), workdir=Workdir.at(tmp_path))
    begun = time.monotonic()
    assert not scheduler.run(lambda: time.monotonic() - begun > 1)
    assert len(pool.order) == 1


@pytest.mark.parametrize(("deaths", "status"), [(3, "finished"), (4, "crashed")])
def test_a_run_whose_worker_dies_is_tried_again_so_many_times(tmp_path, deaths, status):
    finish, deaths_so_far = finishing(tmp_path), []

    def ends(worker, settings):
        if settings["lr"] == 1.0 and len(deaths_so_far) < deaths:
            deaths_so_far.append(worker)
            return [died(worker, "The worker process ended with signal 9."), ready(worker)]
        return finish(worker, settings)

    complete, outcomes, _, _ = run(tmp_path, ends, pairs=1, workers=1, retries=3)
    assert complete
    statuses = sorted(outcome.status for outcome in outcomes.values())
    assert statuses == sorted(["finished"] * 3 + [status])
    frame = results.read_runs(tmp_path)
    assert len(frame) == 4
    if status == "crashed":
        (error,) = frame.loc[frame["status"] == "crashed", "error"]
        assert "signal 9. That happened 4 times in a row" in error


def test_workers_that_cannot_even_start_end_the_sweep(tmp_path):
    cells, pool = made_runs.cells(study(), tmp_path, 1, 1), Pretended(2, lambda *_: [])
    pool.events = lambda timeout: [died(0, "It ended with exit code 1.")]
    scheduler = Scheduler(cells, {}, pool, Progress(cells, {}, 2), workdir=Workdir.at(tmp_path))
    with pytest.raises(sweep.UserError, match=r"No worker could start. It ended with exit"):
        scheduler.run()


def test_a_lost_worker_is_a_sentence(tmp_path, capsys):
    finish, deaths_so_far = finishing(tmp_path), []

    def ends(worker, settings):
        if settings["lr"] == 1.0 and len(deaths_so_far) < 2:
            deaths_so_far.append(worker)
            return [died(worker, "It was lost with its node."), ready(worker)]
        return finish(worker, settings)

    cells = made_runs.cells(study(), tmp_path, 1, 1)
    lines = Lines(cells, {}, 1)
    Scheduler(cells, {}, Pretended(1, ends), lines, workdir=Workdir.at(tmp_path)).run()
    (run,) = [planned.run for planned in cells[0].planned({}) if planned.point.lr == 1.0]
    said = [line for line in capsys.readouterr().err.splitlines() if "lost" in line]
    again = f"{run}: It was lost with its node. The run is started again from its last save"
    assert said == [f"{again}.", f"{again}; it has lost 2 workers without progress."]


def test_a_run_that_takes_too_long_is_ended_and_recorded(tmp_path):
    finish = finishing(tmp_path)

    def ends(worker, settings):
        return [] if settings["lr"] == 1.0 else finish(worker, settings)

    complete, outcomes, pool, _ = run(tmp_path, ends, pairs=1, workers=1, minutes_per_run=0.005)
    assert complete
    assert pool.killed == [0]
    assert sorted(o.status for o in outcomes.values()) == ["finished"] * 3 + ["timed_out"]


def test_no_run_is_started_once_the_hours_are_spent(tmp_path):
    complete, outcomes, _, _ = run(tmp_path, finishing(tmp_path), device_seconds=1e-9)
    assert not complete
    assert len(outcomes) == 2  # one a worker, before anything was spent


def test_a_folder_that_is_still_in_use_is_no_failure(tmp_path, monkeypatch):
    # This process keeps nothing on disk.
    monkeypatch.setattr("bocb_jax.engine.compile_cache.use_compile_cache", lambda folder: None)
    spec = read_study(write(tmp_path, TINY))
    (pair, *_) = resolve.find_pairs(spec)
    planned = Cell(pair, spec, tmp_path / "runs").planned({})[0]
    with only_writer(tmp_path / "runs" / planned.run, ".lock", "taken"):
        assert Executor().answer(Request(Task.TRAIN, [planned.config])).statuses == ["interrupted"]
    assert not (tmp_path / "runs" / planned.run / "result.json").exists()


def test_cores_are_shared_out_evenly(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3, 4, 5, 6, 7})
    assert [share.cores for share in share_out(3)] == [(0, 1), (2, 3, 4), (5, 6, 7)]
    assert [share.cores for share in share_out()] == [(core,) for core in range(8)]
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {4, 5})
    assert [share.cores for share in share_out(3)] == [(4,), (5,), (4,)]
    monkeypatch.setenv("JAX_PLATFORMS", "")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3,5")
    devices = [share.environment["CUDA_VISIBLE_DEVICES"] for share in share_out(2)]
    assert devices == ["2", "3,5"]


# --- The command ----------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cold_cache(tmp_path, monkeypatch):
    """Nothing is found that an earlier session compiled, and nothing left in the user's home."""
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("vit_mini", "vit_minor"), "There is no model 'vit_minor'"),
        (('"sgd", "adamw"', '"sgdd"'), "There is no optimizer 'sgdd'"),
        (('"sgd", "adamw"', '"category:x"'), "optimizers: nothing matches 'category:x'"),
        (('"vit_mini"', '"nothing*"'), "backbones: nothing matches 'nothing"),
        (("depth = 1", "depht = 1"), "vit_mini has no setting depht"),
        (("image_size = 16", "image_size = 17"), "17 pixels cannot be cut into patches"),
        (("image_size = 16", "image_size = 16\ntest_size = 17"), "17 pixels cannot be cut into"),
        (("[final]", "[opt_args.sgd]\nb1 = 0.5\n[final]"), "sgd has no hyper-parameter b1"),
        (("[final]", "[opt_args.sgd]\nlr = 0.5\n[final]"), "opt_args.lr is not a setting of its"),
        (("[final]", "[opt_args.sgd]\ndecay = 'l1'\n[final]"), "no weight decay of the kind 'l1'"),
        (
            ("[final]", "[opt_args.sgd.momentum]\na = 1\n[final]"),
            r"opt_args.momentum is \{'a': 1\}",
        ),
        (("epochs = 4", 'epochs = 4\ndataset = "digit"'), "There is no dataset 'digit'"),
        (("[final]", "[budget]\nruns = 5\n[final]"), r"plans 6 runs .* and budget.runs is 5"),
    ],
)
def test_a_study_that_cannot_be_is_one_line_and_leaves_nothing(
    tmp_path, monkeypatch, change, message
):
    monkeypatch.setattr(sweep, "resolve_study", resolve.find_pairs)  # without a process of its own
    path = write(tmp_path, TINY.replace(*change))
    with pytest.raises(sweep.UserError, match=message) as caught:
        sweep.sweep(read_study(path), tmp_path / "runs")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


NETS = """
import optax
from flax import nnx

class Net(nnx.Module):
    def __init__(self, num_classes, rngs):
        self.head = nnx.Linear(3, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.head(x.mean((1, 2)))

class TakesTrain(Net):
    def __call__(self, x, train):
        return super().__call__(x)

class TakesNothing(Net):
    def __call__(self):
        return 0

def fails(learning_rate):
    return optax.GradientTransformation(lambda params: (), lambda grads, state, params: 1 / 0)
"""


@pytest.mark.parametrize(
    ("backbone", "optimizer", "message"),
    [
        ("Net", "sgd", None),
        ("TakesTrain", "sgd", "takes train, which a run does not pass: remove it"),
        ("TakesNothing", "sgd", "takes no images"),
        ("Net", "nets:fails", "'nets:fails' fails in its update: ZeroDivisionError"),
    ],
)
def test_ones_own_is_checked_before_a_sweep(tmp_path, monkeypatch, backbone, optimizer, message):
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    text = re.sub("model_args = .*", "", TINY.replace('"vit_mini"', f'"nets:{backbone}"'))
    spec = read_study(write(tmp_path, text.replace('"sgd", "adamw"', f'"{optimizer}"')))
    if message is None:
        assert [pair.optimizer for pair in resolve.find_pairs(spec)] == [optimizer]
        return
    with pytest.raises(sweep.UserError, match=message):
        resolve.find_pairs(spec)


def test_a_decay_mask_is_an_argument_of_every_optimizer(tmp_path):
    text = TINY.replace("[final]", "[opt_args.sgd]\ndecay_mask = 'all'\n[final]")
    (sgd, _) = resolve.find_pairs(read_study(write(tmp_path, text)))
    assert sgd.train["opt_args"] == {"decay_mask": "all"}


def test_the_end_of_the_time_stops_a_sweep_like_a_signal(tmp_path):
    path, runs = write(tmp_path, TINY), tmp_path / "runs"
    said = command(path, "--workdir", runs, "--workers", "1", "--max-minutes", "0.0001")
    assert said.returncode == 143, said.stderr
    assert "The time of --max-minutes is over. Stopped; the same command resumes" in said.stderr


def test_two_sweeps_do_not_write_to_one_folder(tmp_path):
    refused = pytest.raises(sweep.UserError, match="Another sweep is writing")
    with sweep.claim(Workdir.at(tmp_path)), refused, sweep.claim(Workdir.at(tmp_path)):
        pass
    with sweep.claim(Workdir.at(tmp_path)):
        pass


def test_a_folder_that_was_edited_is_found(tmp_path):
    cells = made_runs.cells(study(), tmp_path, 1, 1)
    planned = cells[0].planned({})[0]
    made_runs.finish(planned, tmp_path)
    assert len(sweep.scan(cells, tmp_path)) == 1
    record = json.loads((tmp_path / planned.run / "config.json").read_text())
    record["config"]["lr"] = 7.0
    (tmp_path / planned.run / "config.json").write_text(json.dumps(record))
    with pytest.raises(sweep.UserError, match=r"lr: 7.0 there, 0.01 here.*was it edited"):
        sweep.scan(cells, tmp_path)


def test_retry_takes_up_what_failed_but_not_what_diverged(tmp_path):
    cells = made_runs.cells(study(), tmp_path, 1, 1)
    for planned, status in zip(
        cells[0].planned({}), ("crashed", "diverged", "finished"), strict=True
    ):
        made_runs.finish(planned, tmp_path, status=status)
    assert len(sweep.scan(cells, tmp_path)) == 3
    left = sweep.scan(cells, tmp_path, retry=True)
    assert sorted(outcome.status for outcome in left.values()) == ["diverged", "finished"]


def test_a_sweep_from_its_command_to_its_table(tmp_path):
    # One rate at which training diverges, and one that the optimizer can take.
    text = TINY.replace("lr_factors = [0.1, 1]", "lr = [0.1, 1e30]").replace(', "adamw"', "")
    path, runs = write(tmp_path, text), tmp_path / "runs"
    said = command(path, "--workdir", runs, "--progress", "lines")
    assert said.returncode == 0, said.stderr
    frame = pandas.read_parquet(runs / "results.parquet")
    assert sorted(frame["status"]) == ["diverged", "finished", "finished"]
    final = frame[frame["phase"] == "final"].iloc[0]
    assert (final["learning_rate"], final["seed"]) == (0.1, 1)
    assert final["test_accuracy"] > 0
    assert re.search(r"For 1 pairs XLA compiled 1 gradient, 1 update \(", said.stderr)
    # Trials keep no checkpoints, winners do.
    kept = {folder.parent.name for folder in runs.glob("*/checkpoints")}
    assert kept == {final["run"]}
    again = command(path, "--workdir", runs)
    assert again.returncode == 0
    assert "0 of them now" in again.stderr


@pytest.mark.slow
def test_a_sweep_at_a_url_leaves_what_one_in_a_folder_does_and_compiles_nothing_again(tmp_path):
    text = TINY.replace("lr_factors = [0.1, 1]", "lr = [0.1, 0.2]").replace(', "adamw"', "")
    path, runs = write(tmp_path, text), tmp_path / "runs"
    assert command(path, "--workdir", runs).returncode == 0
    frame = pandas.read_parquet(runs / "results.parquet")
    # Learning rates and seeds are inputs of the programs.
    url = f"file://{tmp_path}/other"
    other = command(path, "--workdir", url, "--search.lr", "[0.1, 0.3]")
    assert "compiled no training step (0 programs in all)" in other.stderr, other.stderr
    there = pandas.read_parquet(tmp_path / "other" / "results.parquet")
    columns = ["learning_rate", "status", "validation_accuracy", "train_loss"]
    pandas.testing.assert_frame_equal(
        *(t[(t["phase"] == "search") & (t["learning_rate"] == 0.1)][columns].reset_index(drop=True)
          for t in (frame, there))
    )  # fmt: skip
    assert len(there) == 3
    assert len(list((tmp_path / "other").glob("*/checkpoints/best"))) == 1
    assert not list((tmp_path / "other").rglob(".*lock"))


@pytest.mark.slow
def test_a_dry_run_says_what_it_takes(tmp_path):
    said = command(write(tmp_path, TINY), "--workdir", tmp_path / "runs", "--dry-run")
    assert said.returncode == 0, said.stderr
    assert "2 pairs, 6 runs, 6 of them still to do" in said.stderr
    assert re.search(r"About [\d.e-]+ device-hours", said.stderr)
    assert re.search(r"Up to [\d.e-]+ GB", said.stderr)
    assert not list((tmp_path / "runs").glob("digits*"))


@pytest.mark.slow
def test_a_ray_cluster_of_two_nodes_gives_the_same_table_and_survives_a_lost_node(tmp_path):
    pytest.importorskip("ray")
    from drills import ray_sweep

    ray_sweep.main(["--workdir", str(tmp_path)])


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_studies_that_are_shipped_can_be_read(path):
    assert read_study(path).name == path.stem
    assert "# Expect:" in path.read_text()


def planned(name, tmp_path):
    """Pairs and runs of a study that is shipped, where none of its data are."""
    path = EXPERIMENTS / f"{name}.toml"
    elsewhere = {} if "task" in read_study(path).train else {"train.data.dir": str(tmp_path)}
    spec = read_study(path, elsewhere)
    cells = [Cell(pair, spec, tmp_path) for pair in resolve.find_pairs(spec, stand_in=True)]
    return len(cells), sum(cell.size for cell in cells)


def test_the_studies_that_are_shipped_can_be_planned_without_their_data(tmp_path):
    assert planned("quickstart", tmp_path) == (25, 150)
    assert planned("augmentation", tmp_path) == (48, 288)
    assert planned("imagenet", tmp_path) == (40, 40)
    assert planned("transfer_small", tmp_path) == (18, 108)


@pytest.mark.slow
def test_the_large_studies_that_are_shipped_can_be_planned_without_their_data(tmp_path):
    assert planned("norm_swap", tmp_path) == (48, 288)
    assert planned("macro_design", tmp_path) == (48, 288)
    assert planned("coco_detection", tmp_path) == (160, 1280)
    assert planned("coco_pose", tmp_path) == (60, 480)
    assert planned("mini_grid", tmp_path) == (400, 3200)
    assert planned("cifar100_paper", tmp_path) == (400, 1200)
    assert planned("cifar100_search", tmp_path) == (400, 11200)
