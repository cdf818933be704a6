"""A sweep on a real Ray cluster of two nodes on this machine, one of which is killed midway.

    PYTHONPATH=tests python tests/drills/ray_sweep.py

The table must equal that of the local pool but for what the clock decides, with and without the
loss of a node, and the weights of every final run to the last bit.
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drills import kill_sweep

PORT = 6391
ENVIRONMENT = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1", "RAY_DISABLE_IMPORT_WARNING": "1"}


def ray(*words: str) -> None:
    command = [str(Path(sys.executable).with_name("ray")), *words]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}
    )
    assert done.returncode == 0, done.stdout + done.stderr


def start_cluster() -> None:
    stop_cluster()
    shared = ("--num-cpus=1", "--object-store-memory=100000000", "--disable-usage-stats")
    ray("start", "--head", f"--port={PORT}", "--include-dashboard=false", *shared)
    ray("start", f"--address=127.0.0.1:{PORT}", *shared)


def stop_cluster() -> None:
    ray("stop", "--force")


def nodes() -> list[int]:
    """The processes that stand for nodes, the head first."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if command[0].endswith(b"/raylet"):
            found.append((b"--head" not in command, int(folder.name)))
    return [pid for _, pid in sorted(found)]


def sweep(study: Path, workdir: Path, cache: Path) -> subprocess.Popen:
    address = ("--cluster", f"127.0.0.1:{PORT}")
    return kill_sweep.start(study, workdir, cache, *address, "--progress", "lines")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir")
    root = Path(parser.parse_args(arguments).workdir or tempfile.mkdtemp())
    root.mkdir(parents=True, exist_ok=True)
    study, cache = root / "study.toml", root / "cache"
    study.write_text(kill_sweep.STUDY)
    kill_sweep.finish(kill_sweep.start(study, root / "local", cache))
    try:
        start_cluster()
        begun = time.monotonic()
        print(kill_sweep.finish(sweep(study, root / "cluster", cache)))
        life = time.monotonic() - begun
        kill_sweep.compare(root / "cluster", root / "local")
        print(f"two nodes give the table of the local pool, in {life:.0f} s", flush=True)
        process = sweep(study, root / "lost", cache)
        while len(list((root / "lost").glob("digits-*/result.json"))) < 2:
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        lost = nodes()[-1]
        os.kill(lost, 9)
        ended = len(list((root / "lost").glob("digits-*/result.json")))
        print(f"killed one of {len(nodes()) + 1} nodes with {ended} runs ended", flush=True)
        said = kill_sweep.finish(process)
        print(said)
        kill_sweep.compare(root / "lost", root / "local")
        lost = re.findall(r"^digits-\S+: (The worker .*)$", said, re.MULTILINE)
        assert lost, said
        assert all("The run is started again" in line for line in lost), lost
        assert "RayActorError" not in said, said
        assert "Traceback" not in said, said
        print("nothing was lost", flush=True)
    finally:
        stop_cluster()


if __name__ == "__main__":
    main()
