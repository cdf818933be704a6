"""The `bocb` command: what it dispatches to, and which exit codes its errors become."""

import logging
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import bocb_jax
from bocb_jax.__main__ import COMMANDS, main, run_command
from bocb_jax.errors import Diverged, Interrupted, UserError


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_door_and_a_line_of_help(name, capsys):
    assert callable(COMMANDS[name].load())
    assert main(["--help"]) == 0
    (line,) = [
        line for line in capsys.readouterr().out.splitlines() if line.startswith(f"  {name} ")
    ]
    assert COMMANDS[name].help in line
    assert len(line) <= 80


@pytest.mark.parametrize("name", ["sweep", "models", "recommend"])
def test_every_command_explains_its_options(name, capsys):
    with pytest.raises(SystemExit) as end:
        main([name, "--help"])
    assert end.value.code == 0
    assert f"bocb {name}" in capsys.readouterr().out


def test_an_unknown_command_is_named_and_the_known_ones_listed(capsys):
    assert main(["tarin"]) == 2
    said = capsys.readouterr().err
    assert "There is no command 'tarin'." in said
    assert "  train " in said


def test_the_version_has_one_source(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["bocb-jax", bocb_jax.__version__]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UserError("lr is 0."), 2),
        (Diverged("The loss is no longer finite.", step=3), 3),
        (Interrupted("Stopped.", signal_number=signal.SIGINT), 130),
        (Interrupted("Stopped.", signal_number=signal.SIGTERM), 143),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_for_users_is_its_message_and_a_code(error, code, capsys):
    def door(arguments):
        raise error

    assert run_command(door, []) == code
    assert capsys.readouterr().err.strip() == str(error)


def test_any_other_error_keeps_its_traceback():
    def door(arguments):
        raise BrokenPipeError  # of a socket, say: stdout is still open

    with pytest.raises(BrokenPipeError):
        run_command(door, [])


# The user starts these as modules; they must end as `bocb NAME` does.
@pytest.mark.parametrize(
    "words",
    [
        ("train", "--config", "nothing.toml"),
        ("sweep", "nothing.toml"),
        ("analyze", "nothing.csv"),
    ],
    ids=lambda words: words[0],
)
@pytest.mark.parametrize("start", ["bocb_jax", "bocb_jax.{}"])
def test_modules_end_as_their_commands_do(start, words, tmp_path):
    module = start.format(words[0])
    arguments = words if start == "bocb_jax" else words[1:]
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert re.fullmatch(r".*nothing\.\w+.*\n", done.stderr), done.stderr
    assert done.stdout == ""


def test_errors_become_exit_codes_in_one_place():
    source = Path(bocb_jax.__file__).parent
    found = [
        str(path.relative_to(source))
        for path in source.rglob("*.py")
        if re.search(r"return \w+\.exit_code", path.read_text())
    ]
    # A run that diverges has a result all the same, so `train` returns instead of raising.
    assert sorted(found) == ["__main__.py", "train.py"]


def test_a_reader_that_has_gone_ends_a_command_quietly():
    # A page of stdout is buffered; many more of them reach the pipe while the command runs.
    code = "import sys; from bocb_jax.__main__ import run_command\n"
    code += "sys.exit(run_command(lambda _: [print('x' * 80) for _ in range(10**5)] and 0))"
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 128 + signal.SIGPIPE


def test_nothing_of_jax_is_loaded_for_the_help():
    code = "import sys; from bocb_jax.__main__ import main; main(['--help'])"
    code += "; assert not {'jax', 'flax', 'rich', 'numpy', 'pandas'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("library", ["absl", "asyncio"])
def test_what_orbax_logs_of_a_damaged_file_is_left_to_our_sentence(library, caplog):
    def door(arguments):
        logging.getLogger(library).error("Task exception was never retrieved")
        raise UserError("The checkpoint is damaged.")

    assert run_command(door, []) == UserError.exit_code
    assert not caplog.records


@pytest.mark.parametrize(
    ("message", "shown"), [("Event loop is closed", False), ("Something else", True)]
)
def test_what_a_failed_read_leaves_behind_is_not_shown(message, shown, monkeypatch, capsys):
    class Left:
        def __del__(self):
            raise RuntimeError(message)

    monkeypatch.setattr(sys, "unraisablehook", sys.__unraisablehook__)
    assert run_command(lambda arguments: Left() and 0, []) == 0
    assert (message in capsys.readouterr().err) == shown
