"""What things cost on this machine: `--optimizers`, `--models`, `--data` or `--gpu`.

Everything is measured in one process, in turn with what it is compared to. The figures go to the
terminal as a table and, with `--json FILE`, to a file.
"""

import argparse
import dataclasses
import os
import platform
import shlex
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
from flax import nnx
from rich.progress import track
from rich.table import Table

from bocb_jax import paper
from bocb_jax.bench import gpu, models, transfer
from bocb_jax.bench.data import measure as augmentation_speed
from bocb_jax.bench.data import measure_folder as folder_speed
from bocb_jax.bench.optimizers import Cost, measure
from bocb_jax.checked import Count, CountOrZero, Pixels
from bocb_jax.command_line import Parser, path_of, value_of
from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.console import console, output
from bocb_jax.data.synthetic import open_or_synthetic
from bocb_jax.engine.memory import keep_freed_memory
from bocb_jax.engine.passes import weights_of
from bocb_jax.errors import UserError
from bocb_jax.models import create_model, list_models
from bocb_jax.models.parameters import parameter_kinds
from bocb_jax.optim import list_optimizers
from bocb_jax.storage.files import write_json
from bocb_jax.study.measure import TrainingSteps
from bocb_jax.train import Run


def main(arguments: list[str]) -> int:
    """Measure what the command line asks for, and return the exit code."""
    options = _parser().parse_args(arguments)
    if options.task and not options.models:
        raise UserError("--task is for --models; leave it out, or add --models.")
    keep_freed_memory()
    rows = next(rows for kind, rows in KINDS.items() if getattr(options, kind))(options)
    if options.json:
        write_json(options.json, _circumstances(arguments) | {"rows": rows})
    return 0


def _parser() -> Parser:
    parser = Parser(prog="bocb bench", description="Measure what things cost on this machine.")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument(
        "--optimizers", action="store_true", help="seconds of an update and bytes of state"
    )
    kind.add_argument(
        "--models", action="store_true", help="seconds of compilation and images a second"
    )
    kind.add_argument(
        "--data", action="store_true", help="images a second, and a step's time outside the model"
    )
    kind.add_argument(
        "--gpu",
        action="store_true",
        help="images a second in bfloat16 beside torch.compile, and minis that train together",
    )
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="NAME",
        help="names or patterns; default: all optimizers, the paper's backbones for --models, "
        f"resnet50 with --task, and {' '.join((*gpu.MODELS, *gpu.MINIS))} for --gpu",
    )
    parser.add_argument(
        "--task",
        choices=list(transfer.SETTINGS),
        help="with --models: RetinaNet or SimpleBaseline around them",
    )
    parser.add_argument(
        "--on",
        nargs="+",
        default=["vit_s", "resnet50"],
        metavar="MODEL",
        help="backbones whose parameters are updated; default: vit_s resnet50",
    )
    parser.add_argument(
        "--image-size",
        type=value_of(Pixels),
        help="pixels that --models sees; default: 224, of the shorter side 800 with --task "
        "detection, of the height 256 with --task pose",
    )
    parser.add_argument(
        "--batch-size",
        type=value_of(Count),
        help="images a step of --models; default: 2, with --task pose 8",
    )
    parser.add_argument(
        "--batch-sizes",
        nargs="+",
        type=value_of(Count),
        default=[128, 256],
        metavar="N",
        help="images a step that --gpu tries; the fastest counts; default: 128 256",
    )
    parser.add_argument(
        "--members",
        nargs="+",
        type=value_of(Count),
        default=[1, 4, 16, 64],
        metavar="N",
        help="how many minis --gpu trains as one program; default: 1 4 16 64",
    )
    parser.add_argument(
        "--python",
        default=sys.executable,
        metavar="COMMAND",
        help="an interpreter that has PyTorch, torchvision and timm, to compare --models and "
        "--data with",
    )
    parser.add_argument(
        "--rounds", type=value_of(CountOrZero), default=7, help="timed blocks; the median counts"
    )
    parser.add_argument("--steps", type=value_of(Count), default=10, help="updates in a block")
    parser.add_argument("--json", type=path_of, metavar="FILE", help="also write the figures here")
    return parser


