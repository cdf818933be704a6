"""Commands and Python of README and docs run, with the installed `bocb`, outside of the checkout.

A reader goes through a page from top to bottom in one folder, and so does a test. Blocks marked
`no-run` need a download, a cluster or hours. What would take minutes is shortened by `SHORTER`;
nothing else about a command is changed.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.pages import PAGES, ROOT, blocks, name_of

from bocb_jax.__main__ import main

BOCB = Path(sys.executable).with_name("bocb")
PAGES_WITH_CODE = [
    page for page in PAGES if any(b.language in ("bash", "python") for b in blocks(page))
]

# In order: (pattern, replacement) on the text of a block. Flags come last, so they win.
SHORTER = (
    (r"pip install -e \. && ", ""),  # it is installed
    (r"python -m bocb_jax\.train (.*)", r"bocb train \1"),
    (r"--model vit_s\b", "--model vit_mini"),
    (r"(bocb train [^#\n]*)", r"\1 --epochs 1 --batch-size 256 --image-size 16 "),
    (r"(bocb sweep [^#\n]*--dry-run[^#\n]*)", r"\1 --backbones resnet_mini --optimizers sgd "),
    (r"(bocb sweep (?:(?!--dry-run)[^#\n])*)(?=#|\n)",
     r"\1 --backbones vit_mini,mixer_mini --optimizers sgd,adamw --train.epochs 1 "
     r"--train.batch_size 256 --search.lr_factors '[1]' --final.seeds '[1, 2]' --progress none "),
    (r"(bocb analyze [^#\n]*)", r"\1 --resamples 50 "),
    (r"--budget 30m", "--budget 1s --epochs 1"),
    (r"RUN\b", "digits-vit_mini-sgd-s1-*"),
)  # fmt: skip


DONE: set[str] = set()  # commands that an earlier page has too, which run once


def shortened(text: str) -> str:
    """Return the commands of a block, shortened, without those that ran before."""
    for pattern, replacement in SHORTER:
        text = re.sub(pattern, replacement, text)
    commands = {line: " ".join(line.partition("#")[0].split()) for line in text.splitlines()}
    lines = [line for line, command in commands.items() if command not in DONE]
    DONE.update(command for command in commands.values() if command.startswith("bocb "))
    return "\n".join(lines)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """A shell that finds the installed `bocb`, with one cache of compiled programs."""
    path = f"{BOCB.parent}{os.pathsep}{os.environ['PATH']}"
    cache = str(tmp_path_factory.mktemp("cache"))
    return os.environ | {
        "PATH": path,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "COLUMNS": "100",
    }


@pytest.fixture(scope="module")
def swept(tmp_path_factory, environment):
    """The quickstart's folder as the guides before a page leave it."""
    folder = tmp_path_factory.mktemp("swept")
    shutil.copytree(ROOT / "experiments", folder / "experiments")
    command = shortened("bocb sweep experiments/quickstart.toml --workdir runs/quickstart\n")
    run(command, folder, environment)
    return folder


def run(command: str, folder: Path, environment: dict[str, str]) -> None:
    call(["bash", "-euo", "pipefail", "-c", command], folder, environment)


def call(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"


def test_bocb_is_installed():
    assert BOCB.exists()


# Pages whose code installs the project anew or trains; README has the same kinds of commands.
SLOW = {
    "CONTRIBUTING.md",
    "docs/concepts/patterns.md",
    "docs/guides/analyze.md",
    "docs/guides/own.md",
    "docs/guides/preflight.md",
    "docs/guides/quickstart.md",
    "docs/guides/scores.md",
    "docs/guides/train.md",
    "docs/howto/dataset.md",
}


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name_of(page), marks=[pytest.mark.slow] * (name_of(page) in SLOW))
        for page in PAGES_WITH_CODE
    ],
)
def test_code_of(page, tmp_path, swept, environment):
    folder = shutil.copytree(swept, tmp_path / "reader")
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)
    for block in blocks(page):
        if block.language == "python" and not block.file:
            call([sys.executable, "-c", block.text], folder, environment)
        elif block.language == "bash" and not block.words:
            run(shortened(block.text), folder, environment)
        elif block.language == "bash":
            assert block.words == ("no-run",)


def test_commands_that_are_not_run_name_options_that_exist(monkeypatch, capsys):
    """A `no-run` block is at least spelled as the program understands it."""
    flags = {}
    for page in PAGES:
        for block in blocks(page):
            if block.language != "bash" or "no-run" not in block.words:
                continue
            text = re.sub(r"\\\n|#.*", "", block.text)
            for name, rest in re.findall(r"\bbocb (\w[\w-]*)(.*)", text):
                flags.setdefault(name, set()).update(
                    re.findall(r"--[a-z][\w-]*(?:\.[\w-]+)?", rest)
                )
    assert set(flags) >= {"train", "sweep"}
    monkeypatch.setenv("COLUMNS", "100")
    for name, used in flags.items():
        with contextlib.suppress(SystemExit):
            main([name, "--help"])
        shown = capsys.readouterr().out
        for flag in used:
            known = flag.replace("_", "-") in shown.replace("_", "-")
            free = ("--config", "--model-args", "--opt-args")  # read before the parser, or any key
            assert known or flag.partition(".")[0] in free, (name, flag)
