"""Runs on clusters: what the scripts start, and what is derived from a cluster's variables."""

import os
import re
import subprocess
import sys

import jax
import pytest
from drills import processes as drill
from helpers.pages import ROOT
from jax._src import clusters

from bocb_jax.config import ParallelConfig
from bocb_jax.engine import processes

SCRIPTS = ROOT / "experiments" / "clusters"
SLURM = {
    "SLURM_JOB_ID": "4097", "SLURM_STEP_NODELIST": "node[07-08,11],other", "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5", "SLURM_LOCALID": "1", "SLURM_STEP_NUM_NODES": "4",
}  # fmt: skip
WORDS = ["--workdir", "/shared/my runs", "--lr", "0.1"]


# --- Scripts, with commands that only write down what they are given ------------------------------


@pytest.fixture
def script(tmp_path):
    """Return a function that runs a script with made commands, and returns what they noted."""
    (tmp_path / "bin").mkdir()

    def run(name, *words, environment=None, **commands):
        for command, body in {"sleep": "exit 0", **commands}.items():
            path = tmp_path / "bin" / command
            path.write_text(f"#!/bin/bash\n{body}\n")
            path.chmod(0o755)
        env = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "NOTES": str(tmp_path / "notes")}
        command = name if isinstance(name, list) else ["bash", str(SCRIPTS / name)]
        ended = subprocess.run(
            [*command, *words], env=env | (environment or {}), cwd=tmp_path, timeout=60
        )
        notes = tmp_path / "notes"
        found = notes.read_text().splitlines() if notes.exists() else []
        notes.unlink(missing_ok=True)
        return ended.returncode, sorted(found)

    return run


NOTE = 'echo "${0##*/} $(printf "[%s]" "$@")" >> "$NOTES"; '
LOCAL = NOTE + 'shift; exec bash -c "${1/bash -lc/bash -c}"'  # ssh, without a host
TRAIN = "bocb [train]" + "".join(f"[{word}]" for word in WORDS)


@pytest.mark.parametrize(("code", "queued"), [(0, 0), (2, 0), (3, 0), (75, 1), (137, 1), (143, 1)])
def test_a_job_of_slurm_is_queued_again_until_its_run_has_ended(script, code, queued):
    ended, notes = script(
        "slurm.sh", *WORDS, environment={"SLURM_JOB_ID": "7"},
        srun=f"{NOTE}exit {code}", scontrol=NOTE,
    )  # fmt: skip
    assert ended == code
    start = "srun [bocb][train][--parallel.distributed][--max-minutes][230]"
    assert notes == ["scontrol [requeue][7]"] * queued + [
        start + TRAIN.removeprefix("bocb [train]")
    ]


def test_ssh_starts_a_process_on_every_host_until_the_run_has_ended(script):
    bocb = NOTE + "[ -e ended ] && exit 0; touch ended; exit 75"
    code, notes = script("ssh.sh", *WORDS, environment={"HOSTS": "a b"}, ssh=LOCAL, bocb=bocb)
    assert code == 0
    train = [note for note in notes if note.startswith("bocb")]
    where = "[--parallel.coordinator][a:12355][--parallel.processes][2][--parallel.process]"
    assert train == [f"{TRAIN}{where}[{number}]" for number in (0, 0, 1, 1)]
    assert [note.split("]")[0] for note in notes if note.startswith("ssh")] == [
        "ssh [a", "ssh [a", "ssh [b", "ssh [b",
    ]  # fmt: skip


@pytest.mark.parametrize("code", [0, 2, 3, 143])
def test_ssh_ends_with_the_code_of_the_run(script, code):
    ended, notes = script(
        "ssh.sh", *WORDS, environment={"HOSTS": "a"}, ssh=LOCAL, bocb=f"{NOTE}exit {code}"
    )
    assert ended == code
    assert len(notes) == 2


