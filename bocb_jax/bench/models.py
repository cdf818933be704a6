"""The cost of a backbone: seconds to compile its training step, and images per second.

If an interpreter has PyTorch and timm, the same step of the reference is timed in turn, on the same
cores. It runs in a process of its own, as two thread pools in one process compete for the cores.
"""

import contextlib
import dataclasses
import re
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, TypeAlias

import jax
import numpy as np

from bocb_jax.bench.process import Timed
from bocb_jax.build import ProgramSpec, compiled_program, program_spec
from bocb_jax.config import AugmentConfig, ParallelConfig, TrainConfig
from bocb_jax.data.dataset import Dataset
from bocb_jax.engine.program import Program
from bocb_jax.errors import UserError
from bocb_jax.models import model_card
from bocb_jax.resolve import resolve

CLASSES = 1000
# Gives a function that times a block of the reference's steps, in seconds per step, or None.
Timing: TypeAlias = contextlib.AbstractContextManager[Callable[[int], float] | None]

# Python that makes the `model` of a reference from `library`, `name`, `size` and `classes`.
MAKE_REFERENCE = """
if library == "timm":
    import timm
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    model = timm.create_model(name, num_classes=classes, **({"img_size": size} if fixed else {}))
else:
    import torchvision
    model = getattr(torchvision.models, name)(num_classes=classes)
if size <= 32:  # the stems that we use for small images
    stem = lambda width, **kwargs: torch.nn.Conv2d(3, width, 3, padding=1, **kwargs)
    if name.startswith("resnet"):
        model.conv1, model.maxpool = stem(64, bias=False), torch.nn.Identity()
    elif name.startswith("densenet"):
        model.features.conv0 = stem(model.features.conv0.out_channels, bias=False)
        model.features.norm0 = model.features.pool0 = torch.nn.Identity()
    elif name.startswith("convnext"):
        model.stem[0] = stem(model.stem[0].out_channels)
"""

# Defines the `step` of a reference.
_REFERENCE = (
    """
import json, os, sys, time
import torch

library, name, size, batch, classes = json.loads(sys.argv[1])
torch.set_num_threads(len(os.sched_getaffinity(0)))
"""
    + MAKE_REFERENCE
    + """
model.train()
optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4)
images, labels = torch.rand(batch, 3, size, size), torch.arange(batch) % classes

def step():
    optimizer.zero_grad(set_to_none=True)
    torch.nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()
"""
)

_LACKS = "ModuleNotFoundError|ImportError"
# Answers a number of steps with the seconds of one.
_TIME_STEPS = """
step()
print(json.dumps({"ready": True}), flush=True)
for line in sys.stdin:
    steps = json.loads(line)["steps"]
    step()  # untimed: wakes the threads and refills the caches
    start = time.perf_counter()
    for _ in range(steps):
        step()
    print(json.dumps({"seconds": (time.perf_counter() - start) / steps}), flush=True)
"""


@dataclasses.dataclass(frozen=True)
class ModelCost:
    """Cost of the training step of one backbone with SGD, without augmentation."""

    name: str
    image_size: int
    batch_size: int
    trace_seconds: float  # Python to StableHLO
    compile_seconds: float  # StableHLO to machine code, without a cache
    images_per_second: float | None  # median over rounds; None with 0 rounds
    reference_ratio: float | None  # speed over the reference's, median over rounds


def measure(
    name: str,
    *,
    image_size: int = 224,
    batch_size: int = 2,
    rounds: int = 3,
    steps: int = 2,
    python: Sequence[str] = (sys.executable,),
) -> ModelCost:
    """Compile and time the training step of a backbone on one device.

    Args:
      name: name of the backbone.
      image_size: side in pixels.
      batch_size: images per step.
      rounds: timed blocks of ours, each followed by one of the reference; 0 only compiles.
      steps: training steps per block, after an untimed one.
      python: command of an interpreter with PyTorch, timm and torchvision.
    """
    program = compiled_program(step_spec(name, image_size, batch_size, CLASSES))
    batch = noise_batch(image_size, batch_size, CLASSES)
    nothing: Timing = contextlib.nullcontext()
    timing = _reference(name, image_size, batch_size, python) if rounds else nothing
    return cost(name, program, batch, timing, image_size=image_size, rounds=rounds, steps=steps)


