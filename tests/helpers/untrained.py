"""Runs of detection and pose estimation that have not been trained."""

import dataclasses
import json

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.tasks.described import describe
from bocb_jax.train import Run

SMALL = {
    "model": "vit_mini",
    "model_args": {"depth": 1},
    "opt": "adamw",
    "seed": 3,
    "image_size": 64,
    "batch_size": 2,
    "parallel": {"devices": 1},
    "transfer": {"width": 8},
}


def untrained_run(folder, task, **changes):
    """Write the directory of a run on the drawn data; its best weights are those of the start.

    Returns:
      The run, and its weights: "params" and "model_state".
    """
    config = from_dict(TrainConfig, {"task": task, **SMALL, **changes})
    run = Run(config)
    state = run.init_state()
    weights = run.program.weights(state)
    folder.mkdir(parents=True)
    record = {
        "config": config.identity(),
        "resolved": dataclasses.asdict(run.resolved),
        "label": config.model,
    }
    (folder / "config.json").write_text(json.dumps(record))
    (folder / "dataset.json").write_text(json.dumps(describe(run.dataset)))
    checkpoints = Checkpoints(folder / "checkpoints")
    checkpoints.save_best(10, weights, {})
    checkpoints.wait()
    checkpoints.close()
    return run, weights


def spec_of(model, task="detection", **changes):
    """Return what is compiled in of a run at 64 pixels on the drawn data."""
    given = {"task": task, "model": model, "image_size": 64, **changes}
    return Run(from_dict(TrainConfig, given)).spec
