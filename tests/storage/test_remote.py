"""Folders of runs at a URL: what is sent when, resuming elsewhere, locks without clocks."""

import dataclasses
import json
import os
import re
import shutil
import signal
import sys
import time
import uuid

import numpy as np
import pandas
import pytest
import safetensors.numpy
from drills import kill_run
from helpers import made_runs

from bocb_jax import results, sweep
from bocb_jax.__main__ import main as bocb
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.errors import FolderInUse, Interrupted, UserError
from bocb_jax.storage import lease, mirror, remote
from bocb_jax.storage.remote import Store, Workdir, saved_steps
from bocb_jax.study.spec import Search, Study
from bocb_jax.train import train


@pytest.fixture(params=["memory", "file"])
def url(request, tmp_path):
    if request.param == "memory":
        return f"memory://{uuid.uuid4().hex}/runs"
    return f"file://{tmp_path}/there/runs"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Runs at URLs work in a folder of this test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# --- Stores ---------------------------------------------------------------------------------------


def test_files_are_written_read_and_deleted(url, tmp_path):
    store = Store(url)
    assert store.folders() == store.files() == []
    assert store.read(["a/x", "b"]) == {}
    store.write("a/x", b"1")
    assert store.create("a/y", b"2")
    assert not store.create("a/y", b"3")
    here = tmp_path / "here"
    (here / "c" / "d").mkdir(parents=True)
    (here / "c" / "d" / "z").write_bytes(b"4")
    store.upload(here, ["c/d/z"])
    assert store.read(["a/x", "a/y", "c/d/z", "no"]) == {"a/x": b"1", "a/y": b"2", "c/d/z": b"4"}
    assert store.folders() == ["a", "c"]
    assert store.files() == ["a/x", "a/y", "c/d/z"]
    assert store.files("c") == ["c/d/z"]
    store.download(["c/d/z", "a/x"], tmp_path / "back")
    assert (tmp_path / "back" / "c" / "d" / "z").read_bytes() == b"4"
    store.remove(["a/x", "no"])
    store.remove(["no"])
    assert store.files() == ["a/y", "c/d/z"]
    with pytest.raises(FileNotFoundError):
        store.upload(here, ["gone"])
    with pytest.raises(UserError, match="cannot be read"):
        store.download(["no"], tmp_path / "back")
    with pytest.raises(UserError, match="leads out of its folder"):
        store.download(["c/../../z"], tmp_path / "back")


@pytest.mark.parametrize("name", ["t.parquet", "t.csv", "t.tsv", "t.txt", "t.json", "t.JSONL"])
def test_a_table_of_any_form_is_downloaded_as_a_file(url, name):
    Store(url).write(name, b"content")
    with remote.local_copy(f"{url}/{name}") as file:
        assert file.read_bytes() == b"content"


def test_a_driver_that_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"pip install 'bocb-jax\[remote\]', or gcsfs alone") as one:
        Store("gs://bucket/runs")
    with pytest.raises(UserError, match="is no URL that fsspec knows") as two:
        Store("nowhere://bucket/runs")
    assert "\n" not in str(one.value) + str(two.value)


# --- Locks ----------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(lease, "BEAT", 0.05)
    monkeypatch.setattr(lease, "WAIT", 0.6)


def test_a_lock_that_is_alive_is_refused_and_one_that_is_not_taken_over(url, quick):
    store = Store(url)
    with lease.hold(store, ".lock", "one", "It is taken.") as held:
        refused = pytest.raises(FolderInUse, match=r"It is taken\.")
        with refused, lease.hold(store, ".lock", "two", "It is taken."):
            pass
        held._ended.set()  # as if its process had been killed
        held._thread.join()
        begun = time.monotonic()
        with lease.hold(store, ".lock", "two", "It is taken."):
            assert time.monotonic() - begun > 0.5
            with pytest.raises(FolderInUse):
                held.check()
        assert store.files() == []


def test_a_machine_takes_over_its_own_lock_at_once(url, quick, monkeypatch):
    monkeypatch.setattr(lease, "WAIT", 100.0)
    store = Store(url)
    first = lease.Lease(store, ".lock", "me", "taken")
    first.acquire()
    first._ended.set()
    first._thread.join()
    with lease.hold(store, ".lock", "me", "taken") as held:
        held.check()


@pytest.mark.parametrize("content", [b"[]", b"3", b"", b"\xff", b"[" * 10**5, b"{}"])
def test_a_lock_that_cannot_be_read_is_taken_over(url, quick, content):
    store = Store(url)
    store.write(".lock", content)
    with lease.hold(store, ".lock", "me", "taken") as held:
        held.check()
        store.write(".lock", content)
        with pytest.raises(FolderInUse):
            held.check()


