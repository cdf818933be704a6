"""Sweeps whose runs train together: who is handed to whom, and the same table as one by one."""

import collections
import dataclasses
import json
import re
import time

import pandas
import pytest
from drills import kill_sweep
from helpers import made_runs
from helpers.studies import TINY, Pretended, command, died, ready, study, write

from bocb_jax import results
from bocb_jax.errors import UserError
from bocb_jax.storage.remote import Workdir
from bocb_jax.study import resolve
from bocb_jax.study.grouping import FILE, Grouping, parse_population
from bocb_jax.study.messages import Answer, Event, EventKind, Request, Task
from bocb_jax.study.plan import Cell
from bocb_jax.study.progress import Progress
from bocb_jax.study.scheduler import Scheduler
from bocb_jax.study.spec import Final, Search, read_study
from bocb_jax.study.worker import Executor

SPEC = study(search=Search(lr_factors=(0.01, 0.1, 1, 10, 100)), final=Final((1, 2, 3)))


class Workers(Pretended):
    """A pool that notes what it is asked, and ends it as `ends(worker, request)` says."""

    def __init__(self, size, tmp_path, ends=None):
        super().__init__(size, None)
        self.asked, self.workdir = [], tmp_path
        self.change = ends or (lambda worker, request: None)

    def start(self, worker, request):
        self.asked.append((request.task, len(request.configs), request.members))
        found = self.change(worker, request)
        self.waiting += self.finish(worker, request) if found is None else found

    def finish(self, worker, request, error=None):
        if request.task is Task.COMPARE:
            return [done(worker, choice={"members": len(request.configs)})]
        for config in request.configs:
            made_runs.finish(self.planned(config), self.workdir)
        return [done(worker, statuses=["finished"] * len(request.configs), error=error)]

    def planned(self, settings):
        cell = made_runs.cells(SPEC, self.workdir, 1, 1)[0]
        from bocb_jax.study.search import Point

        point = Point(settings["lr"], settings["weight_decay"])
        return cell._run(point, settings["seed"], test=settings["test"])


def done(worker, **answer):
    return Event(EventKind.DONE, worker, Answer(**answer))


def run(tmp_path, asked, ends=None, **options):
    pool, outcomes = Workers(1, tmp_path, ends), {}
    cells = made_runs.cells(SPEC, tmp_path, 1, 1)
    scheduler = Scheduler(
        cells,
        outcomes,
        pool,
        Progress(cells, outcomes, 1),
        workdir=Workdir.at(tmp_path),
        grouping=Grouping(asked, Workdir.at(tmp_path)),
        **options,
    )
    deadline = time.monotonic() + 20
    assert scheduler.run(lambda: time.monotonic() > deadline)
    assert len(outcomes) == 8
    assert {outcome.status for outcome in outcomes.values()} == {"finished"}
    return pool, scheduler


def choices(tmp_path):
    return json.loads((tmp_path / FILE).read_text())


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("off", [(Task.TRAIN, 1, 1)] * 8),
        (
            3,
            [(Task.TRAIN_TOGETHER, 3, 3), (Task.TRAIN_TOGETHER, 2, 3), (Task.TRAIN_TOGETHER, 3, 3)],
        ),
        # Two of five places would be filled: these are trained one by one.
        (4, [(Task.TRAIN_TOGETHER, 4, 4), (Task.TRAIN, 1, 1), (Task.TRAIN_TOGETHER, 3, 4)]),
        (9, [(Task.TRAIN_TOGETHER, 5, 5), (Task.TRAIN_TOGETHER, 3, 5)]),
        ("auto", [(Task.COMPARE, 5, 5), (Task.TRAIN_TOGETHER, 5, 5), (Task.TRAIN_TOGETHER, 3, 5)]),
    ],
)
def test_runs_of_a_pair_are_handed_out_together(tmp_path, asked, expected):
    pool, _ = run(tmp_path, asked)
    assert pool.asked == expected
    assert (tmp_path / FILE).exists() == (asked != "off")


def test_a_choice_is_made_once_and_kept(tmp_path):
    def slower(worker, request):
        choice = {"members": 1, "seconds_per_image_alone": 1.0, "seconds_per_image_together": 6.0}
        return [done(worker, choice=choice)] if request.task is Task.COMPARE else None

    pool, _ = run(tmp_path, "auto", slower)
    assert pool.asked == [(Task.COMPARE, 5, 5)] + [(Task.TRAIN, 1, 1)] * 8
    ((name, choice),) = choices(tmp_path).items()
    assert name == "net0 opt0, 4 epochs"
    assert choice["asked"] == "auto"
    assert choice["seconds_per_image_together"] == 6.0
    cells = made_runs.cells(SPEC, tmp_path, 1, 1)
    todo = cells[0].planned({})
    assert Grouping("auto", Workdir.at(tmp_path)).members(cells[0], todo) == 1
    assert Grouping(2, Workdir.at(tmp_path)).members(cells[0], todo[:2]) == 2  # asked for anew


def test_runs_whose_worker_dies_together_continue_one_by_one(tmp_path):
    def dies(worker, request):
        together = request.task is Task.TRAIN_TOGETHER
        return [died(worker, "signal 9"), ready(worker)] if together else None

    pool, _ = run(tmp_path, 5, dies, retries=3)
    assert collections.Counter(task for task, *_ in pool.asked) == {
        Task.TRAIN_TOGETHER: 2,
        Task.TRAIN: 8,
    }