def _circumstances(arguments: list[str]) -> dict[str, Any]:
    return {
        "command": shlex.join(["bocb", "bench", *arguments]),
        "device": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "jax": jax.__version__,
    }


# --- Optimizers --------------------------------------------------------------------------------


def _optimizers(options: argparse.Namespace) -> list[dict[str, Any]]:
    names = _chosen(options.only or ["*"], list_optimizers)
    models = {name: _abstract_model(name) for name in options.on}
    costs: dict[str, list[Cost]] = {model: [] for model in models}
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
        _say(model, *_optimizer_row(cost))
    for model, found in costs.items():
        output.print(_optimizer_table(model, found, options.rounds))
    return [
        {"model": model, **dataclasses.asdict(cost)}
        for model, found in costs.items()
        for cost in found
    ]


def _chosen(patterns: list[str], listing: Callable[[str], list[str]]) -> list[str]:
    """Return the names that patterns match, and names as they are.

    Raises:
      UserError: a pattern matches none.
    """
    chosen = []
    for pattern in patterns:
        names = listing(pattern) if any(sign in pattern for sign in "*?[") else [pattern]
        if not names:
            raise UserError(
                f"Nothing matches '{pattern}' of --only; `bocb models --all` and `bocb "
                "optimizers --all` list the names."
            )
        chosen += names
    return chosen


def _abstract_model(name: str) -> nnx.Module:
    return nnx.eval_shape(lambda: create_model(name, num_classes=1000, rngs=nnx.Rngs(0)))


def _optimizer_table(model: str, costs: list[Cost], rounds: int) -> Table:
    table = Table(title=f"Updates of {model}", title_justify="left", caption_justify="left")
    table.add_column("optimizer", no_wrap=True)
    for column in ("state, bytes a parameter", "state, MiB", "update, ms", "x Optax's own"):
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(*_optimizer_row(cost))
    table.caption = _caption(f"medians of {rounds} blocks, in turn with Optax's own")
    return table


def _optimizer_row(cost: Cost) -> tuple[str, ...]:
    return (
        cost.name,
        f"{cost.state_bytes_per_parameter:.2f}",
        f"{cost.state_bytes / 2**20:.1f}",
        "" if cost.update_seconds is None else f"{1e3 * cost.update_seconds:.2f}",
        "" if cost.optax_ratio is None else f"{cost.optax_ratio:.2f}",
    )


def _say(*row: str) -> None:
    """Print a row at once, so that an interrupted benchmark still shows what it measured."""
    console.print("  ".join(filter(None, row)), markup=False, highlight=False, soft_wrap=True)


def _caption(how: str) -> str:
    return (
        f"{how}; {jax.devices()[0].device_kind}, load {os.getloadavg()[0]:.1f} on "
        f"{os.cpu_count()} cores"
    )


# --- Backbones ---------------------------------------------------------------------------------


