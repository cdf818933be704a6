"""What a backbone costs: seconds to compile its training step, and images a second.

Beside it, where PyTorch and timm are installed, the same step of the reference, on as many threads.
"""

import contextlib
import dataclasses
import importlib.util
import statistics
import time
from collections.abc import Callable

import jax
import numpy as np

from bocb_jax.config import AugmentConfig, ParallelConfig, TrainConfig
from bocb_jax.data.sources import Dataset
from bocb_jax.models import model_card
from bocb_jax.program import compiled_program, program_spec
from bocb_jax.settings import resolve

CLASSES = 1000


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Cost of the training step of one backbone, SGD included, augmentation left out."""

    name: str
    image_size: int
    batch_size: int
    trace_seconds: float  # from Python to StableHLO
    compile_seconds: float  # from there to machine code, with no cache
    images_per_second: float | None  # median over rounds; None if not measured
    timm_ratio: float | None  # over the reference's, round by round


def measure(
    name: str, *, image_size: int = 224, batch_size: int = 2, rounds: int = 3, steps: int = 2
) -> ModelCost:
    """Compiles and times the training step of a backbone on one device.

    Args:
      name: of the backbone.
      image_size: pixels.
      batch_size: images a step.
      rounds: timed blocks; in each the reference follows ours. 0: only compile.
      steps: training steps in a block.
    """
    config = TrainConfig(
        model=name,
        opt="sgd",
        recipe="pytorch",
        dataset="imagenet2012",
        image_size=image_size,
        batch_size=batch_size,
        augment=AugmentConfig(only=True),
        parallel=ParallelConfig(devices=1),
    )
    images = Dataset("noise", CLASSES, {}, (image_size, image_size, 3))
    program = compiled_program(program_spec(config, resolve(config, images), images, 1000))
    random = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    batch = {
        "image": random.integers(0, 256, shape, dtype=np.uint8),
        "label": random.integers(0, CLASSES, batch_size, dtype=np.int32),
    }
    key = jax.random.key(0)
    with _no_compile_cache():
        begun = time.perf_counter()
        lowered = program.train_step.lower(program.abstract_state, batch, key)
        traced = time.perf_counter()
        step = lowered.compile()
        compiled = time.perf_counter()

    images_per_second = ratio = None
    if rounds:
        state = program.init(key, 0.01, 1e-4)

        def ours():
            nonlocal state
            state, metrics = step(state, batch, key)
            jax.block_until_ready(metrics)

        theirs = _reference_step(name, batch)
        seconds = _in_turn([ours, theirs] if theirs else [ours], rounds, steps)
        images_per_second = batch_size / statistics.median(seconds[0])
        if theirs:
            ratio = statistics.median(b / a for a, b in zip(*seconds, strict=True))
    return ModelCost(
        name, image_size, batch_size, traced - begun, compiled - traced, images_per_second, ratio
    )


@contextlib.contextmanager
def _no_compile_cache():
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


def _in_turn(functions: list[Callable], rounds: int, steps: int) -> list[list[float]]:
    """Seconds a step of each function, block by block; the first block warms up."""
    seconds = [[] for _ in functions]
    for number in range(rounds + 1):
        for function, found in zip(functions, seconds, strict=True):
            begun = time.perf_counter()
            for _ in range(steps if number else 1):
                function()
            if number:
                found.append((time.perf_counter() - begun) / steps)
    return seconds


def _reference_step(name: str, batch: dict[str, np.ndarray]) -> Callable[[], None] | None:
    """A training step of timm's net of the same name, or None where there is none."""
    library, _, known_as = model_card(name).reference.partition(" ")
    if library != "timm" or importlib.util.find_spec("timm") is None:
        return None
    import timm
    import torch

    model = timm.create_model(known_as, num_classes=CLASSES).train()
    optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
    images = torch.from_numpy(batch["image"].astype(np.float32) / 255).permute(0, 3, 1, 2)
    images = images.contiguous()
    labels = torch.from_numpy(batch["label"].astype(np.int64))

    def step():
        optimizer.zero_grad(set_to_none=True)
        torch.nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()

    return step
