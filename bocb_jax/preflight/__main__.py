"""Check a run before it is paid for: `bocb preflight --model vit_s --opt lamb --topology v5e:4x4`.

Compiles the real training step ahead of time for devices that are not here, and says whether it
fits, what it moves, and how long the recipe takes at least. Settings that fit are tried, not
guessed. A TPU is compiled for with libtpu (`pip install 'bocb-jax[preflight]'`); for GPUs, the CPU
stands in, and the memory is an estimate. `bocb sweep STUDY --preflight` checks a study.

Exit codes: 0 it fits, 1 it does not, 2 a setting is wrong.
"""

import argparse
import sys

from bocb_jax.checked import FilePath, Workers
from bocb_jax.command_line import Parser, value_of
from bocb_jax.config import TrainConfig, present_flags
from bocb_jax.console import output
from bocb_jax.preflight import backbones
from bocb_jax.preflight.check import compile_run, use_cpu
from bocb_jax.preflight.proposal import find_setting
from bocb_jax.preflight.wording import described
from bocb_jax.roofline.topology import open_topology
from bocb_jax.train import parse as parse_train
from bocb_jax.transfer import parse as parse_transfer

DOES_NOT_FIT = 1


def main(arguments: list[str]) -> int:
    """Check the run, or the table, that the command line asks for; return the exit code."""
    options, rest = parse(arguments)
    use_cpu()
    topology = open_topology(options.topology)
    config = run_config(rest)
    if options.all:
        all_fit = backbones.write_table(
            config,
            options.topology,
            path=options.table,
            jobs=options.jobs,
            search=not options.no_search,
        )
        return 0 if all_fit else DOES_NOT_FIT
    check = compile_run(config, topology)
    output.print(described(check), markup=False, soft_wrap=True)
    if check.cost is not None:
        return 0
    fitting = None if options.no_search else find_setting(check, topology)
    if fitting is not None:
        output.print(described(fitting), markup=False, soft_wrap=True)
    return DOES_NOT_FIT


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """Return the options of this command, and the arguments that describe a run."""
    parser = Parser(
        prog="bocb preflight",
        description="Compile the training step of a run for a TPU or GPU that is not here, and say "
        "what it needs.",
        epilog="The options of `bocb train` follow; the data set is imagenet2012 unless --dataset "
        "is given.",
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--topology", required=True, help="chips: v5e:16x16, v5p:4x4x4, v6e:8x8, h100:8 ...")
    add("--all", action="store_true", help="a table of the paper's backbones")
    add("--table", type=value_of(FilePath), default="preflight.md", help="with --all: the file")
    add("--jobs", type=value_of(Workers), default=1, help="with --all: programs compiled at a time")
    add("--no-search", action="store_true", help="look for no other setting where it does not fit")
    if {"-h", "--help"} & set(arguments):
        parser.print_help()
        parse_train(["--help"])  # and exits
    options, rest = parser.parse_known_args(arguments)
    return options, rest


def run_config(arguments: list[str]) -> TrainConfig:
    """Return the run that arguments describe: as `bocb train` reads them, or `bocb transfer`."""
    flags = present_flags(arguments)
    if any(flag.partition("=")[0] == "--task" for flag in flags):
        return parse_transfer(arguments)
    if not any(flag.startswith(("--dataset", "--config")) for flag in flags):
        arguments = ["--dataset", "imagenet2012", *arguments]
    return parse_train(arguments)


if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
