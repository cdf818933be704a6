"""What things cost here: `python -m bocb_jax.bench --optimizers`.

Measured on this machine, in one process, the rivals in turn; a table on the terminal and, with
`--json FILE`, the same figures for programs.
"""

import argparse
import dataclasses
import os
import platform
import shlex
import sys
from pathlib import Path

import jax
from flax import nnx
from rich.console import Console
from rich.progress import track
from rich.table import Table

from bocb_jax.console import console
from bocb_jax.engine.metrics import write_json
from bocb_jax.engine.step import weights_of
from bocb_jax.errors import UserError
from bocb_jax.models import create_model
from bocb_jax.models.layers import parameter_kinds
from bocb_jax.optim import list_optimizers
from bocb_jax.optim.cost import Cost, measure


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments)
    try:
        rows = _optimizers(options)
    except UserError as error:
        console.print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    if options.json:
        write_json(options.json, _circumstances(arguments) | {"rows": rows})
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bocb bench", description=__doc__.splitlines()[0])
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--optimizers", action="store_true", help="seconds of an update and bytes of state"
    )
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="NAME", help="names or patterns; default: all"
    )
    parser.add_argument(
        "--on",
        nargs="+",
        default=["vit_s", "resnet50"],
        metavar="MODEL",
        help="backbones whose parameters are updated; default: vit_s resnet50",
    )
    parser.add_argument("--rounds", type=int, default=7, help="timed blocks; the median counts")
    parser.add_argument("--steps", type=int, default=10, help="updates in a block")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser


def _circumstances(arguments: list[str]) -> dict[str, object]:
    return {
        "command": shlex.join(["bocb", "bench", *arguments]),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


# --- Optimizers --------------------------------------------------------------------------------


def _optimizers(options: argparse.Namespace) -> list[dict[str, object]]:
    names = [name for pattern in options.only for name in _matching(pattern)]
    models = {name: _abstract_model(name) for name in options.on}
    costs = {model: [] for model in models}
    pairs = [(model, name) for model in models for name in names]
    for model, name in track(pairs, "updates", console=console, transient=True):
        cost = measure(
            name,
            weights_of(models[model])["params"],
            parameter_kinds=parameter_kinds(models[model]),
            rounds=options.rounds,
            steps=options.steps,
        )
        costs[model].append(cost)
    for model, found in costs.items():
        Console(highlight=False).print(_optimizer_table(model, found, options.rounds))
    return [
        {"model": model, **dataclasses.asdict(cost)}
        for model, found in costs.items()
        for cost in found
    ]


def _matching(pattern: str) -> list[str]:
    return list_optimizers(pattern) if any(sign in pattern for sign in "*?[") else [pattern]


def _abstract_model(name: str) -> nnx.Module:
    return nnx.eval_shape(lambda: create_model(name, num_classes=1000, rngs=nnx.Rngs(0)))


def _optimizer_table(model: str, costs: list[Cost], rounds: int) -> Table:
    table = Table(title=f"Updates of {model}", title_justify="left", caption_justify="left")
    table.add_column("optimizer", no_wrap=True)
    for column in ("state, bytes a parameter", "state, MiB", "update, ms", "x Optax's own"):
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(
            cost.name,
            f"{cost.state_bytes_per_parameter:.2f}",
            f"{cost.state_bytes / 2**20:.1f}",
            "" if cost.update_seconds is None else f"{1e3 * cost.update_seconds:.2f}",
            "" if cost.optax_ratio is None else f"{cost.optax_ratio:.2f}",
        )
    table.caption = (
        f"medians of {rounds} blocks on {jax.devices()[0].device_kind}, in turn with Optax's own; "
        f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    return table


if __name__ == "__main__":
    sys.exit(main())
