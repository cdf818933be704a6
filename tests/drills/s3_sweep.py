"""Runs and sweeps on a server that speaks S3, on this machine (`pip install 'moto[server]' s3fs`).

    PYTHONPATH=tests python tests/drills/s3_sweep.py [--ray] [--kills 4]

A run that is killed at random and goes on now on the same and now on another machine, that is, with
an empty scratch folder, must leave the bits of an undisturbed one. So must a sweep that is killed,
with `--ray` on a cluster of two nodes. Then the table is read from the URL, and ten thousand
runs are found there.
"""

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from drills import kill_run, kill_sweep

from bocb_jax.storage.remote import RUN_FILES, Store, Workdir

STUDY = re.sub(r"seeds = \[1, 2\]", "seeds = [1]", kill_sweep.STUDY)


@contextlib.contextmanager
def server() -> Iterator[None]:
    """A server with an empty bucket, which every process started in the block finds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "nobody",
        "AWS_SECRET_ACCESS_KEY": "nothing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    command = [str(Path(sys.executable).with_name("moto_server")), "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        import s3fs

        while True:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        s3fs.S3FileSystem().mkdir("bucket")
        yield
    finally:
        process.terminate()
        process.wait()


def fetch(url: str, folder: Path) -> Path:
    """Everything there, and that no lock was left."""
    store = Store(url)
    names = store.files()
    assert names, f"nothing at {url}"
    assert not [name for name in names if name.endswith("lock")], names
    store.download(names, folder)
    return folder


def saved_step(url: str) -> int:
    """The last step that a run has sent; -1 for none."""
    manifest = Store(url).read(["mirror.json"]).get("mirror.json", b'{"files": {}}')
    names = [name.split("/") for name in json.loads(manifest)["files"]]
    return max((int(parts[2]) for parts in names if parts[1:2] == ["last"]), default=-1)


def run(root: Path, kills: int, moments: random.Random) -> None:
    cache, url = root / "cache", "s3://bucket/runs"
    kill_run.SETTINGS |= {"epochs": 60, "checkpoint.every-steps": 40}
    kill_run.finish(kill_run.start(root / "whole", cache))
    machine = 1
    for kill in range(kills):
        os.environ["XDG_CACHE_HOME"] = str(root / f"machine{machine}")
        process, before = kill_run.start(url, cache), saved_step(f"{url}/the_run")
        target = before + moments.randrange(150)
        while process.poll() is None and saved_step(f"{url}/the_run") < target:
            time.sleep(0.05)
        time.sleep(moments.uniform(0, 1))
        process.send_signal(moments.choice([signal.SIGKILL, signal.SIGTERM]))
        process.communicate()
        assert process.returncode, "it ended before it was killed"
        after = saved_step(f"{url}/the_run")
        print(f"kill {kill + 1} (exit code {process.returncode}), machine {machine}: step {before} "
              f"was there, then step {after}", flush=True)  # fmt: skip
        if moments.random() < 0.6:
            shutil.rmtree(root / f"machine{machine}")
            machine += 1
    os.environ["XDG_CACHE_HOME"] = str(root / "last_machine")
    kill_run.finish(kill_run.start(url, cache))
    there = fetch(f"{url}/the_run", root / "back")
    kill_run.compare(there, root / "whole" / "the_run")
    print(f"equal to the last bit after {kills} kills on {machine + 1} machines", flush=True)


def sweep(root: Path, options: tuple[str, ...], url: str) -> None:
    cache, study = root / "cache", root / "study.toml"
    study.write_text(STUDY)
    os.environ["XDG_CACHE_HOME"] = str(root / "sweeper1")
    if not (root / "local").exists():
        kill_sweep.finish(kill_sweep.start(study, root / "local", cache))
    process = kill_sweep.start(study, url, cache, *options)
    while not [n for n in Store(url).files() if n.endswith("result.json")]:
        assert process.poll() is None, process.communicate()
        time.sleep(0.5)
    process.kill()
    process.communicate()
    print("the sweep was killed; another machine goes on", flush=True)
    shutil.rmtree(root / "sweeper1", ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = str(root / "sweeper2")
    print(kill_sweep.finish(kill_sweep.start(study, url, cache, *options)))
    kill_sweep.compare(fetch(url, root / url.rpartition("/")[2]), root / "local", runs=6)
    print(f"the table at {url} is that of a local sweep", flush=True)


def read(url: str) -> None:
    for words in (
        ("analyze", url, "--no-report", "--resamples", "100"),
        ("analyze", f"{url}/results.parquet", "--no-report", "--resamples", "100"),
        ("recommend", "--model", "vit_mini", "--runs", url),
        ("patterns", url),
    ):
        command = [sys.executable, "-m", "bocb_jax", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        print(" ".join(words), "->", done.stdout.strip().partition("\n")[0], flush=True)


def ten_thousand() -> None:
    url = "s3://bucket/many"
    store, record = Store(url), json.dumps({"config": {"model": "a" * 1000}}).encode()
    paths = {store._full(f"run{i}/{name}"): record for i in range(10_000) for name in RUN_FILES}
    store._fs.pipe(paths)
    workdir = Workdir.at(url)
    begun = time.monotonic()
    workdir.pull()
    taken = time.monotonic() - begun
    found = len(list(workdir.path.glob("run*/result.json")))
    assert found == 10_000
    print(f"the records of {found} runs were read in {taken:.1f} s", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--kills", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--many", action="store_true", help="ten thousand runs as well")
    parser.add_argument("--only-run", action="store_true", help="no sweep")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary, server():
        root = Path(temporary)
        run(root, options.kills, random.Random(options.seed))
        if options.only_run:
            return
        sweep(root, (), "s3://bucket/pool")
        read("s3://bucket/pool")
        if options.ray:
            import ray_sweep

            try:
                ray_sweep.start_cluster()
                address = f"127.0.0.1:{ray_sweep.PORT}"
                sweep(root, ("--cluster", address), "s3://bucket/cluster")
            finally:
                ray_sweep.stop_cluster()
        if options.many:
            ten_thousand()


if __name__ == "__main__":
    main()
