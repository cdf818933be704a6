"""Patterns of many sets of weights at once: runs, folders of runs, and files of any framework.

One process a core, a bar for the wait, and one tidy table with a row a layer.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas
from rich.console import Console
from rich.progress import track

from bocb_jax.errors import UserError
from bocb_jax.patterns.spectra import Layer, analyze_weights, random_weights

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")
FIGURES = [
    field.name
    for field in dataclasses.fields(Layer)
    if field.name not in ("layer", "depth", "kind", "shape")
]


def find(paths: Iterable[str | Path]) -> list[Path]:
    """Every run's folder with weights, and every file of weights, under some paths.

    Raises:
      UserError: a path does not exist or holds neither.
    """
    found = []
    for path in map(Path, paths):
        if path.is_file():
            if path.suffix not in SUFFIXES:
                raise UserError(
                    f"{path} is no file of weights: its name ends in none of {', '.join(SUFFIXES)}."
                )
            found.append(path)
            continue
        if not path.is_dir():
            raise UserError(f"There is nothing at {path}: give a run, a folder of runs, or a file.")
        here = [best.parent.parent for best in sorted(path.rglob("checkpoints/best"))]
        here += sorted(p for p in path.rglob("*") if p.suffix in SUFFIXES and p.is_file())
        if not here:
            raise UserError(
                f"{path} holds no weights: no run with checkpoints/best under it, and no file "
                f"that ends in {', '.join(SUFFIXES)}."
            )
        found += here
    return list(dict.fromkeys(found))


def read(path: Path) -> tuple[dict[str, np.ndarray], bool]:
    """The arrays of one run or file, and whether they come in the order of the network.

    Raises:
      UserError: they cannot be read.
    """
    if path.suffix == ".safetensors":
        from safetensors.numpy import load_file

        try:
            return load_file(path), False
        except Exception as error:  # whatever a damaged file provokes
            raise UserError(f"{path} cannot be read as safetensors: {error}.") from error
    if path.is_file():
        from bocb_jax.torch_weights import read_weights

        return read_weights(path), True  # a state dict is in the order of definition
    from bocb_jax.engine.checkpoint import read_best

    return read_best(path), False


@dataclasses.dataclass(frozen=True)
class Origin:
    """What the random weights that a run began with follow from."""

    model: str
    model_args: str  # JSON, so that it can be a key
    num_classes: int
    image_size: int
    precision: str
    seed: int


def describe(path: Path) -> tuple[dict[str, Any], Origin | None]:
    """What the records of a run say of it; nothing for a file.

    Returns:
      backbone (with its variant), optimizer, seed, score (test accuracy, else the best on
      validation, in percent) and failed (whether it ended without finishing); and its origin.

    Raises:
      UserError: the run's config.json or result.json cannot be read.
    """
    about = dict.fromkeys(("backbone", "optimizer", "seed", "score", "failed"))
    record = path / "config.json"
    if not record.is_file():
        return about, None
    try:
        whole = json.loads(record.read_text("utf-8"))
        config, resolved = whole["config"], whole.get("resolved") or {}
        about["backbone"] = whole.get("label") or config.get("model")
        about["optimizer"], about["seed"] = config.get("opt"), config.get("seed")
        origin = None
        if {"num_classes", "image_size", "precision"} <= set(resolved) and "seed" in config:
            arguments = dict(config.get("model_args") or {})
            if resolved.get("drop_path") is not None:
                arguments["drop_path"] = resolved["drop_path"]
            origin = Origin(
                config["model"],
                json.dumps(arguments, sort_keys=True),
                *(resolved[name] for name in ("num_classes", "image_size", "precision")),
                config["seed"],
            )
        record = path / "result.json"
        if record.is_file():
            result = json.loads(record.read_text("utf-8"))
            about["failed"] = result.get("status") != "finished"
            score = result.get("test_accuracy", result.get("best_validation_accuracy"))
            about["score"] = None if score is None else 100 * score
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{record} is no record of a run: {error}.") from error
    return about, origin


def analyze_checkpoints(
    paths: Iterable[str | Path], *, jobs: int | None = None, progress: bool = True
) -> pandas.DataFrame:
    """The figures of every layer of every run and file, beside random initialization.

    Args:
      paths: runs, folders of runs, or files of weights.
      jobs: processes; None: one a core, and none beside this for a single set.
      progress: shows a bar on the error stream.

    Returns:
      One row a layer: source, backbone, optimizer, seed, score, failed, the fields of `Layer`, each
      figure again with `_init`, and `init`: "own" where those are figures of the weights that the
      run itself began with (its backbone's initialization with its seed), "gaussian" where they
      are those of a Gaussian layer of the same shape with variance 1 / fan-in.

    Raises:
      UserError: there are no weights, or some cannot be read or are of another model than the
        other runs of the same backbone.
    """
    sources = find(paths)
    found = [describe(path) for path in sources]
    jobs = min(jobs or os.cpu_count() or 1, len(sources))
    threads = (os.cpu_count() or 1) if jobs == 1 else 1
    # Seeds of one model together: drawing is compiled once for them.
    seeds: dict[Origin, set[int]] = {}
    for _, origin in found:
        if origin is not None:
            seeds.setdefault(dataclasses.replace(origin, seed=0), set()).add(origin.seed)
    console = Console(stderr=True)
    with joblib.parallel_config("loky" if jobs > 1 else "sequential", n_jobs=jobs):

        def run(tasks, words):
            results = joblib.Parallel(return_as="generator")(tasks)
            hidden = not (progress and tasks)
            return list(track(results, words, len(tasks), console=console, disable=hidden))

        tasks = [joblib.delayed(_analyze_initial)(*item, threads) for item in seeds.items()]
        initial = dict(item for part in run(tasks, "initializations") for item in part.items())
        tasks = [
            joblib.delayed(_analyze)(path, about, initial.get(origin), threads)
            for path, (about, origin) in zip(sources, found, strict=True)
        ]
        tables = run(tasks, "weights")
    _check_same(tables)
    return pandas.concat([pandas.DataFrame(rows) for rows in tables], ignore_index=True)


def _analyze(path: Path, about: dict, initial: dict[str, tuple] | None, threads: int) -> list[dict]:
    # Only the reading of runs needs JAX, and no worker needs a device.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arrays, ordered = read(path)
    layers = analyze_weights(arrays, ordered=ordered, threads=threads)
    if not layers:
        raise UserError(f"{path} holds no layers: no matrix or kernel among its arrays.")
    rows = []
    for layer in layers:
        shape, own = (initial or {}).get(layer.layer, (None, None))
        is_own = shape == layer.shape
        if not is_own:
            stored = "kernel" if f"{layer.layer}.kernel" in arrays else "weight"
            own = _random_figures(stored, layer.shape)
        beside = {f"{name}_init": value for name, value in zip(FIGURES, own, strict=True)}
        beside["init"] = "own" if is_own else "gaussian"
        rows.append({"source": str(path), **about, **dataclasses.asdict(layer), **beside})
    return rows


def _analyze_initial(
    origin: Origin, seeds: Collection[int], threads: int
) -> dict[Origin, dict[str, tuple]]:
    """Shape and figures of every layer as it was drawn, by name, for some seeds of a model.

    Empty where it cannot be drawn: a backbone of one's own may have changed since, or be elsewhere.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from bocb_jax import build

    build.use_compile_cache(None)
    known = dataclasses.asdict(origin) | {"model_args": json.loads(origin.model_args)}
    found = {}
    for seed in seeds:
        try:
            arrays = build.initial_weights(**known | {"seed": seed})
        except (UserError, ImportError, TypeError, ValueError, AttributeError):
            return {}
        found[dataclasses.replace(origin, seed=seed)] = {
            layer.layer: (layer.shape, tuple(getattr(layer, name) for name in FIGURES))
            for layer in analyze_weights(arrays, threads=threads)
        }
    return found


@functools.cache  # layers of one shape are many, within a network and over runs
def _random_figures(leaf: str, shape: tuple[int, ...]) -> tuple[float, ...]:
    arrays = random_weights({f"layer.{leaf}": np.broadcast_to(np.float32(0), shape)})
    (layer,) = analyze_weights(arrays, threads=1)
    return tuple(getattr(layer, name) for name in FIGURES)


def _check_same(tables: list[list[dict]]) -> None:
    """Runs of one backbone have the same layers."""
    first = {}
    for rows in tables:
        if rows[0]["backbone"] is None:
            continue
        layers = [row["layer"] for row in rows]
        source, wanted = first.setdefault(rows[0]["backbone"], (rows[0]["source"], layers))
        if layers != wanted:
            raise UserError(
                f"The weights in {rows[0]['source']} are of another model than those in {source}, "
                f"though both are said to be {rows[0]['backbone']}; leave one of them out."
            )
