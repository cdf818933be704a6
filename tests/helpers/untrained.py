"""Run directories of nets that have not been trained: their best weights are those of the start."""

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
    """Write the directory of a run of detection or pose estimation on the drawn data.

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
