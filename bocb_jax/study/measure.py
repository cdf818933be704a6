"""Seconds per training image, from a few training steps; loads JAX.

A sweep's dry run measures each backbone, `--population auto` compares training together with
training one by one, and `bocb bench --data` times whole steps.
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

from bocb_jax.build import compiled_population
from bocb_jax.config import TrainConfig
from bocb_jax.engine.outcome import is_out_of_memory
from bocb_jax.engine.trainer import PopulationTrainer, SingleTrainer, Trainer
from bocb_jax.tasks.kinds import KINDS
from bocb_jax.train import Run

MEASURED_PIXELS = 8 * 224**2  # of a batch at most, on a CPU
ROUNDS = 5  # of `compare`


def seconds_per_image(config: TrainConfig) -> float:
    """Measure a few training steps of a run.

    Synthetic images stand in for a data set that is not on this machine. On a CPU, where an image
    takes as long whatever the batch size, a large batch is cut to about `MEASURED_PIXELS`.
    """
    dataset, _ = KINDS[config.task].open_or_stand_in(config)
    run = Run(config, dataset)
    if jax.default_backend() == "cpu":
        parts = config.step.accumulate * config.step.batch_norm_groups  # these divide a batch
        parts *= 2 if config.task == "detection" else 1  # and so do pairs of images
        few = max(1, MEASURED_PIXELS // run.resolved.image_size**2 // parts) * parts
        batch_size = min(run.resolved.batch_size, few)
        run = Run(dataclasses.replace(config, batch_size=batch_size), dataset)
    return TrainingSteps(run).seconds_per_image()


def compare(config: TrainConfig, members: int) -> dict[str, Any]:
    """Measure whether runs like one train faster together than one by one.

    Args:
      config: of one of the runs.
      members: how many could train together. Where memory does not suffice, half as many are tried.

    Returns:
      "members", how many should train together, 1 for none; where both ways were measured, "tried"
      members and the seconds per image "seconds_per_image_alone" and "seconds_per_image_together";
      otherwise "error".
    """
    error = None
    while members > 1:
        try:
            run = Run(config)
            alone, together = TrainingSteps(run), TrainingSteps(run, members)
            # In turn, and the fastest round of each: what else the machine does is left out.
            rounds = [
                (alone.seconds_per_image(), together.seconds_per_image()) for _ in range(ROUNDS)
            ]
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
            if not is_out_of_memory(caught):
                break
            members //= 2
            continue
        one, several = (min(seconds) for seconds in zip(*rounds, strict=True))
        return {
            "members": members if several < one else 1,
            "tried": members,
            "seconds_per_image_alone": one,
            "seconds_per_image_together": several,
        }
    return {"members": 1, "error": error}


class TrainingSteps:
    """The training steps of a run, or of several together, and nothing else that a run does.

    The constructor takes one step, which compiles the program.

    Args:
      run: the run, which need not be open.
      members: how many like it train together.
      next_batch: gives the batch of a step; None for the run's own, read as in training.
    """

    def __init__(
        self,
        run: Run,
        members: int = 1,
        next_batch: Callable[[], dict[str, jax.Array]] | None = None,
    ):
        states, keys = [run.init_state() for _ in range(members)], [run.key] * members
        self._trainer: Trainer
        if members == 1:
            self._trainer = SingleTrainer(run.program, states[0], run.key)
        else:
            population = compiled_population(run.spec, members)
            self._trainer = PopulationTrainer(population, run.program, states, keys)
        if next_batch is None:
            batches = run.data.loader(self._trainer.batch_sharding).train(seed=0)
            next_batch = batches.__next__
        self._next_batch, self._members = next_batch, members
        self._images = members * run.resolved.batch_size
        self.seconds_per_step(1)

    def seconds_per_step(self, steps: int) -> float:
        """Take some steps and return the mean seconds of one."""
        begun = time.perf_counter()
        for _ in range(steps):
            metrics = self._trainer.train_step([self._next_batch()] * self._members)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - begun) / steps

    def seconds_per_image(self, steps: int = 3) -> float:
        """Take some steps and return the mean seconds of one image."""
        return self.seconds_per_step(steps) / self._images
