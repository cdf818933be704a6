"""Time training steps on a GPU, in bfloat16, beside timm's at their best on the same card.

Each side runs in a process of its own, compiles while the other does, and is timed alone. Ours is
the training step of `bocb train --precision bfloat16`; the reference is timm's or torchvision's net
with channels_last, autocast to bfloat16 and a fused SGD, both compiled by `torch.compile` and
eager; the faster counts. Last come minis, several of which train as one program. On a CPU the same
script runs, at a small size, as a rehearsal.
"""

import contextlib
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

CLASSES = 1000
MODELS = ("resnet50", "vit_s", "convnext_t", "swin_t", "efficientnet_b0", "caformer_s12")
MINIS = ("resnet_mini", "vit_mini")

_REFERENCE = """
import json, sys, time
import torch

library, name, size, classes = json.loads(sys.argv[1])
gpu = torch.cuda.is_available()
device = "cuda" if gpu else "cpu"
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")
torch._dynamo.config.automatic_dynamic_shapes = False
if library == "timm":
    import timm
    fixed = timm.get_pretrained_cfg(name).fixed_input_size
    make = lambda: timm.create_model(
        name, num_classes=classes, **({"img_size": size} if fixed else {}))
else:
    import torchvision
    make = lambda: getattr(torchvision.models, name)(num_classes=classes)
model = make().to(device, memory_format=torch.channels_last).train()
optimizer = torch.optim.SGD(model.parameters(), 0.01, 0.9, weight_decay=1e-4, fused=gpu)
forms = {"eager": model, "compiled": torch.compile(model, dynamic=False)}

def batch_of(count):
    images = torch.rand(count, 3, size, size, device=device)
    return (images.contiguous(memory_format=torch.channels_last),
            torch.arange(count, device=device) % classes)

def step(net, images, labels):
    optimizer.zero_grad(set_to_none=True)
    with torch.autocast(device, torch.bfloat16):
        loss = torch.nn.functional.cross_entropy(net(images), labels)
    loss.backward()
    optimizer.step()

def wait():
    if gpu:
        torch.cuda.synchronize()

for line in sys.stdin:
    asked, batch, net = json.loads(line), None, None
    try:
        batch, net = batch_of(asked["batch"]), forms[asked["form"]]
        if gpu:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        for _ in range(3):
            step(net, *batch)
        wait()
        warm = time.perf_counter() - start
        start = time.perf_counter()
        for _ in range(asked["steps"]):
            step(net, *batch)
        wait()
        seconds = (time.perf_counter() - start) / max(1, asked["steps"])
        peak = torch.cuda.max_memory_allocated() if gpu else None
        print(json.dumps({"seconds": seconds, "warm": warm, "peak": peak}), flush=True)
    except Exception as error:
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}), flush=True)
    del batch, net
    optimizer.zero_grad(set_to_none=True)
    if gpu:
        torch.cuda.empty_cache()
"""


@dataclasses.dataclass(frozen=True)
class Timing:
    """One side's fastest training step of a backbone.

    Attributes:
      batch_size: images a step, the fastest of those tried.
      images_per_second: median over the rounds.
      form: "compiled" or "eager", for the reference.
      peak_bytes: of device memory, where the platform tells.
      warm_seconds: of the first steps, compilation included.
    """

    batch_size: int
    images_per_second: float
    form: str
    peak_bytes: int | None
    warm_seconds: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A backbone here and in PyTorch.

    Attributes:
      name: of the backbone.
      ours: None if no batch size fitted.
      theirs: None without PyTorch, or where it has no such net.
      utilization: model FLOPs of our step (6 a multiply-accumulate of the forward pass) over the
        rate that a large bfloat16 matrix product reaches on the same device.
      problems: what did not run, in words.
    """

    name: str
    ours: Timing | None
    theirs: Timing | None
    utilization: float | None
    problems: tuple[str, ...]

    @property
    def ratio(self) -> float | None:
        """Our images per second over the reference's."""
        if self.ours is None or self.theirs is None:
            return None
        return self.ours.images_per_second / self.theirs.images_per_second


