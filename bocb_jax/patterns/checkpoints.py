"""Metrics of many sets of weights at once: run directories, and files of any framework.

Sets of weights are spread over processes, and the result is one tidy table with a row per layer.
"""

import dataclasses
import functools
import json
import os
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas
from rich.console import Console
from rich.progress import track

from bocb_jax.errors import UserError
from bocb_jax.patterns.spectra import METRICS, analyze_weights, layer_name, random_weights
from bocb_jax.run_files import read_config, read_result, score_name
from bocb_jax.storage.files import check_regular
from bocb_jax.weight_files.read import (
    SUFFIXES,
    files_of,
    is_weight_file,
    keeps_order,
    read_weights,
)

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
    around: str = ""  # JSON of what is recorded of the net around the backbone, if there is one


def find_weights(paths: Iterable[str | Path]) -> list[Path]:
    """Return all run directories with a checkpoint, and all files of weights, under some paths.

    Raises:
      UserError: a path does not exist, or holds neither.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_file():
            if not is_weight_file(path):
                raise UserError(
                    f"{path} is no file of weights: its name ends in none of {', '.join(SUFFIXES)}."
                )
            found.append(path)
            continue
        if path.exists() and not path.is_dir():
            check_regular(path, path.stat())
        if not path.is_dir():
            raise UserError(
                f"{path} does not exist; give a run directory, a folder of them, or a file."
            )
        here = [best.parent.parent for best in sorted(path.rglob("checkpoints/best"))]
        here += _files_in(path)
        if not here:
            raise UserError(
                f"{path} holds no weights: no run with checkpoints/best under it, and no file "
                f"that ends in {', '.join(SUFFIXES)}."
            )
        found += here
    return list(dict.fromkeys(found))


def _files_in(folder: Path) -> list[Path]:
    """Return the files of weights under a folder; an index stands for the files that it names."""
    found = {p for p in folder.rglob("*") if is_weight_file(p) and p.is_file()}
    for path in sorted(found):
        found -= set(files_of(path))
    return sorted(found)


def read_arrays(path: Path, *, ema: bool = False) -> tuple[dict[str, np.ndarray], bool]:
    """Return the arrays of one run or file, and whether they come in the order of the network.

    Args:
      path: a run directory or a file.
      ema: take the averaged weights of a file that holds both.

    Raises:
      UserError: they cannot be read.
    """
    if not path.is_dir():
        arrays = read_weights(path, ema=ema, say=lambda text: print(text, file=sys.stderr))
        unknown = [name for name, array in arrays.items() if array.dtype.kind == "c"]
        if any(layer_name(name, arrays[name].ndim) for name in unknown):
            raise UserError(
                f"{path} holds complex numbers ({unknown[0]}); there are no metrics of these."
            )
        return arrays, keeps_order(path)
    if ema:
        raise UserError(
            f"{path} is a folder of a run, which holds one set of weights; omit --init-ema."
        )
    from bocb_jax.engine.checkpoint import read_best

    return read_best(path), False


def read_record(path: Path) -> tuple[dict[str, Any], Initialization | None]:
    """Return what a run directory says about its run.

    Returns:
      backbone (with its variant), optimizer, seed, score (test accuracy or AP, or else the best one
      on validation, in percent) and failed (whether the run ended without finishing), each None if
      it is not known, as for a file of weights; and the run's initialization.

    Raises:
      UserError: config.json or result.json cannot be read.
    """
    about: dict[str, Any] = dict.fromkeys(("backbone", "optimizer", "seed", "score", "failed"))
    record = read_config(path) if path.is_dir() else None
    if record is None:
        return about, None
    config, resolved = record["config"], record.get("resolved") or {}
    about["backbone"] = record.get("label") or config["model"]
    about["optimizer"], about["seed"] = config.get("opt"), config.get("seed")
    result = read_result(path)
    if result is not None:
        about["failed"] = result["status"] != "finished"
        name = score_name(result)
        score = result.get(f"test_{name}", result.get(f"best_validation_{name}"))
        about["score"] = None if score is None else 100 * score
    return about, _initialization(config, resolved)


def _initialization(
    config: Mapping[str, Any], resolved: Mapping[str, Any]
) -> Initialization | None:
    if not {"num_classes", "image_size", "precision"} <= set(resolved) or "seed" not in config:
        return None
    arguments = dict(config.get("model_args") or {})
    if resolved.get("drop_path") is not None:
        arguments["drop_path"] = resolved["drop_path"]
    task, around, side = config.get("task", "classification"), "", resolved["image_size"]
    if task != "classification":
        given = resolved.get("transfer")
        settings = given if isinstance(given, dict) else {}
        around = json.dumps([task, settings], sort_keys=True)
        side = settings.get("backbone_size", side)
    return Initialization(
        model=config["model"],
        model_args=json.dumps(arguments, sort_keys=True),
        num_classes=resolved["num_classes"],
        image_size=side,
        precision=resolved["precision"],
        seed=config["seed"],
        around=around,
    )


def analyze_checkpoints(
    paths: Iterable[str | Path],
    *,
    ema: bool = False,
    jobs: int | None = None,
    progress: bool = True,
) -> pandas.DataFrame:
    """Return the metrics of every layer of every run and file, beside those at initialization.

    Args:
      paths: run directories, folders of them, or files of weights.
      ema: take the averaged weights of files that hold both.
      jobs: number of processes; None: one per core. A single set is analyzed in this process.
      progress: whether to show a progress bar on the error stream.

    Returns:
      One row per layer: source, backbone, optimizer, seed, score, failed, the fields of `Layer`,
      each metric again with `_init`, and `init`, which says what the latter are of: "own", the
      random weights of the net with the run's seed, from which it started unless `--init` gave it
      others, or "gaussian", a Gaussian layer of the same shape and of variance 1 / fan-in.

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
    seeds_of: dict[Initialization, set[int]] = {}
    paths_of: dict[Initialization, Path] = {}
    for path, (_, start) in zip(sources, records, strict=True):
        if start is not None:
            group = dataclasses.replace(start, seed=0)
            seeds_of.setdefault(group, set()).add(start.seed)
            paths_of.setdefault(group, path)
    console = Console(stderr=True)
    with joblib.parallel_config("loky" if jobs > 1 else "sequential", n_jobs=jobs):

        def run(tasks: list[Any], description: str) -> list[Any]:
            results = joblib.Parallel(return_as="generator")(tasks)
            hidden = not (progress and tasks)
            return list(track(results, description, len(tasks), console=console, disable=hidden))

        tasks = [
            joblib.delayed(_analyze_initial)(start, seeds, paths_of[start], threads)
            for start, seeds in seeds_of.items()
        ]
        initial: dict[Initialization, _Initial] = {}
        unknown: dict[str, str] = {}
        for start, (found, reason) in zip(seeds_of, run(tasks, "initializations"), strict=True):
            initial |= found
            if reason:
                unknown.setdefault(start.model, reason)
        for model, reason in unknown.items():
            console.print(
                f"The random weights that {model} started from are not known ({reason}) Gaussian "
                "layers of the same shapes stand in for them.",
                markup=False,
                soft_wrap=True,
            )
        tasks = [
            joblib.delayed(_analyze)(path, about, start and initial.get(start), threads, ema)
            for path, (about, start) in zip(sources, records, strict=True)
        ]
        tables = run(tasks, "weights")
    _check_layers(tables)
    return pandas.concat([pandas.DataFrame(rows) for rows in tables], ignore_index=True)