def _models(options: argparse.Namespace) -> list[dict[str, Any]]:
    usual = ["resnet50"] if options.task else paper.backbones()[:20]
    names = _chosen(options.only, list_models) if options.only else usual
    common = {"rounds": options.rounds, "steps": 2, "python": shlex.split(options.python)}
    costs = []
    for name in track(names, "backbones", console=console, transient=True):
        sizes = {"image_size": options.image_size, "batch_size": options.batch_size}
        if options.task:
            cost = transfer.measure(options.task, name, **sizes, **common)
        else:
            given = {key: value for key, value in sizes.items() if value is not None}
            cost = models.measure(name, **given, **common)
        costs.append(cost)
        _say(*_model_row(cost))
        jax.clear_caches()  # the programs of 20 backbones are large
    table = Table(
        title=f"A training step{f' of {options.task}' if options.task else ''} at "
        f"{costs[0].image_size} px, batch {costs[0].batch_size}",
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("backbone", no_wrap=True)
    for column in ("trace, s", "compile, s", "images/s", "x PyTorch"):
        table.add_column(column, justify="right")
    for cost in costs:
        table.add_row(*_model_row(cost))
    theirs = "torchvision's net" if options.task else "timm's or torchvision's net"
    how = f"medians of {options.rounds} blocks, in turn with {theirs}"
    table.caption = _caption(how)
    output.print(table)
    return [dataclasses.asdict(cost) for cost in costs]


def _model_row(cost: models.ModelCost) -> tuple[str, ...]:
    return (
        cost.name,
        f"{cost.trace_seconds:.1f}",
        f"{cost.compile_seconds:.1f}",
        "" if cost.images_per_second is None else _few_digits(cost.images_per_second),
        "" if cost.reference_ratio is None else f"{cost.reference_ratio:.2f}",
    )


def _few_digits(x: float) -> str:
    """Return a number with one digit behind the point, or with two significant ones below 1."""
    return f"{x:.1f}" if x >= 1 else f"{x:.2g}"


# --- Data --------------------------------------------------------------------------------------


def _data(options: argparse.Namespace) -> list[dict[str, Any]]:
    if not options.rounds:
        raise UserError("--data has nothing to show of 0 rounds; give --rounds 1 or more.")
    python = shlex.split(options.python)
    # The folder first: threads that decode are a tenth slower in a heap that others have used.
    speeds = {"folder of JPEGs, 224 px": folder_speed(rounds=options.rounds, python=python)}
    for size in (32, 224):
        speeds[f"DeiT recipe's augmentation, {size} px"] = augmentation_speed(
            size, rounds=options.rounds, python=python
        )
    table = Table(title="Images a second", title_justify="left", caption_justify="left")
    table.add_column("", no_wrap=True)
    for column in ("here", "PyTorch, 2 workers", "ratio"):
        table.add_column(column, justify="right")
    for name, speed in speeds.items():
        theirs = f"{median(speed.theirs):,.0f}" if speed.theirs else "no PyTorch with timm here"
        ratio = f"{speed.ratio:.2f}" if speed.theirs else ""
        table.add_row(name, f"{median(speed.ours):,.0f}", theirs, ratio)
    table.caption = _caption(
        f"medians of {options.rounds} rounds in turn; augmentation from 32-pixel images with "
        "timm's in a DataLoader beside it, JPEGs of 500 x 375 with torchvision's ImageFolder"
    )
    output.print(table)

    table = Table(
        title="A training step of resnet_mini, 32 px", title_justify="left", caption_justify="left"
    )
    table.add_column("recipe")
    for column in ("whole, ms", "of the model, ms", "outside it"):
        table.add_column(column, justify="right")
    shares = [_outside_the_model(recipe, options.rounds) for recipe in ("pytorch", "deit")]
    for share in shares:
        whole, model = median(share["whole_seconds"]), median(share["model_seconds"])
        row = f"{1e3 * whole:.1f}", f"{1e3 * model:.1f}", f"{1 - model / whole:.1%}"
        table.add_row(share["recipe"], *row)
    table.caption = _caption(
        f"medians of {options.rounds} blocks in turn, images on the device; the model alone has "
        "the same batch each time and no augmentation"
    )
    output.print(table)
    return [dataclasses.asdict(speed) for speed in speeds.values()] + shares


def _outside_the_model(recipe: str, rounds: int, steps: int = 10) -> dict[str, Any]:
    """Measure seconds per step with data and augmentation and without, in turn."""
    dataset, _ = open_or_synthetic("cifar10")
    settings = {
        "model": "resnet_mini",
        "opt": "sgd",
        "dataset": "cifar10",
        "recipe": recipe,
        "image_size": 32,
        "batch_size": 128,
        "parallel": {"devices": 1},
        "data": {"on_device": "yes"},
    }
    whole = Run(from_dict(TrainConfig, settings), dataset)
    # A recipe's loss and averages stay as they are.
    alone = Run(from_dict(TrainConfig, settings | {"augment": {"only": True}}), dataset)
    batches = whole.data.loader(whole.program.batch_sharding).train(seed=0)
    same = next(batches)
    runs = [
        TrainingSteps(whole, next_batch=lambda: next(batches)),
        TrainingSteps(alone, next_batch=lambda: same),
    ]
    for run in runs:
        run.seconds_per_step(steps)  # warms up
    pairs = [[run.seconds_per_step(steps) for run in runs] for _ in range(rounds)]
    seconds = dict(zip(("whole_seconds", "model_seconds"), zip(*pairs, strict=True), strict=True))
    return {"recipe": recipe, **seconds}


# --- Accelerators ------------------------------------------------------------------------------


def _gpu(options: argparse.Namespace) -> list[dict[str, object]]:
    named = _chosen(options.only, list_models) if options.only else [*gpu.MODELS, *gpu.MINIS]
    names = [name for name in named if not name.endswith("_mini")]
    minis = [name for name in named if name.endswith("_mini")]
    # This process leaves the device alone: the ones that it starts share its memory.
    peak = gpu.matmul_flops()
    _say(f"a bfloat16 matrix product: {peak / 1e12:.3g} TFLOP/s")
    image_size = options.image_size or 224
    table = Table(title=f"Training steps in bfloat16 at {image_size} px")
    table.add_column("backbone", no_wrap=True)
    for column in ("batch", "images/s", "utilization", "GiB", "first steps, s"):
        table.add_column(column, justify="right")
    for column in ("PyTorch", "batch", "GiB", "ratio"):
        table.add_column(column, justify="right")
    rows: list[dict[str, object]] = [{"matmul_flops": peak}]
    for name in track(names, "backbones", console=console, transient=True):
        found = gpu.compare(
            name,
            image_size=image_size,
            batch_sizes=options.batch_sizes,
            steps=options.steps,
            rounds=options.rounds,
            python=shlex.split(options.python),
            peak_flops=peak,
        )
        table.add_row(*_gpu_row(found))
        _say(*_gpu_row(found), *found.problems)
        rows.append(dataclasses.asdict(found) | {"ratio": found.ratio})
    if names:
        output.print(table)
    together = Table(title="Minis of 32 px that train as one program, batches of 100")
    for column in ("backbone", "runs", "training steps/s, all runs"):
        together.add_column(column, justify="left" if column == "backbone" else "right")
    for name in track(minis, "minis", console=console, transient=True):
        populations, problems = gpu.populations(name, members=options.members, steps=options.steps)
        for row in populations:
            together.add_row(row.name, str(row.members), f"{row.steps_per_second:,.0f}")
            rows.append(dataclasses.asdict(row))
        _say(*problems)
    if minis:
        output.print(together)
    return rows


def _gpu_row(found: gpu.Comparison) -> tuple[str, ...]:
    def of(timing: gpu.Timing | None) -> tuple[str, str, str]:
        if timing is None:
            return "", "", ""
        memory = "" if timing.peak_bytes is None else f"{timing.peak_bytes / 2**30:.1f}"
        return f"{timing.batch_size}", f"{timing.images_per_second:,.0f}", memory

    batch, ours, memory = of(found.ours)
    their_batch, theirs, their_memory = of(found.theirs)
    used = "" if found.utilization is None else f"{found.utilization:.1%}"
    ratio = "" if found.ratio is None else f"{found.ratio:.2f}"
    first = "" if found.ours is None else f"{found.ours.warm_seconds:.0f}"
    return found.name, batch, ours, used, memory, first, theirs, their_batch, their_memory, ratio


KINDS = {"optimizers": _optimizers, "models": _models, "data": _data, "gpu": _gpu}

if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