def compare(
    name: str,
    *,
    image_size: int,
    batch_sizes: Sequence[int],
    steps: int,
    rounds: int,
    python: Sequence[str],
    peak_flops: float | None,
) -> Comparison:
    """Time a backbone's training step here and in PyTorch, each at its best batch size.

    Args:
      name: of the backbone.
      image_size: side in pixels.
      batch_sizes: to try; one that does not fit is reported and left out.
      steps: training steps in a timed block.
      rounds: timed blocks at the best batch size, in turn.
      python: command of an interpreter that has PyTorch and timm.
      peak_flops: FLOP/s that a matrix product reaches on this device.
    """
    with contextlib.ExitStack() as stack:
        sides = _open_sides(stack, name, image_size, python)
        blocks, answers, problems = _search(sides, batch_sizes, steps)
        best: dict[str, _Key] = {}
        for key, (rate, *_) in blocks.items():
            if key.side not in best or rate > blocks[best[key.side]][0]:
                best[key.side] = key
        for _ in range(rounds - 1):
            for key in best.values():
                answer = sides[key.side].ask(batch=key.batch, form=key.form, steps=steps)
                if "seconds" in answer:
                    blocks[key].append(key.batch / answer["seconds"])
    timings = {
        side: Timing(
            batch_size=key.batch,
            images_per_second=statistics.median(blocks[key]),
            form=key.form,
            peak_bytes=answers[key].get("peak"),
            warm_seconds=answers[key]["warm"],
        )
        for side, key in best.items()
    }
    utilization = None
    if peak_flops and "ours" in timings:
        utilization = timings["ours"].images_per_second * _step_flops(name, image_size) / peak_flops
    return Comparison(
        name, timings.get("ours"), timings.get("theirs"), utilization, tuple(problems)
    )


class _Key(NamedTuple):
    """What is timed: a side, the form of its step, and a batch size."""

    side: str
    form: str
    batch: int


_FORMS = {"ours": ("compiled",), "theirs": ("compiled", "eager")}


def _open_sides(
    stack: contextlib.ExitStack, name: str, image_size: int, python: Sequence[str]
) -> dict[str, "_Side"]:
    from bocb_jax.models import model_card

    library, _, reference = model_card(name).reference.partition(" ")
    sides = {"ours": stack.enter_context(_ours(name, image_size))}
    if library in ("timm", "torchvision"):
        settings = json.dumps([library, reference, image_size, CLASSES])
        sides["theirs"] = stack.enter_context(_process([*python, "-c", _REFERENCE, settings]))
    return sides


def _search(
    sides: dict[str, "_Side"], batch_sizes: Sequence[int], steps: int
) -> tuple[dict[_Key, list[float]], dict[_Key, dict[str, Any]], list[str]]:
    """Time every form at every batch size: images per second, answers, and what did not run."""
    blocks: dict[_Key, list[float]] = {}
    answers: dict[_Key, dict[str, Any]] = {}
    problems = []
    for batch in batch_sizes:
        # Both compile at the same time; both answers are awaited before anything is timed.
        for side in sides.values():
            side.send(batch=batch, form="compiled", steps=0)
        warm = {name: side.receive().get("warm") for name, side in sides.items()}
        for name, side in sides.items():
            for form in _FORMS[name]:
                key, answer = (
                    _Key(name, form, batch),
                    side.ask(batch=batch, form=form, steps=steps),
                )
                if "error" in answer:
                    problems.append(f"{name}, {form}, batch {batch}: {answer['error']}")
                    continue
                if form == "compiled" and warm[name] is not None:
                    answer["warm"] = warm[name]
                answers[key], blocks[key] = answer, [batch / answer["seconds"]]
    return blocks, answers, problems


def _step_flops(name: str, image_size: int) -> float:
    """FLOPs of a training step an image: two a multiply-accumulate, three times the forward."""
    command = [sys.executable, "-m", __name__, json.dumps({"macs": [name, image_size]})]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return 6 * float(done.stdout)