def cost(
    name: str,
    program: Program,
    batch: dict[str, np.ndarray],
    timing: Timing,
    *,
    image_size: int,
    rounds: int,
    steps: int,
) -> ModelCost:
    """Compile and time a training step, in turn with the reference's.

    Args:
      name: of the backbone.
      program: of the step.
      batch: of it.
      timing: entered once the step is compiled, gives what times a block of the reference's steps.
      image_size: side in pixels.
      rounds: as in `measure`.
      steps: likewise.
    """
    key = jax.random.key(0)
    with _no_compile_cache():
        begun = time.perf_counter()
        lowered = program.train_step.lower(program.abstract_state, batch, key)
        traced = time.perf_counter()
        step = lowered.compile()
        compiled = time.perf_counter()

    batch_size = len(batch["image"])
    images_per_second = ratio = None
    if rounds:
        state = program.init(key, 1e-4, 1e-4)

        def ours(steps: int) -> float:
            nonlocal state
            begun: float | None = None
            for _ in range(steps + 1):
                state, metrics = step(state, batch, key)
                jax.block_until_ready(metrics)
                begun = begun or time.perf_counter()
            assert begun is not None
            return (time.perf_counter() - begun) / steps

        with timing as theirs:
            pairs = [(ours(steps), theirs(steps) if theirs else None) for _ in range(rounds)]
        images_per_second = batch_size / statistics.median(a for a, _ in pairs)
        if theirs:
            ratio = statistics.median(b / a for a, b in pairs if b)
    return ModelCost(
        name, image_size, batch_size, traced - begun, compiled - traced, images_per_second, ratio
    )


def step_spec(
    name: str,
    image_size: int,
    batch_size: int,
    classes: int,
    precision: Literal["auto", "bfloat16"] = "auto",
) -> ProgramSpec:
    """Describe the training step of a backbone with SGD, on one device and without augmentation."""
    config = TrainConfig(
        model=name,
        opt="sgd",
        recipe="pytorch",
        dataset="imagenet2012",
        image_size=image_size,
        batch_size=batch_size,
        precision=precision,
        augment=AugmentConfig(only=True),
        parallel=ParallelConfig(devices=1),
    )
    images = Dataset("noise", classes, {}, (image_size, image_size, 3))
    return program_spec(config, resolve(config, images), images, 1000)


def noise_batch(image_size: int, batch_size: int, classes: int) -> dict[str, np.ndarray]:
    """Return a batch of random pixels and labels."""
    random = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    return {
        "image": random.integers(0, 256, shape, dtype=np.uint8),
        "label": random.integers(0, classes, batch_size, dtype=np.int32),
    }


@contextlib.contextmanager
def _no_compile_cache() -> Iterator[None]:
    before = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]  # made by JAX
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)


@contextlib.contextmanager
def _reference(
    name: str, image_size: int, batch_size: int, python: Sequence[str]
) -> Iterator[Callable[[int], float] | None]:
    """Yield a function that times a block of the reference's training steps, in seconds per step.

    Yields None if the reference is a repository rather than a package, or the interpreter lacks it.
    """
    library, _, known_as = model_card(name).reference.partition(" ")
    if library not in ("timm", "torchvision"):
        yield None
        return
    arguments = [library, known_as, image_size, batch_size, CLASSES]
    with timed_reference(_REFERENCE, arguments, python) as block:
        yield block


@contextlib.contextmanager
def timed_reference(
    script: str, arguments: list[Any], python: Sequence[str]
) -> Iterator[Callable[[int], float] | None]:
    """Yield a function that times a block of a script's training steps, in seconds per step.

    Yields None if the interpreter lacks what the script imports.

    Args:
      script: Python that imports json, sys and time and defines `step`.
      arguments: its own, as JSON.
      python: command of an interpreter.

    Raises:
      UserError: the script fails for another reason.
    """
    with Timed([*python, "-c", script + _TIME_STEPS], arguments) as process:

        def block(steps: int) -> float:
            answer = process.ask(steps=steps)
            if "error" in answer:
                raise UserError(f"PyTorch's side of the comparison failed: {answer['error']}.")
            return float(answer["seconds"])

        lacks = process.problem is not None and re.search(_LACKS, process.problem)
        if process.problem and not lacks:
            block(1)  # says why
        yield None if lacks else block
