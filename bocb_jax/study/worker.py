"""A process that trains one run after another: `python -m bocb_jax.study.worker`.

It reads one JSON object a line from stdin, and writes one to stdout when that is done: {"config":
...} to train a run, {"configs": ...} to train several together, {"measure": ...} to take a few
steps of one, {"compare": ...} to find out whether together is faster. It lives as long as its stdin
is open, so that it ends with whoever started it.
"""

import argparse
import contextlib
import dataclasses
import gc
import json
import os
import queue
import sys
import threading
import time
from typing import Any

from bocb_jax.storage.files import write_json
from bocb_jax.storage.remote import Workdir

MEASURED_PIXELS = 8 * 224**2  # of a batch at the most, where a CPU is measured
TURNS = 5  # of measuring alone and together


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
        print(json.dumps(executor.answer(kind, settings)), file=answers, flush=True)


def _read(asked: queue.SimpleQueue) -> None:
    for line in sys.stdin:
        asked.put(json.loads(line))
    os._exit(1)  # whoever started this process is gone


class Executor:
    """Trains runs in this process and counts what XLA compiles for them."""

    def __init__(self):
        import jax

        from bocb_jax.engine.compile_cache import use_compile_cache
        from bocb_jax.engine.memory import keep_freed_memory

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

    def answer(self, kind: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Does what is asked for; "compiled" and "loaded" say what XLA had to do for it.

        Args:
          kind: "config", "configs", "compare" or "measure".
          settings: a config for the first and the last; for the others "configs", a list, and
            "members", the places of their program.
        """
        do = {
            "config": self.run,
            "configs": self.run_together,
            "compare": self.compare,
            "measure": self.measure,
        }
        self._compiled, self._loaded = [], []
        done = do[kind](settings)
        return {**done, "compiled": self._compiled, "loaded": self._loaded}

    def run(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains the run of a config and says how it ended.

        Returns:
          "status": as in `result.json`, or "interrupted" where it is to be asked for again (a
          signal came, or another process still has its folder); "error" in words.
        """
        from bocb_jax.config import TrainConfig, from_dict, run_id
        from bocb_jax.engine.memory import forget_peak_memory
        from bocb_jax.engine.outcome import failure
        from bocb_jax.errors import FolderInUse, Interrupted
        from bocb_jax.train import train

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
        return {"status": status, "error": error}

    def run_together(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Trains runs together; where that fails, for want of memory say, one by one.

        Returns:
          "statuses": as in `run`, of each; "error_together": why they were trained one by one.
        """
        from bocb_jax.config import TrainConfig, from_dict
        from bocb_jax.engine.memory import forget_peak_memory
        from bocb_jax.engine.outcome import failure
        from bocb_jax.errors import FolderInUse, Interrupted
        from bocb_jax.train_population import train_together

        configs = settings["configs"]
        forget_peak_memory()
        try:
            found = train_together(
                [from_dict(TrainConfig, config) for config in configs], members=settings["members"]
            )
            return {"statuses": [outcome["status"] for outcome in found], "error_together": None}
        except Interrupted:
            return {"statuses": ["interrupted"] * len(configs), "error_together": None}
        except FolderInUse:  # by a worker of a sweep that was killed, which is about to end
            time.sleep(1.0)
            return {"statuses": ["interrupted"] * len(configs), "error_together": None}
        except Exception as caught:
            record = failure(caught)
        # Outside of the handler, which would keep alive what the traceback refers to.
        print(f"Training together failed, so one by one:\n{record['traceback']}", file=sys.stderr)
        gc.collect()
        statuses = []
        for config in configs:
            # Asked to stop, a run says so; the others are not begun with.
            stopped = statuses[-1:] == ["interrupted"]
            statuses.append("interrupted" if stopped else self.run(config)["status"])
        return {"statuses": statuses, "error_together": record["error"]}

    def measure(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Seconds a training image of a run, from a few steps; "error" where these failed.

        Noise stands in for images that are not there. A CPU takes as long an image whatever the
        batch: there a part of a large one will do.
        """
        import jax

        from bocb_jax.config import TrainConfig, from_dict
        from bocb_jax.data.synthetic import open_or_synthetic
        from bocb_jax.train import Run

        try:
            config = from_dict(TrainConfig, settings)
            dataset, _ = open_or_synthetic(
                config.dataset,
                split_seed=config.data.split_seed,
                data_dir=config.data.dir,
                on_corrupt=config.on_corrupt,
            )
            run = Run(config, dataset)
            if jax.default_backend() == "cpu":
                part = config.step.accumulate * config.step.batch_norm_groups
                few = max(1, MEASURED_PIXELS // run.resolved.image_size**2 // part) * part
                small = min(run.resolved.batch_size, few)
                run = Run(dataclasses.replace(config, batch_size=small), dataset)
            return {"seconds_per_image": _Steps(run).seconds_per_image()}
        except Exception as error:
            return {"seconds_per_image": None, "error": f"{type(error).__name__}: {error}"}

    def compare(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Whether runs are trained faster together than one by one.

        Returns:
          "choice": "members", how many together, 1 for one by one, and the seconds a training image
          of either. Where memory does not suffice, half as many are tried.
        """
        from bocb_jax.config import TrainConfig, from_dict
        from bocb_jax.train import Run

        count, error = len(settings["configs"]), None
        while count > 1:
            try:
                run = Run(from_dict(TrainConfig, settings["configs"][0]))
                alone, together = _Steps(run), _Steps(run, count)
                # By turns, and the fastest of each: what else this machine does is left out.
                turns = [
                    (alone.seconds_per_image(), together.seconds_per_image()) for _ in range(TURNS)
                ]
            except Exception as caught:
                error = f"{type(caught).__name__}: {caught}"
                if "RESOURCE_EXHAUSTED" not in error:
                    break
                count //= 2
                continue
            one, several = (min(seconds) for seconds in zip(*turns, strict=True))
            return {
                "choice": {
                    "members": count if several < one else 1,
                    "tried": count,
                    "seconds_per_image_alone": one,
                    "seconds_per_image_together": several,
                }
            }
        return {"choice": {"members": 1, "error": error}}


class _Steps:
    """The training steps of a run, or of several together, apart from all that a run does besides.

    Args:
      run: a `bocb_jax.train.Run`, which need not be open.
      count: how many like it train together.
    """

    def __init__(self, run, count: int = 1):
        from bocb_jax.build import compiled_population
        from bocb_jax.engine.trainer import PopulationTrainer, SingleTrainer, Trainer

        states, keys = [run.init_state() for _ in range(count)], [run.key] * count
        self._trainer: Trainer
        if count == 1:
            self._trainer = SingleTrainer(run.program, *states, *keys)
        else:
            population = compiled_population(run.spec, count)
            self._trainer = PopulationTrainer(population, run.program, states, keys)
        loader = run.loader(self._trainer.batch_sharding)
        self._batches, self._count = loader.train(seed=0), count
        self._images = count * run.resolved.batch_size
        self._take(1)  # which compiles

    def seconds_per_image(self, steps: int = 3) -> float:
        """Takes some steps."""
        begun = time.perf_counter()
        self._take(steps)
        return (time.perf_counter() - begun) / steps / self._images

    def _take(self, steps: int) -> None:
        import jax

        for _ in range(steps):
            metrics = self._trainer.train_step([next(self._batches)] * self._count)
        jax.block_until_ready(metrics)


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