class _Side:
    """A process that answers each line of JSON with another."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def send(self, **request: Any) -> None:
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(request), file=self._process.stdin, flush=True)

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        return json.loads(line) if line else {"error": "the process has ended"}

    def ask(self, **request: Any) -> dict[str, Any]:
        self.send(**request)
        return self.receive()


@contextlib.contextmanager
def _process(command: Sequence[str], **environment: str) -> Iterator[_Side]:
    with subprocess.Popen(
        list(command),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=None if os.environ.get("BOCB_BENCH_ERRORS") else subprocess.DEVNULL,
        text=True,
        env=os.environ | environment,
    ) as process:
        yield _Side(process)
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()


def _ours(name: str, image_size: int) -> contextlib.AbstractContextManager[_Side]:
    # Half of the card: the other side has its memory there too.
    settings = json.dumps({"model": [name, image_size]})
    return _process(
        [sys.executable, "-m", __name__, settings], XLA_PYTHON_CLIENT_MEM_FRACTION="0.5"
    )


def matmul_flops() -> float:
    """Measure the FLOP/s of a bfloat16 matrix product of large random square matrices."""
    with _process([sys.executable, "-m", __name__, json.dumps({"matmul": []})]) as side:
        return float(side.receive()["flops"])


@dataclasses.dataclass(frozen=True)
class Together:
    """Several runs of a mini as one program: training steps a second of all of them."""

    name: str
    members: int
    steps_per_second: float


def populations(
    name: str, *, members: Sequence[int], batch_size: int = 100, steps: int = 50
) -> tuple[list[Together], list[str]]:
    """Time runs of a mini that train as one program, 32 px; what did not run, in words."""
    found, problems = [], []
    settings = json.dumps({"population": [name, batch_size]})
    with _process([sys.executable, "-m", __name__, settings]) as side:
        for count in members:
            answer = side.ask(members=count, steps=steps)
            if "error" in answer:
                problems.append(f"{name}, {count} together: {answer['error']}")
                break
            found.append(Together(name, count, count / answer["seconds"]))
    return found, problems


# --- The processes of our side -------------------------------------------------------------------


def _serve(settings: dict[str, Any]) -> None:
    if "macs" in settings:
        print(_macs(*settings["macs"]))
        return
    if "matmul" in settings:
        print(json.dumps({"flops": _matmul()}), flush=True)
        return
    if "model" in settings:
        step = _model_steps(*settings["model"])
    else:
        step = _population_steps(*settings["population"])
    for line in sys.stdin:
        try:
            answer = step(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)


def _macs(name: str, image_size: int) -> int:
    from flax import nnx

    from bocb_jax.models import create_model
    from bocb_jax.models.macs import count_macs

    model = nnx.eval_shape(
        lambda: create_model(name, num_classes=CLASSES, image_size=image_size, rngs=nnx.Rngs(0))
    )
    return count_macs(model, image_size)


def _matmul() -> float:
    import jax
    import jax.numpy as jnp

    size = 512 if jax.default_backend() == "cpu" else 8192
    a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        for _ in range(10):
            a = (a @ b) * size**-0.5
        return a

    jax.block_until_ready(products(a, b))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(products(a, b))
        seconds.append(time.perf_counter() - start)
    return 10 * 2 * size**3 / statistics.median(seconds)


def _spec(name: str, image_size: int, batch_size: int, classes: int) -> Any:
    from bocb_jax.build import program_spec
    from bocb_jax.config import AugmentConfig, ParallelConfig, TrainConfig
    from bocb_jax.data import Dataset
    from bocb_jax.resolve import resolve

    config = TrainConfig(
        model=name,
        opt="sgd",
        recipe="pytorch",
        dataset="imagenet2012" if image_size > 64 else "cifar10",
        image_size=image_size,
        batch_size=batch_size,
        precision="bfloat16",
        augment=AugmentConfig(only=True),
        parallel=ParallelConfig(devices=1),
    )
    images = Dataset("noise", classes, {}, (image_size, image_size, 3))
    return program_spec(config, resolve(config, images), images, 1000)


def _batch(batch_size: int, image_size: int, classes: int) -> dict[str, Any]:
    import jax
    import numpy as np

    random = np.random.default_rng(0)
    shape = (batch_size, image_size, image_size, 3)
    return jax.device_put(
        {
            "image": random.integers(0, 256, shape, dtype=np.uint8),
            "label": random.integers(0, classes, batch_size, dtype=np.int32),
        }
    )


def _block(step: Callable[[Any], tuple[Any, Any]], state: Any, steps: int) -> tuple[float, Any]:
    """Seconds a step, and the state afterwards."""
    import jax

    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state)
    if steps:
        jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / max(1, steps), state


def _model_steps(name: str, image_size: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    import jax

    from bocb_jax.build import compiled_program

    key = jax.random.key(0)
    ready: dict[int, tuple[Any, Any]] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        batch_size, begun = asked["batch"], time.perf_counter()
        program = compiled_program(_spec(name, image_size, batch_size, CLASSES))
        if batch_size not in ready:
            ready.clear()
            batch = _batch(batch_size, image_size, CLASSES)
            ready[batch_size] = program.train_step, batch
        train_step, batch = ready[batch_size]
        state = program.init(key, 0.01, 1e-4)
        _, state = _block(lambda state: train_step(state, batch, key), state, 3)
        warm = time.perf_counter() - begun
        seconds, state = _block(lambda state: train_step(state, batch, key), state, asked["steps"])
        memory = jax.devices()[0].memory_stats() or {}
        return {"seconds": seconds, "warm": warm, "peak": memory.get("peak_bytes_in_use")}

    return answer


def _population_steps(name: str, batch_size: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    import jax

    from bocb_jax.build import compiled_population, compiled_program

    spec = _spec(name, 32, batch_size, 10)
    program = compiled_program(spec)
    batch = _batch(batch_size, 32, 10)

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        members = asked["members"]
        keys = [jax.random.key(seed) for seed in range(members)]
        states = [program.init(key, 0.01, 1e-4) for key in keys]
        if members == 1:
            state, batches, stacked, step = states[0], batch, keys[0], program.train_step
        else:
            population = compiled_population(spec, members)
            state, stacked = population.stack_states(states), population.stack_keys(keys)
            batches, step = population.stack_batches([batch] * members), population.train_step
        _, state = _block(lambda state: step(state, batches, stacked), state, 3)
        seconds, _ = _block(lambda state: step(state, batches, stacked), state, asked["steps"])
        return {"seconds": seconds}

    return answer


if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
