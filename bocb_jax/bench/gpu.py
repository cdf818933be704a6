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
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.bench.models import CLASSES, MAKE_REFERENCE, noise_batch, step_spec
from bocb_jax.bench.process import Timed
from bocb_jax.build import compiled_population, compiled_program
from bocb_jax.errors import UserError
from bocb_jax.models import create_model, model_card
from bocb_jax.models.macs import count_macs

Step = Callable[[dict[str, Any]], dict[str, Any]]  # request -> answer

_OURS = (sys.executable, "-m", "bocb_jax.bench.gpu")
MODELS = ("resnet50", "vit_s", "convnext_t", "swin_t", "efficientnet_b0", "caformer_s12")
MINIS = ("resnet_mini", "vit_mini")

_REFERENCE = (
    """
import json, sys, time
import torch

library, name, size, classes = json.loads(sys.argv[1])
gpu = torch.cuda.is_available()
device = "cuda" if gpu else "cpu"
torch.backends.cudnn.benchmark = True
torch.set_float32_matmul_precision("high")
torch._dynamo.config.automatic_dynamic_shapes = False
"""
    + MAKE_REFERENCE
    + """
model = model.to(device, memory_format=torch.channels_last).train()
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

print(json.dumps({"ready": True}), flush=True)
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
)


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
      batch_sizes: to try, from the smallest on, since JAX tells the peak of memory since a process
        began; one that does not fit is reported and left out.
      steps: training steps in a timed block.
      rounds: timed blocks at the best batch size, in turn.
      python: command of an interpreter that has PyTorch and timm.
      peak_flops: FLOP/s that a matrix product reaches on this device.
    """
    with contextlib.ExitStack() as stack:
        sides, problems = _open_sides(stack, name, image_size, python)
        blocks, answers, failed = _search(sides, sorted(set(batch_sizes)), steps)
        problems += failed
        best: dict[str, _Key] = {}
        for key, (rate, *_) in blocks.items():
            if key.side not in best or rate > blocks[best[key.side]][0]:
                best[key.side] = key
        for _ in range(rounds - 1):
            for key in best.values():
                answer = sides[key.side].ask(batch=key.batch, form=key.form, steps=steps)
                if "error" in answer:
                    problems.append(f"{key}, a further round: {answer['error']}")
                    continue
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

    def __str__(self) -> str:
        return f"{self.side}, {self.form}, batch {self.batch}"


_FORMS = {"ours": ("compiled",), "theirs": ("compiled", "eager")}


def _open_sides(
    stack: contextlib.ExitStack, name: str, image_size: int, python: Sequence[str]
) -> tuple[dict[str, Timed], list[str]]:
    """Start both sides; return those that are ready, and why another is not."""
    # Half of the card: the other side has its memory there too.
    half = {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.5"}
    ours = Timed(_OURS, {"model": [name, image_size]}, environment=half)
    sides = {"ours": stack.enter_context(ours)}
    library, _, reference = model_card(name).reference.partition(" ")
    if library in ("timm", "torchvision"):
        settings = [library, reference, image_size, CLASSES]
        sides["theirs"] = stack.enter_context(Timed([*python, "-c", _REFERENCE], settings))
    ready = {name: side for name, side in sides.items() if not side.problem}
    return ready, [f"{name}: {side.problem}" for name, side in sides.items() if side.problem]


def _search(
    sides: dict[str, Timed], batch_sizes: Sequence[int], steps: int
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
                    problems.append(f"{key}: {answer['error']}")
                    continue
                if form == "compiled" and warm[name] is not None:
                    answer["warm"] = warm[name]
                answers[key], blocks[key] = answer, [batch / answer["seconds"]]
    return blocks, answers, problems


def _step_flops(name: str, image_size: int) -> float:
    """FLOPs of a training step an image: two a multiply-accumulate, three times the forward."""
    return 6 * _answer({"macs": [name, image_size]}, JAX_PLATFORMS="cpu")["macs"]


def matmul_flops() -> float:
    """Measure the FLOP/s of a bfloat16 matrix product of large random square matrices."""
    return _answer({"matmul": []})["flops"]


def _answer(settings: dict[str, Any], **environment: str) -> dict[str, Any]:
    """Return the one answer of a process of ours.

    Raises:
      UserError: it fails.
    """
    with Timed(_OURS, settings, environment=environment) as side:
        answer = side.ask()
    if "error" in answer:
        raise UserError(f"A part of the benchmark failed: {answer['error']}.")
    return answer


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
    with Timed(_OURS, {"population": [name, batch_size]}) as side:
        for count in members:
            answer = side.ask(members=count, steps=steps)
            if "error" in answer:
                problems.append(f"{name}, {count} together: {answer['error']}")
                break
            found.append(Together(name, count, count / answer["seconds"]))
    return found, problems


# --- The processes of our side -------------------------------------------------------------------


def _serve(settings: dict[str, list[Any]]) -> None:
    ((what, arguments),) = settings.items()
    step = _SERVED[what](*arguments)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        try:
            answer = step(json.loads(line))
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:300]}
        print(json.dumps(answer), flush=True)


def _macs(name: str, image_size: int) -> Step:
    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        del asked
        model = nnx.eval_shape(
            lambda: create_model(name, num_classes=CLASSES, image_size=image_size, rngs=nnx.Rngs(0))
        )
        return {"macs": count_macs(model, image_size)}

    return answer


def _matmul() -> Step:
    size = 512 if jax.default_backend() == "cpu" else 8192

    @jax.jit
    def products(a: jax.Array, b: jax.Array) -> jax.Array:
        for _ in range(10):
            a = (a @ b) * size**-0.5
        return a

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        del asked
        a, b = (jax.random.normal(jax.random.key(i), (size, size), jnp.bfloat16) for i in range(2))
        jax.block_until_ready(products(a, b))
        seconds = []
        for _ in range(5):
            start = time.perf_counter()
            jax.block_until_ready(products(a, b))
            seconds.append(time.perf_counter() - start)
        return {"flops": 10 * 2 * size**3 / statistics.median(seconds)}

    return answer


def _block(step: Callable[[Any], tuple[Any, Any]], state: Any, steps: int) -> tuple[float, Any]:
    """Seconds a step, and the state afterwards."""
    start = time.perf_counter()
    for _ in range(steps):
        state, metrics = step(state)
    if steps:
        jax.block_until_ready(metrics)
    return (time.perf_counter() - start) / max(1, steps), state


def _model_steps(name: str, image_size: int) -> Step:
    key = jax.random.key(0)
    ready: dict[int, tuple[Any, Any]] = {}

    def answer(asked: dict[str, Any]) -> dict[str, Any]:
        batch_size, begun = asked["batch"], time.perf_counter()
        program = compiled_program(step_spec(name, image_size, batch_size, CLASSES, "bfloat16"))
        if batch_size not in ready:
            ready.clear()
            batch = jax.device_put(noise_batch(image_size, batch_size, CLASSES))
            ready[batch_size] = program.train_step, batch
        train_step, batch = ready[batch_size]
        state = program.init(key, 0.01, 1e-4)
        _, state = _block(lambda state: train_step(state, batch, key), state, 3)
        warm = time.perf_counter() - begun
        seconds, state = _block(lambda state: train_step(state, batch, key), state, asked["steps"])
        memory = jax.devices()[0].memory_stats() or {}
        return {"seconds": seconds, "warm": warm, "peak": memory.get("peak_bytes_in_use")}

    return answer


def _population_steps(name: str, batch_size: int) -> Step:
    spec = step_spec(name, 32, batch_size, 10, "bfloat16")
    program = compiled_program(spec)
    batch = jax.device_put(noise_batch(32, batch_size, 10))

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


_SERVED: dict[str, Callable[..., Step]] = {
    "macs": _macs,
    "matmul": _matmul,
    "model": _model_steps,
    "population": _population_steps,
}

if __name__ == "__main__":
    _serve(json.loads(sys.argv[1]))
