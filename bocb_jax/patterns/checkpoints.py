"""Metrics of many sets of weights at once: run directories, and files of any framework.

Sets of weights are spread over processes, and the result is one tidy table with a row per layer.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas
from rich.console import Console
from rich.progress import track

from bocb_jax.errors import UserError
from bocb_jax.patterns.spectra import METRICS, analyze_weights, random_weights

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")

# layer -> its shape and its METRICS
_Initial = dict[str, tuple[tuple[int, ...], tuple[float, ...]]]


@dataclasses.dataclass(frozen=True)
class Initialization:
    """What determines the random weights that a run started from."""

    model: str
    model_args: str  # JSON, so that this object can be a key
    num_classes: int
    image_size: int
    precision: str
    seed: int


def find_weights(paths: Iterable[str | Path]) -> list[Path]:
    """Return all run directories with a checkpoint, and all files of weights, under some paths.

    Raises:
      UserError: a path does not exist, or holds neither.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise UserError(
                    f"{path} is no file of weights: its name ends in none of {', '.join(SUFFIXES)}."
                )
            found.append(path)
            continue
        if not path.is_dir():
            raise UserError(
                f"{path} does not exist; give a run directory, a folder of them, or a file."
            )
        here = [best.parent.parent for best in sorted(path.rglob("checkpoints/best"))]
        here += sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not here:
            raise UserError(
                f"{path} holds no weights: no run with checkpoints/best under it, and no file "
                f"that ends in {', '.join(SUFFIXES)}."
            )
        found += here
    return list(dict.fromkeys(found))


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    """Return the arrays of one run or file, and whether they come in the order of the network.

    Raises:
      UserError: they cannot be read.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        try:
            return load_file(path), False
        except Exception as error:  # a damaged file can raise anything
            raise UserError(f"{path} cannot be read as safetensors: {error}.") from error
    if path.is_file():
        from bocb_jax.torch_weights import read_weights

        return read_weights(path), True  # state dicts keep the order of definition
    from bocb_jax.engine.checkpoint import read_best

    return read_best(path), False


def read_record(path: Path) -> tuple[dict[str, Any], Initialization | None]:
    """Return what a run directory says about its run.

    Returns:
      backbone (with its variant), optimizer, seed, score (test accuracy, or else the best one on
      validation, in percent) and failed (whether the run ended without finishing), each None if it
      is not known, as for a file of weights; and the run's initialization.

    Raises:
      UserError: config.json or result.json cannot be read.
    """
    about: dict[str, Any] = dict.fromkeys(("backbone", "optimizer", "seed", "score", "failed"))
    file = path / "config.json"
    if not file.is_file():
        return about, None
    try:
        record = json.loads(file.read_text("utf-8"))
        config, resolved = record["config"], record.get("resolved") or {}
        about["backbone"] = record.get("label") or config.get("model")
        about["optimizer"], about["seed"] = config.get("opt"), config.get("seed")
        initialization = _initialization(config, resolved)
        file = path / "result.json"
        if file.is_file():
            result = json.loads(file.read_text("utf-8"))
            about["failed"] = result.get("status") != "finished"
            score = result.get("test_accuracy", result.get("best_validation_accuracy"))
            about["score"] = None if score is None else 100 * score
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{file} is no record of a run: {error}.") from error
    return about, initialization


def _initialization(
    config: Mapping[str, Any], resolved: Mapping[str, Any]
) -> Initialization | None:
    if not {"num_classes", "image_size", "precision"} <= set(resolved) or "seed" not in config:
        return None
    arguments = dict(config.get("model_args") or {})
    if resolved.get("drop_path") is not None:
        arguments["drop_path"] = resolved["drop_path"]
    return Initialization(
        model=config["model"],
        model_args=json.dumps(arguments, sort_keys=True),
        num_classes=resolved["num_classes"],
        image_size=resolved["image_size"],
        precision=resolved["precision"],
        seed=config["seed"],
    )


def analyze_checkpoints(
    paths: Iterable[str | Path], *, jobs: int | None = None, progress: bool = True
) -> pandas.DataFrame:
    """Return the metrics of every layer of every run and file, beside those at initialization.

    Args:
      paths: run directories, folders of them, or files of weights.
      jobs: number of processes; None: one per core. A single set is analyzed in this process.
      progress: whether to show a progress bar on the error stream.

    Returns:
      One row per layer: source, backbone, optimizer, seed, score, failed, the fields of `Layer`,
      each metric again with `_init`, and `init`, which says what the latter are of: "own", the
      weights that the run itself started from (the backbone initialized with the run's seed), or
      "gaussian", a Gaussian layer of the same shape and of variance 1 / fan-in.

    Raises:
      UserError: there are no weights, some cannot be read, or runs of one backbone have different
        layers.
    """
    sources = find_weights(paths)
    records = [read_record(path) for path in sources]
    cores = os.cpu_count() or 1
    jobs = min(jobs or cores, len(sources))
    threads = cores if jobs == 1 else 1
    # Seeds of one model go together, so that its initialization is compiled once.
    seeds: dict[Initialization, set[int]] = {}
    for _, start in records:
        if start is not None:
            seeds.setdefault(dataclasses.replace(start, seed=0), set()).add(start.seed)
    console = Console(stderr=True)
    with joblib.parallel_config("loky" if jobs > 1 else "sequential", n_jobs=jobs):

        def run(tasks: list[Any], description: str) -> list[Any]:
            results = joblib.Parallel(return_as="generator")(tasks)
            hidden = not (progress and tasks)
            return list(track(results, description, len(tasks), console=console, disable=hidden))

        tasks = [joblib.delayed(_analyze_initial)(*item, threads) for item in seeds.items()]
        initial = {k: v for part in run(tasks, "initializations") for k, v in part.items()}
        tasks = [
            joblib.delayed(_analyze)(path, about, initial.get(start), threads)
            for path, (about, start) in zip(sources, records, strict=True)
        ]
        tables = run(tasks, "weights")
    _check_layers(tables)
    return pandas.concat([pandas.DataFrame(rows) for rows in tables], ignore_index=True)


def _analyze(
    path: Path, about: dict[str, Any], initial: _Initial | None, threads: int
) -> list[dict[str, Any]]:
    # Reading a run imports JAX, but no worker needs a device.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arrays, ordered = read_arrays(path)
    layers = analyze_weights(arrays, ordered=ordered, threads=threads)
    if not layers:
        raise UserError(f"{path} holds no layers: there is no matrix or kernel among its arrays.")
    rows = []
    for layer in layers:
        shape, metrics = (initial or {}).get(layer.layer, ((), ()))
        own = shape == layer.shape
        if not own:
            leaf = "kernel" if f"{layer.layer}.kernel" in arrays else "weight"
            metrics = _gaussian_metrics(leaf, layer.shape)
        reference = {f"{name}_init": value for name, value in zip(METRICS, metrics, strict=True)}
        init = "own" if own else "gaussian"
        rows.append(
            {"source": str(path), **about, **dataclasses.asdict(layer), **reference, "init": init}
        )
    return rows


def _analyze_initial(
    start: Initialization, seeds: Collection[int], threads: int
) -> dict[Initialization, _Initial]:
    """Return the shape and metrics of every layer at initialization, for some seeds of a model.

    Empty if the model cannot be built: a user's own backbone may have changed or moved since.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from bocb_jax import build
    from bocb_jax.engine import compile_cache

    compile_cache.use_compile_cache(None)
    known = dataclasses.asdict(start) | {"model_args": json.loads(start.model_args)}
    found = {}
    for seed in seeds:
        try:
            arrays = build.initial_weights(**known | {"seed": seed})
        except (UserError, ImportError, TypeError, ValueError, AttributeError):
            return {}
        found[dataclasses.replace(start, seed=seed)] = {
            layer.layer: (layer.shape, tuple(getattr(layer, name) for name in METRICS))
            for layer in analyze_weights(arrays, threads=threads)
        }
    return found


@functools.cache  # many layers have the same shape, within a network and across runs
def _gaussian_metrics(leaf: str, shape: tuple[int, ...]) -> tuple[float, ...]:
    arrays = random_weights({f"layer.{leaf}": np.broadcast_to(np.float32(0), shape)})
    (layer,) = analyze_weights(arrays, threads=1)
    return tuple(getattr(layer, name) for name in METRICS)


def _check_layers(tables: list[list[dict[str, Any]]]) -> None:
    """Raise unless all runs of one backbone have the same layers."""
    first: dict[str, tuple[str, list[str]]] = {}
    for rows in tables:
        backbone, source = rows[0]["backbone"], rows[0]["source"]
        if backbone is None:
            continue
        layers = [row["layer"] for row in rows]
        other, expected = first.setdefault(backbone, (source, layers))
        if layers != expected:
            raise UserError(
                f"The weights in {source} are of another model than those in {other}, "
                f"though both are said to be {backbone}; leave one of them out."
            )