@pytest.mark.parametrize("content", [b"", b"\xff", bytes(10**6)])
def test_a_name_of_a_writer_that_is_damaged_is_replaced(tmp_path, content):
    (tmp_path / ".owner").write_bytes(content)
    owner = lease.owner_of(tmp_path)
    assert len(owner) == 32
    assert lease.owner_of(tmp_path) == owner


# --- A run ----------------------------------------------------------------------------------------


@pytest.fixture
def config(url, compile_cache):
    settings = {
        "model": "vit_mini",
        "opt": "lamb",
        "epochs": 2,
        "batch_size": 128,
        "image_size": 16,
        "workdir": url,
        "compile_cache": compile_cache,
        "parallel": {"devices": 1},
        "checkpoint": {"every_steps": 4},
        "log": {"every_steps": 3, "progress": "none"},
        "model_args": {"depth": 1, "width": 16, "heads": 2},
    }
    return from_dict(TrainConfig, settings)


def interrupt_after(saves, monkeypatch):
    """Sends SIGTERM to this process after so many saves."""
    save, count = Checkpoints.save, []

    def counted(self, *arguments):
        save(self, *arguments)
        count.append(1)
        if len(count) == saves:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Checkpoints, "save", counted)


@pytest.mark.slow
def test_a_run_goes_on_on_another_machine_to_the_same_bits(config, tmp_path, monkeypatch):
    whole = dataclasses.replace(config, workdir=str(tmp_path / "whole"))
    outcome = train(whole)
    interrupt_after(2, monkeypatch)
    with pytest.raises(Interrupted):
        train(config)
    (store,) = [Store(config.workdir).inside(run) for run in Store(config.workdir).folders()]
    manifest = json.loads(store.read(["mirror.json"])["mirror.json"])["files"]
    there = set(store.files())
    assert there == {*manifest, "mirror.json"}  # neither a lock nor a superseded checkpoint
    assert "result.json" not in there
    steps = {name.split("/")[2] for name in manifest if name.startswith("checkpoints/last/")}
    assert len(steps) == config.checkpoint.keep
    shutil.rmtree(tmp_path / "cache")  # another machine has none of it
    ended = train(config)
    assert ended["test_accuracy"] == outcome["test_accuracy"]
    store.download(store.files(), tmp_path / "back")
    kill_run.compare(tmp_path / "back", whole.folder())
    # Nothing of a run that has ended is kept here, and the same command says so again.
    assert not list((tmp_path / "cache").rglob("checkpoints"))
    before = store.files()
    assert train(config) == ended
    assert store.files() == before
    # The URL of the run itself will do as well.
    assert train(dataclasses.replace(config, workdir=store.url)) == ended


def test_a_wrong_setting_leaves_nothing_there(config):
    with pytest.raises(UserError, match="depht"):
        train(dataclasses.replace(config, model_args={"depht": 1}))
    assert Store(config.workdir).files() == []
    distributed = dataclasses.replace(config.parallel, distributed=True)
    with pytest.raises(UserError, match="give a path on a shared file system"):
        train(dataclasses.replace(config, parallel=distributed))


class Free:
    def check(self): ...


def made(tmp_path, url):
    """A folder with one checkpoint, sent."""
    here = tmp_path / "here"
    put(here, "config.json", "{}")
    put(here, "metrics.jsonl", "1")
    put(here, "checkpoints/last/10/state/a", "ten")
    sent = mirror.Mirror(Store(url), here, Free())
    (here / ".mirror").mkdir()
    assert not sent.pull()
    assert sent.push()
    return here, sent


def put(folder, name, text):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_is_sent_comes_in_the_order_in_which_it_can_be_read(tmp_path, url, monkeypatch):
    here, sent = made(tmp_path, url)
    put(here, "checkpoints/last/20/state/a", "twenty")
    put(here, "checkpoints/best/20/state/a", "best")
    put(here, "checkpoints/last/30.orbax-checkpoint-tmp/state/a", "half")
    put(here, "metrics.jsonl", "1 2")
    put(here, "result.json", "{}")
    shutil.rmtree(here / "checkpoints" / "last" / "10")
    order = []
    for name in ("upload", "write", "remove"):
        method = getattr(Store, name)

        def noted(self, *arguments, name=name, method=method):
            named = list(arguments[-1] if name != "write" else [arguments[0]])
            order.extend((name, each) for each in named)
            return method(self, *arguments[:-1], named if name != "write" else arguments[-1])

        monkeypatch.setattr(Store, name, noted)
    assert sent.push()
    assert order == [
        ("upload", "checkpoints/best/20/state/a"),
        ("upload", "checkpoints/last/20/state/a"),
        ("upload", "metrics.jsonl"),
        ("write", "mirror.json"),
        ("upload", "result.json"),
        ("remove", "checkpoints/last/10/state/a"),
    ]
    order.clear()
    assert sent.push()
    assert order == []


