"""A process that trains one run after another: `python -m bocb_jax.study.worker`.

It reads one JSON object a line from stdin, {"config": ...} to train a run or {"measure": ...} to
take a few steps of it, and writes one to stdout when that is done. It lives as long as its stdin is
open, so that it ends with whoever started it.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import queue
import sys
import threading
import time
from typing import Any

from bocb_jax.remote import Workdir

MEASURED_PIXELS = 8 * 224**2  # of a batch at the most, where a CPU is measured


def main() -> None:
    """The process: pins itself to cores, then trains what it is asked to."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cores", help="0,1,...; all others are left to others")
    cores = parser.parse_args().cores
    if cores and hasattr(os, "sched_setaffinity"):
        # Before JAX is loaded, which makes as many threads as there are cores.
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    asked: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=_read, args=(asked,), daemon=True).start()
    executor = Executor()
    print(json.dumps({"ready": os.getpid()}), file=answers, flush=True)
    while True:
        ((kind, settings),) = asked.get().items()
        answer = executor.run(settings) if kind == "config" else executor.measure(settings)
        print(json.dumps(answer), file=answers, flush=True)


def _read(asked: queue.SimpleQueue) -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(1)  # whoever started this process is gone


class Executor:
    """Trains runs in this process and counts what XLA compiles for them."""

    def __init__(self):
        import jax

        from bocb_jax.engine.memory import keep_freed_memory
        from bocb_jax.program import use_compile_cache
        from bocb_jax.train import main as _  # noqa: F401 - so that "ready" means ready

        self._jax = jax
        self._found: bool | None = None  # whether the program asked for last was in the cache
        self._compiled: list[str] = []
        self._loaded: list[str] = []
        jax.monitoring.register_event_listener(self._on_cache)
        jax.monitoring.register_event_duration_secs_listener(self._on_compile)
        use_compile_cache(None)
        keep_freed_memory()

    def _on_cache(self, event: str, **_) -> None:
        if event.endswith("/cache_hits"):
            self._found = True
        elif event.endswith("/cache_misses"):
            self._found = False

    def _on_compile(self, event: str, seconds: float, fun_name: str = "", **_) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            (self._loaded if self._found else self._compiled).append(fun_name)
            self._found = None

    def run(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains the run of a config and says how it ended.

        Returns:
          "status": as in `result.json`, or "interrupted" where it is to be asked for again (a
          signal came, or another process still has its folder); "compiled" and
          "loaded": names of programs that XLA compiled, and that the cache had.
        """
        from bocb_jax.config import TrainConfig, from_dict, run_id
        from bocb_jax.engine.memory import forget_peak_memory
        from bocb_jax.engine.outcome import failure
        from bocb_jax.errors import FolderInUse, Interrupted
        from bocb_jax.train import train

        self._compiled, self._loaded = [], []
        forget_peak_memory()
        status, error = "crashed", None
        try:
            config = from_dict(TrainConfig, settings)
            status = train(config)["status"]
        except Interrupted:
            status = "interrupted"
        except FolderInUse:  # by a worker of a sweep that was killed, which is about to end
            time.sleep(1.0)
            status = "interrupted"
        except Exception as caught:
            record = failure(caught)
            status, error = record["status"], record["error"]
            run = config.run_id or run_id(config)
            with contextlib.suppress(Exception):
                workdir = Workdir.at(config.workdir, config.scratch)
                workdir.fetch(run)
                if not (workdir.path / run / "result.json").exists():  # it failed before
                    record_failure(workdir, run, settings, record)
        return {
            "status": status,
            "error": error,
            "compiled": self._compiled,
            "loaded": self._loaded,
        }

    def measure(self, settings: dict[str, Any], steps: int = 3) -> dict[str, Any]:
        """Seconds a training image of a run, from a few steps; "error" where these failed.

        A CPU takes as long an image whatever the batch: there a part of a large one will do.
        """
        from bocb_jax.config import TrainConfig, from_dict
        from bocb_jax.data.encoded import RandomCrop
        from bocb_jax.data.loader import Loader
        from bocb_jax.data.pipeline import steps_per_epoch
        from bocb_jax.data.stand_in import open_or_stand_in
        from bocb_jax.engine.sharding import batch_sharding
        from bocb_jax.program import compiled_program, program_spec
        from bocb_jax.settings import resolve

        jax = self._jax
        try:
            config = from_dict(TrainConfig, settings)
            dataset, _ = open_or_stand_in(
                config.dataset,
                split_seed=config.data.split_seed,
                data_dir=config.data.dir,
                on_corrupt=config.on_corrupt,
            )
            found = resolve(config, dataset)
            if jax.default_backend() == "cpu":
                part = config.step.accumulate * config.step.batch_norm_groups
                few = max(1, MEASURED_PIXELS // found.image_size**2 // part) * part
                config = dataclasses.replace(config, batch_size=min(found.batch_size, few))
                found = resolve(config, dataset)
            epoch = steps_per_epoch(len(dataset.splits["train"]), found.batch_size)
            program = compiled_program(program_spec(config, found, dataset, epoch))
            loader = Loader(
                dataset,
                batch_size=found.batch_size,
                image_size=found.image_size,
                sharding=batch_sharding(program.mesh),
                workers=config.data.workers,
                crop=found.host_crop and RandomCrop(found.host_crop),
                on_device=config.data.on_device,
            )
            key = jax.random.key(0)
            state = program.init(key, found.learning_rate, found.weight_decay, None)
            with loader.train(seed=0) as batches:
                state, metrics = program.train_step(state, next(batches), key)
                jax.block_until_ready(metrics)
                begun = time.perf_counter()
                for _ in range(steps):
                    state, metrics = program.train_step(state, next(batches), key)
                jax.block_until_ready(metrics)
            seconds = time.perf_counter() - begun
            return {"seconds_per_image": seconds / steps / found.batch_size}
        except Exception as error:
            return {"seconds_per_image": None, "error": f"{type(error).__name__}: {error}"}


def record_failure(
    workdir: Workdir, run: str, settings: dict[str, Any], record: dict[str, Any]
) -> None:
    """Writes the result of a run that could not write it itself.

    Args:
      workdir: where the folder of the run lies.
      run: its name.
      settings: its config.
      record: "status", "error" and the like.
    """
    from bocb_jax.config import TrainConfig, from_dict
    from bocb_jax.engine.metrics import write_json

    folder = workdir.path / run
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        config = from_dict(TrainConfig, settings)
        about = {"label": config.label or config.model, "study": config.study}
        write_json(folder / "config.json", {"config": config.identity(), "resolved": None, **about})
    write_json(folder / "result.json", record)
    workdir.publish(f"{run}/config.json")
    workdir.publish(f"{run}/result.json")


if __name__ == "__main__":
    main()
