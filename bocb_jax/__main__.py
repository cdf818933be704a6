"""The `bocb` command: finds the command that was asked for, and turns its errors into exit codes.

Exit codes of every command: 0 done, 2 a setting is wrong, 3 the run diverged, 130 or 143 stopped by
a signal, 141 the reader of the output has gone. `bocb sweep` adds 1: the budget is spent, and a run
of several processes 75: one of them is gone, and the same command goes on.
"""

import dataclasses
import errno
import importlib
import io
import logging
import os
import select
import signal
import sys
from collections.abc import Callable

from bocb_jax import __version__
from bocb_jax.errors import Diverged, Interrupted, UserError

# What is wrong with a file or folder that the user named.
_FILE_ERRORS = {
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP,
    errno.ENAMETOOLONG, errno.ENXIO, errno.ENOTEMPTY, errno.EEXIST,
}  # fmt: skip
Door = Callable[[list[str]], int]  # takes the arguments, returns the exit code


@dataclasses.dataclass(frozen=True)
class Command:
    """One command of `bocb`.

    Attributes:
      door: "module:function", imported only when the command runs, since most of them load JAX.
      help: a line for `bocb --help`.
      argument: what the command takes, for `bocb --help`.
    """

    door: str
    help: str
    argument: str = ""

    def load(self) -> Door:
        """Import the function behind the command."""
        module, _, name = self.door.partition(":")
        return getattr(importlib.import_module(module), name)


COMMANDS = {
    "train": Command("bocb_jax.train:main", "train one backbone with one optimizer"),
    "transfer": Command(
        "bocb_jax.transfer:main", "train a detector or a pose net around a backbone"
    ),
    "sweep": Command(
        "bocb_jax.sweep:main", "train every run of a study and tabulate them", "STUDY"
    ),
    "predict": Command(
        "bocb_jax.commands.predict:main", "classes, boxes or joints in images", "RUN IMAGE"
    ),
    "analyze": Command(
        "bocb_jax.analyze:main", "which optimizer suits which backbone: verdict and report", "RUNS"
    ),
    "preflight": Command(
        "bocb_jax.preflight.__main__:main", "what a run needs on a TPU or GPU that is not here"
    ),
    "recommend": Command(
        "bocb_jax.commands.recommend:main", "which optimizer and rates to try first, and why"
    ),
    "probe": Command(
        "bocb_jax.commands.probe:main", "how strongly the optimizer binds a backbone of your own"
    ),
    "patterns": Command(
        "bocb_jax.commands.patterns:main", "what trained weights look like, layer by layer", "PATH"
    ),
    "models": Command("bocb_jax.commands.models:main", "list backbones, or describe one", "[NAME]"),
    "optimizers": Command(
        "bocb_jax.commands.optimizers:main", "list or plot optimizers, or describe one", "[NAME]"
    ),
    "recipes": Command(
        "bocb_jax.commands.recipes:main", "list training recipes; --check: beside the paper's"
    ),
    "bench": Command("bocb_jax.bench.__main__:main", "measure what things cost on this machine"),
    "import-weights": Command(
        "bocb_jax.commands.weights:import_main", "turn PyTorch weights into a run directory", "FILE"
    ),
    "export-weights": Command(
        "bocb_jax.commands.weights:export_main", "write a run's best weights for PyTorch", "RUN"
    ),
}


def main(arguments: list[str] | None = None) -> int:
    """Run `bocb` and return its exit code.

    Args:
      arguments: what follows `bocb` on the command line; None for this process's own.
    """
    if arguments is None:
        # Processes that are started look for modules where this one does, and not first of all in
        # the current folder, which may be one of runs from somebody else.
        os.environ.setdefault("PYTHONSAFEPATH", "1")
    return run_command(_dispatch, arguments)


def run_command(door: Door, arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; errors for users become a message on stderr.

    Args:
      door: the command.
      arguments: its arguments; None for those of this process.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":
            stream.reconfigure(errors="replace")  # a sign that a terminal lacks ends no command
    for name in ("absl", "asyncio"):  # where Orbax logs at length what we say in a sentence
        logging.getLogger(name).setLevel(logging.CRITICAL)
    if sys.unraisablehook is sys.__unraisablehook__:
        sys.unraisablehook = _show_unraisable
    try:
        code = door(sys.argv[1:] if arguments is None else arguments)
        sys.stdout.flush()  # a closed pipe shows here at the latest
        return code
    except (UserError, Diverged, Interrupted) as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    except BrokenPipeError:
        if not _stdout_is_closed():
            raise
        # As in `bocb models | head`. Python flushes stdout once more when it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except OSError as error:
        if error.filename is None or error.errno not in _FILE_ERRORS:
            raise
        print(f"{error.filename} cannot be used: {error.strerror}.", file=sys.stderr)
        return UserError.exit_code


def _show_unraisable(found: "sys.UnraisableHookArgs") -> None:
    """Print an error that no code could catch, unless it comes of a read that failed before.

    Where one array of a checkpoint is damaged, TensorStore reads on in its threads, and finds that
    nobody waits any more.
    """
    if str(found.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(found)


def usage() -> str:
    """Return what `bocb --help` prints."""
    names = {name: f"{name} {command.argument}".strip() for name, command in COMMANDS.items()}
    width = max(map(len, names.values()))
    lines = [f"  {names[name]:{width}}  {command.help}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: bocb COMMAND [options]",
            "",
            *lines,
            "",
            "`bocb COMMAND --help` lists its options.",
        ]
    )


def _dispatch(arguments: list[str]) -> int:
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help", "help"):
        print(usage())
        return 0
    if name == "--version":
        print(f"bocb-jax {__version__}")
        return 0
    if name not in COMMANDS:
        raise UserError(f"There is no command '{name}'.\n\n{usage()}")
    return COMMANDS[name].load()(rest)


def _stdout_is_closed() -> bool:
    poll = select.poll()
    poll.register(sys.stdout, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))


if __name__ == "__main__":
    sys.exit(main())