def test_a_machine_lost_in_the_midst_of_sending_loses_no_more_than_that(tmp_path, url, monkeypatch):
    here, sent = made(tmp_path, url)
    put(here, "checkpoints/last/20/state/a", "twenty")
    put(here, "metrics.jsonl", "1 2")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", lambda *_: pytest.fail("lost"))
        with pytest.raises(pytest.fail.Exception):
            sent.push()
    there = Store(url)
    assert "checkpoints/last/20/state/a" in there.files()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / ".mirror").mkdir(parents=True)
    put(elsewhere, "checkpoints/last/15/state/a", "of an earlier start there")
    taken = mirror.Mirror(there, elsewhere, Free())
    assert not taken.pull()
    kept = {str(p.relative_to(elsewhere)) for p in elsewhere.rglob("*") if p.is_file()}
    kept = {name for name in kept if not name.startswith(".mirror")}
    assert kept == {"config.json", "metrics.jsonl", "checkpoints/last/10/state/a"}
    assert "checkpoints/last/20/state/a" not in there.files()
    # The machine that comes back takes what the other has made of it.
    put(elsewhere, "checkpoints/last/12/state/a", "twelve")
    assert taken.push()
    again = mirror.Mirror(there, here, Free())
    assert not again.pull()
    steps = sorted(path.name for path in (here / "checkpoints" / "last").iterdir())
    assert steps == ["10", "12"]
    # And where nobody else was at it, what lies here may be further.
    put(here, "checkpoints/last/25/state/a", "not sent")
    again.pull()
    assert (here / "checkpoints" / "last" / "25").is_dir()


NO_OBJECTS = ["", "null", "[]", "3", '"a"', '{"a": NaN}', "[" * 10**5, "{" + "1" * 5000, "\xff"]
NO_MANIFESTS = [
    {"files": [], "version": "a"}, {"files": {"a": "1"}, "version": "a"}, {"files": {"a": 1}},
    {"files": {"a": 1}, "version": 3}, {"files": {"a": None}, "version": "a"}, {"version": "a"},
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content"),
    [
        *((n, content) for n in ("mirror.json", "result.json") for content in NO_OBJECTS),
        *(("mirror.json", json.dumps(content)) for content in NO_MANIFESTS),
        ("mirror.json", '{"version": "a", "files": {"../x": 1}}'),
    ],
)
def test_an_edited_file_there_is_refused(tmp_path, url, name, content):
    here, _ = made(tmp_path, url)
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    Store(url).write(name, content.encode("latin-1"))
    with pytest.raises(UserError, match=rf"{re.escape(url)}(/{re.escape(name)}| names a file)"):
        mirror.Mirror(Store(url), here, Free()).pull()
    if "../x" not in content:
        assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
    assert not (tmp_path / "x").exists()
    shutil.rmtree(tmp_path / "records", ignore_errors=True)
    put(tmp_path / "records", name, "")
    (tmp_path / "records" / name).write_bytes(content.encode("latin-1"))
    assert saved_steps(tmp_path / "records") == []


@pytest.mark.parametrize("content", [*NO_OBJECTS, '{"version": 3}', '{"sent": 3}'])
def test_a_damaged_memory_of_what_was_sent_is_as_good_as_none(tmp_path, url, content):
    here, _ = made(tmp_path, url)
    (here / ".mirror" / "sent.json").write_bytes(content.encode("latin-1"))
    again = mirror.Mirror(Store(url), here, Free())
    assert not again.pull()
    assert (here / "checkpoints/last/10/state/a").read_text() == "ten"
    assert again.push()


# --- Tables ---------------------------------------------------------------------------------------

STUDY = Study(
    name="made", backbones=("a",), optimizers=("b",), search=Search(lr_factors=(0.1, 1.0, 10.0))
)


def finished(url, tmp_path, side=2):
    """The runs of a study, at a URL."""
    cells, here = made_runs.cells(STUDY, url, side, side), tmp_path / "made"
    made_runs.finish_all(cells, here)
    (here / "study.json").write_text(json.dumps(STUDY.to_dict()))
    names = [str(path.relative_to(here)) for path in here.rglob("*.json")]
    Store(url).upload(here, names)
    return cells, here