def _analyze(
    path: Path, about: dict[str, Any], initial: _Initial | None, threads: int, ema: bool
) -> list[dict[str, Any]]:
    # Reading a run imports JAX, but no worker needs a device.
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    arrays, ordered = read_arrays(path, ema=ema)
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
    start: Initialization, seeds: Collection[int], path: Path, threads: int
) -> tuple[dict[Initialization, _Initial], str]:
    """Return the shape and metrics of every layer at initialization, for some seeds of a model.

    Args:
      start: the model.
      seeds: of the runs.
      path: of one of the runs; its weights bound the model, which is as the run's file says.
      threads: as for `analyze_weights`.

    Returns:
      By seed; and the reason, a sentence, if the model cannot be built: it is none of the
      registered ones, or has changed since.
    """
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from bocb_jax import starting_weights
    from bocb_jax.engine import checkpoint, compile_cache

    compile_cache.use_compile_cache(None)
    known = dataclasses.asdict(start) | {"model_args": json.loads(start.model_args)}
    around = known.pop("around")
    found = {}
    for seed in seeds:
        try:
            if "shapes" not in known:
                known["shapes"] = checkpoint.best_shapes(path)
                known["net"] = _net(path, start.model) if around else None
            arrays = starting_weights.initial_weights(**known | {"seed": seed})
        except (UserError, ImportError, TypeError, ValueError, AttributeError) as error:
            return {}, str(error)
        found[dataclasses.replace(start, seed=seed)] = {
            layer.layer: (layer.shape, tuple(getattr(layer, name) for name in METRICS))
            for layer in analyze_weights(arrays, threads=threads)
        }
    return found, ""


def _net(path: Path, model: str) -> Any:
    """Return what is around the backbone of a run; nothing that the run names is imported."""
    from bocb_jax.models.factory import MODELS
    from bocb_jax.prediction.nets import net_of
    from bocb_jax.prediction.recorded import read_record as read_whole_record

    stored = read_config(path)
    assert stored is not None
    return net_of(read_whole_record(path, stored, MODELS.get(model)))


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