def test_the_minutes_of_a_run_hold_for_each_and_time_lost_together_is_no_failure(tmp_path):
    def hangs(worker, request):
        return [] if request.task is Task.TRAIN_TOGETHER else None

    began = time.monotonic()
    pool, _ = run(tmp_path, 5, hangs, minutes_per_run=0.004)
    assert pool.killed == [0, 0]
    assert time.monotonic() - began > 60 * 0.004 * (5 + 3)


def test_where_training_together_fails_the_pair_is_trained_one_by_one_from_then_on(tmp_path):
    def fails(worker, request):
        if request.task is not Task.TRAIN_TOGETHER:
            return None
        return pool_of[0].finish(worker, request, error="no memory")

    pool_of = [Workers(1, tmp_path)]
    pool, _ = run(tmp_path, 5, fails)
    assert pool.asked == [(Task.TRAIN_TOGETHER, 5, 5)] + [(Task.TRAIN, 1, 1)] * 3
    assert choices(tmp_path)["net0 opt0, 4 epochs"]["error"] == "no memory"


def test_runs_that_were_interrupted_are_handed_out_again(tmp_path):
    stopped = []

    def stops(worker, request):
        if stopped:
            return None
        stopped.append(request.task)
        pool_of[0].finish(worker, dataclasses.replace(request, configs=request.configs[:2]))
        statuses = ["finished", "finished", "interrupted", "interrupted", "interrupted"]
        return [done(worker, statuses=statuses)]

    pool_of = [Workers(1, tmp_path)]
    pool, scheduler = run(tmp_path, 5, stops)
    assert pool.asked == [
        (Task.TRAIN_TOGETHER, 5, 5),
        (Task.TRAIN_TOGETHER, 3, 5),
        (Task.TRAIN_TOGETHER, 3, 5),
    ]
    assert scheduler.counts.ended == 8


@pytest.mark.parametrize("text", ["1", "0", "-3", "on", "2.5"])
def test_another_size_is_a_sentence(text):
    with pytest.raises(UserError, match="must be auto, off, or a number above 1"):
        parse_population(text)


def test_what_trained_together_is_estimated_by_its_share(tmp_path):
    from bocb_jax.study.estimate import _known_seconds

    cells = made_runs.cells(SPEC, tmp_path, 1, 1)
    planned = cells[0].planned({})[0]
    made_runs.finish(planned, tmp_path, wall_seconds=48.0, population=4)
    from bocb_jax.study.scheduler import read_outcome

    outcomes = {planned.run: read_outcome(tmp_path / planned.run)}
    assert _known_seconds(cells, outcomes, tmp_path) == {"net0": 48.0 / (4 * cells[0].pair.images)}


# --- Real, tiny runs ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def cold_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))


@pytest.mark.slow
def test_without_memory_for_all_they_are_trained_one_by_one(tmp_path, monkeypatch):
    import bocb_jax.train_population

    def lacking(configs, members):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 12345 bytes.")

    # This process keeps nothing on disk.
    monkeypatch.setattr("bocb_jax.engine.compile_cache.use_compile_cache", lambda folder: None)
    monkeypatch.setattr(bocb_jax.train_population, "train_together", lacking)
    spec = read_study(write(tmp_path, TINY))
    (pair, *_) = resolve.find_pairs(spec)
    configs = [planned.config for planned in Cell(pair, spec, tmp_path / "runs").planned({})]
    answer = Executor().answer(Request(Task.TRAIN_TOGETHER, configs, members=2))
    assert answer.statuses == ["finished", "finished"]
    assert answer.error is not None
    assert "RESOURCE_EXHAUSTED" in answer.error
    frame = results.read_runs(tmp_path / "runs")
    assert list(frame["population"]) == [1, 1]


@pytest.mark.slow
def test_a_sweep_together_gives_the_table_of_one_by_one(tmp_path):
    text = kill_sweep.STUDY.replace("epochs = 4", "epochs = 2")
    path = write(tmp_path, re.sub(r"lr_factors = .*", "lr_factors = [0.1, 1, 1e30]", text))
    tables = {}
    for population in ("off", "3"):
        runs = tmp_path / population
        options = "--workdir", runs, "--population", population, "--progress", "none"
        said = command(path, *options, "--workers", 1)
        assert said.returncode == 0, said.stderr
        tables[population] = pandas.read_parquet(runs / "results.parquet")
    assert "compiled 2 training steps of runs together (" in said.stderr, said.stderr
    clocks = kill_sweep.CLOCKS
    pandas.testing.assert_frame_equal(  # to rounding: see test_population.py
        *(table.drop(columns=clocks) for table in tables.values()), rtol=1e-4
    )
    assert sorted(tables["3"]["population"].unique()) == [2, 3]  # two seeds fill three places
    assert (tables["off"]["population"] == 1).all()
    assert set(tables["3"]["status"]) == {"finished", "diverged"}


@pytest.mark.slow
def test_auto_measures_each_pair_once(tmp_path):
    path, runs = write(tmp_path, TINY), tmp_path / "runs"
    said = command(path, "--workdir", runs, "--population", "auto", "--workers", 1)
    assert said.returncode == 0, said.stderr
    found = choices(runs)
    assert len(found) == 2
    for choice in found.values():
        alone, together = (choice[f"seconds_per_image_{way}"] for way in ("alone", "together"))
        assert choice["members"] == (2 if together < alone else 1)
    assert "0 of them now" in command(path, "--workdir", runs, "--population", "auto").stderr


@pytest.mark.slow
def test_kills_of_a_sweep_together_change_no_bit():
    kill_sweep.main(["--kills", "4", "--seed", "2", "--population", "2"])