def test_a_sweep_finds_what_has_ended_there(url, tmp_path):
    cells, here = finished(url, tmp_path)
    workdir = Workdir.at(url)
    workdir.pull()
    outcomes = sweep.scan(cells, workdir.path)
    assert len(outcomes) == 16
    table, theirs = results.read_runs(workdir.path), results.read_runs(here)
    assert table.equals(theirs)
    results.save(table, workdir.path)
    workdir.publish(results.FILE)
    # A run that was deleted there is gone here as well, and so is a result.
    first, second, *_ = sorted(outcomes)
    Store(url).remove([f"{first}/config.json", f"{first}/result.json", f"{second}/result.json"])
    if url.startswith("file"):
        shutil.rmtree(f"{url.removeprefix('file://')}/{first}")
    workdir.pull()
    assert set(sweep.scan(cells, workdir.path)) == set(outcomes) - {first, second}
    with sweep.claim(workdir):
        assert ".sweep.lock" in Store(url).files()


def test_analyses_read_there(url, tmp_path, capsys):
    _, here = finished(url, tmp_path)
    assert bocb(["analyze", str(here), "--no-report", "--resamples", "20"]) == 0
    local = capsys.readouterr().out
    assert bocb(["analyze", url, "--no-report", "--resamples", "20"]) == 0
    assert capsys.readouterr().out.replace(url, str(here)) == local
    assert bocb(["recommend", "--model", "net0", "--runs", url]) == 0
    assert "Your own runs" in capsys.readouterr().out
    assert bocb(["analyze", url + "/nothing", "--no-report"]) == 2
    assert f"There is nothing at {url}/nothing." in capsys.readouterr().err


def test_weights_in_several_files_are_read_there(url, tmp_path, capsys):
    draw = np.random.default_rng(0)
    names = {f"layer{i}.weight": f"{'ab'[i % 2]}.safetensors" for i in range(4)}
    for file in set(names.values()):
        arrays = {n: draw.normal(size=(24, 20)).astype("f4") for n in names if names[n] == file}
        Store(url).write(f"net/{file}", safetensors.numpy.save(arrays))
    index = "W.safetensors.index.json"
    Store(url).write(f"net/{index}", json.dumps({"weight_map": names}).encode())
    Store(url).write("net/table.csv", b"not needed")
    for source in (f"{url}/net/{index}", f"{url}/net", f"{url}/net/"):
        assert bocb(["patterns", source, "--jobs", "1", "--output", str(tmp_path / "t.csv")]) == 0
        table = pandas.read_csv(tmp_path / "t.csv")
        assert list(table["layer"]) == [f"layer{i}" for i in range(4)]
        assert table["source"].str.startswith(url).all()
    Store(url).remove(["net/b.safetensors"])
    capsys.readouterr()
    assert bocb(["patterns", f"{url}/net/{index}"]) == 2
    said = capsys.readouterr().err
    assert "cannot be read" in said
    assert "b.safetensors" in said


def test_records_beside_weights_are_read_there(url, tmp_path):
    """Scores and failures of runs come with their weights, as they do from a folder."""
    (cell,) = made_runs.cells(STUDY, url, 1, 1)
    (planned, *_) = cell.planned({})
    made_runs.finish(planned, tmp_path)
    weights = Checkpoints(tmp_path / planned.run / "checkpoints")
    weights.save_best(1, {"params": {"fc": {"kernel": np.eye(24, dtype="f4")}}}, {})
    weights.wait()
    weights.close()
    files = [p for p in (tmp_path / planned.run).rglob("*") if p.is_file()]
    Store(url).upload(tmp_path, [str(path.relative_to(tmp_path)) for path in files])
    tables = []
    for source in (str(tmp_path / planned.run), f"{url}/{planned.run}"):
        out = tmp_path / "t.csv"
        assert bocb(["patterns", source, "--jobs", "1", "--output", str(out)]) == 0
        tables.append(pandas.read_csv(out).drop(columns="source"))
    assert tables[0]["score"].notna().all()
    pandas.testing.assert_frame_equal(*tables)


@pytest.mark.slow
def test_an_s3_server_gives_the_same_bits():
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    from drills import s3_sweep

    s3_sweep.main(["--kills", "2"])


@pytest.mark.slow
def test_ten_thousand_runs_are_found_from_one_listing(tmp_path, monkeypatch):
    url = f"memory://{uuid.uuid4().hex}"
    store, record = Store(url), json.dumps({"config": {"model": "a", "opt": "b"}}).encode()
    for number in range(10_000):
        for name in remote.RUN_FILES:
            store.write(f"run{number}/{name}", record)
    listings, ls = [], type(store._fs).ls
    monkeypatch.setattr(
        type(store._fs), "ls", lambda *a, **k: (listings.append(a[1]), ls(*a, **k))[1]
    )
    begun = time.monotonic()
    Workdir.at(url).pull()
    print(f"10,000 runs in {time.monotonic() - begun:.1f} s")
    assert len(listings) == 1
