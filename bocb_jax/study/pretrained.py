"""The runs that the runs of a study start from: a set of weights per backbone and optimizer."""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

from bocb_jax.errors import UserError
from bocb_jax.run_files import read_config, read_result
from bocb_jax.study.spec import Pretrained


@dataclasses.dataclass(frozen=True)
class Weights:
    """What one optimizer of pre-training gives one backbone."""

    optimizer: str | None  # that trained them; None: random weights, or what the settings name
    inits: tuple[str, ...]  # run directories, by their seeds


NONE = Weights(None, ())


def find_weights(
    given: Pretrained, backbone: str, optimizers: Sequence[str], *, stand_in: bool = False
) -> list[Weights]:
    """Return the weights that the runs of a backbone start from, a set for each optimizer.

    Args:
      given: `pretrained` of the study.
      backbone: its name.
      optimizers: of pre-training; none: all of the folder.
      stand_in: whether weights that are not there yet may be named: they are not read.

    Raises:
      UserError: there is no folder, or no finished final run of the backbone with an optimizer.
    """
    if given.runs is None:
        return [NONE]
    folder = Path(given.runs).expanduser()
    if not folder.is_dir():
        if stand_in and optimizers:
            return [Weights(name, (str(folder / f"{backbone}-{name}"),)) for name in optimizers]
        raise UserError(
            f"pretrained.runs is {given.runs}, and there is no such folder; first train the runs "
            "whose weights this study starts from, and name their folder."
        )
    found = _final_runs(folder, backbone)
    wanted = optimizers or list(found)
    if not wanted:
        raise UserError(f"{folder} has no finished final run of {backbone} to start from.")
    missing = [name for name in wanted if name not in found]
    if missing:
        raise UserError(
            f"{folder} has no finished final run of {backbone} with {', '.join(missing)} to start "
            "from; train it, or leave it out of pretrained.optimizers."
        )
    return [Weights(name, found[name]) for name in wanted]


def _final_runs(folder: Path, backbone: str) -> dict[str, tuple[str, ...]]:
    """Return the finished final runs of a backbone in a folder, by optimizer, in order of seeds."""
    found: dict[str, list[tuple[int, str]]] = {}
    for path in sorted(entry.path for entry in os.scandir(folder) if entry.is_dir()):
        stored = read_config(Path(path))
        if stored is None:
            continue
        config, result = stored["config"], read_result(Path(path)) or {}
        final = config.get("test", True) and result.get("status") == "finished"
        if final and config["model"] == backbone and "opt" in config:
            found.setdefault(config["opt"], []).append((config.get("seed", 0), path))
    return {name: tuple(path for _, path in sorted(runs)) for name, runs in found.items()}