@pytest.mark.parametrize(("codes", "ended"), [("143 0", 0), ("255 75 2", 2), ("3", 3)])
def test_a_run_on_a_tpu_is_started_until_it_has_ended(script, codes, ended):
    gcloud = f'{NOTE}codes=({codes}); touch "$((count = $(ls [0-9] 2>/dev/null | wc -l)))"; ' \
             'exit "${codes[$count]}"'  # fmt: skip
    environment = {"TPU": "v", "ZONE": "z"}
    code, notes = script("tpu.sh", *WORDS, environment=environment, gcloud=gcloud)
    assert code == ended
    assert len(notes) == len(codes.split())
    assert notes[0].startswith(
        "gcloud [compute][tpus][tpu-vm][ssh][v][--zone][z][--worker=all][--command]"
    )
    command = re.search(r"\[--command\]\[(.*)\]$", notes[0])[1]
    _, notes = script(["bash", "-c", command.replace("bash -lc", "bash -c")], bocb=NOTE)
    assert notes == [TRAIN.replace("[train]", "[train][--parallel.distributed]")]


def test_a_pod_of_kubernetes_knows_its_number(script):
    text = (SCRIPTS / "kubernetes.yaml").read_text()
    command = " ".join(re.search(r"- >-\n((?: {14}.*\n)+)", text)[1].split())
    environment = {"JOB_COMPLETION_INDEX": "1"}
    _, (note,) = script(["bash", "-c", command], environment=environment, bocb=NOTE)
    assert note.startswith("bocb [train][--model][resnet50]")
    assert note.endswith(
        "[--parallel.coordinator][bocb-0.bocb:12355][--parallel.processes][2]"
        "[--parallel.process][1]"
    )
    name = re.search(r"kind: Job\nmetadata:\n  name: (\w+)", text)[1]
    service = re.search(r"kind: Service\nmetadata:\n  name: (\w+)", text)[1]
    assert f"{name}-0.{service}:" in note
    assert f"subdomain: {service}\n" in text
    assert f"job-name: {name}\n" in text


# --- What is derived ------------------------------------------------------------------------------


def detected():
    """What JAX finds out where it is told nothing: coordinator, processes, number, devices."""
    return clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 5)


def test_jax_is_left_to_find_out_what_is_not_given(monkeypatch):
    given = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *words, **_: given.append(words))
    processes._initialize(ParallelConfig(distributed=True))
    processes._initialize(ParallelConfig(coordinator="host:1", processes=3, process=2))
    assert given == [(None, None, None), ("host:1", 3, 2)]


@pytest.mark.parametrize(("nodes", "first"), [
    ("node[07-08,11],other", "node07"), ("a,b", "a"), ("gpu3", "gpu3"),
])  # fmt: skip
def test_tasks_of_slurm(monkeypatch, nodes, first):
    for name, value in {**SLURM, "SLURM_STEP_NODELIST": nodes}.items():
        monkeypatch.setenv(name, value)
    assert detected() == (f"{first}:61441", 8, 5, [1])


def test_hosts_of_a_tpu_slice_on_gke(monkeypatch):
    tpu = "jax._src.clusters.cloud_tpu_cluster"
    monkeypatch.setattr(clusters.cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(f"{tpu}.running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(f"{tpu}.get_metadata", lambda key: ("", 404))  # of Compute Engine
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,other")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    coordinator, count, number, devices = detected()
    assert (coordinator.rpartition(":")[0], count, number, devices) == ("localhost", 2, 1, None)


@pytest.mark.slow
def test_two_tasks_of_slurm_train_a_run(tmp_path):
    words = [*drill.SETTINGS.split(), "--epochs", "1", "--log.progress", "none"]
    words += ["--workdir", str(tmp_path), "--parallel.distributed"]
    started = []
    for number in range(2):
        env = SLURM | {
            "SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": "2", "SLURM_PROCID": str(number), "SLURM_LOCALID": "0",
        }  # fmt: skip
        env |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
        command = [sys.executable, "-m", "bocb_jax.train", *words]
        started.append(subprocess.Popen(command, env=os.environ | env))
    assert drill.wait(started, 600) == [0, 0]
    (starts,) = tmp_path.glob("*/starts.jsonl")
    assert '"devices": 2, "processes": 2' in starts.read_text()
