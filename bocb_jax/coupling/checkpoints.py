"""Patterns of many sets of weights at once: runs, folders of runs, and files of any framework.

One process a core, a bar for the wait, and one tidy table with a row a layer.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import joblib
import numpy as np
import pandas
from rich.console import Console
from rich.progress import track

from bocb_jax.coupling.patterns import Layer, analyze_weights, random_weights
from bocb_jax.errors import UserError

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
        from bocb_jax.interop import read_weights

        return read_weights(path), True  # a state dict is in the order of definition
    from bocb_jax.engine.checkpoint import read_best

    return read_best(path), False


def describe(path: Path) -> dict[str, str | None]:
    """Backbone and optimizer of a run's folder; None for a file.

    Raises:
      UserError: the run's config.json cannot be read.
    """
    record = path / "config.json"
    if not record.is_file():
        return {"backbone": None, "optimizer": None}
    try:
        config = json.loads(record.read_text("utf-8"))["config"]
        return {"backbone": config.get("model"), "optimizer": config.get("opt")}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{record} is no record of a run: {error}.") from error


def analyze_checkpoints(
    paths: Iterable[str | Path], *, jobs: int | None = None, progress: bool = True
) -> pandas.DataFrame:
    """The figures of every layer of every run and file, beside random initialization.

    Args:
      paths: runs, folders of runs, or files of weights.
      jobs: processes; None: one a core, and none beside this for a single set.
      progress: shows a bar on the error stream.

    Returns:
      One row a layer: source, backbone, optimizer, the fields of `Layer`, and each figure again
      with `_init`: that of a Gaussian layer of the same shape with variance 1 / fan-in.

    Raises:
      UserError: there are no weights, or some cannot be read or are of another model than the
        other runs of the same backbone.
    """
    sources = find(paths)
    jobs = min(jobs or os.cpu_count() or 1, len(sources))
    tasks = [joblib.delayed(_analyze)(path, 2 if jobs == 1 else 1) for path in sources]
    with joblib.parallel_config("loky" if jobs > 1 else "sequential", n_jobs=jobs):
        results = joblib.Parallel(return_as="generator")(tasks)
        console = Console(stderr=True)
        tables = list(track(results, "weights", len(tasks), console=console, disable=not progress))
    _check_same(tables)
    return pandas.concat([pandas.DataFrame(rows) for rows in tables], ignore_index=True)


def _analyze(path: Path, threads: int) -> list[dict]:
    # Only the reading of runs needs JAX, and no worker needs a device.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arrays, ordered = read(path)
    layers = analyze_weights(arrays, ordered=ordered, threads=threads)
    if not layers:
        raise UserError(f"{path} holds no layers: no matrix or kernel among its arrays.")
    about = {"source": str(path), **describe(path)}
    return [about | dataclasses.asdict(layer) | _at_random(arrays, layer) for layer in layers]


def _at_random(arrays: Mapping[str, np.ndarray], layer: Layer) -> dict[str, float]:
    stored = "kernel" if f"{layer.layer}.kernel" in arrays else "weight"
    figures = _random_figures(stored, layer.shape)
    return {f"{name}_init": value for name, value in zip(FIGURES, figures, strict=True)}


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
