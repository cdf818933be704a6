"""The process that trains one run after another: `python -m bocb_jax.study.worker`.

It prints a line once it is ready, then reads a `Request` per line from stdin and writes an `Answer`
per line to stdout. It ends when its stdin is closed, and so with whoever started it.
"""

import argparse
import contextlib
import dataclasses
import gc
import os
import queue
import signal
import sys
import threading
import time
from typing import Any

from bocb_jax.config import TrainConfig, from_dict, run_id
from bocb_jax.storage.files import write_json
from bocb_jax.storage.remote import Workdir
from bocb_jax.study.messages import UNWRITABLE, Answer, Request, Task

NOTICE_SECONDS = 4.0  # between SIGTERM and the save of a run; a worker that needs longer is ended
IN_USE_SECONDS = 1.0  # pause before a folder that another process holds is asked for again


def main() -> None:
    """Pin this process to its cores, then do one request after another."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cores", help="the CPU cores to use: 0,1,...")
    cores = parser.parse_args().cores
    if cores and hasattr(os, "sched_setaffinity"):
        # Before JAX is imported, which starts as many threads as there are cores.
        os.sched_setaffinity(0, {int(core) for core in cores.split(",")})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints goes to the log
    requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(requests,), daemon=True).start()
    executor = Executor()
    from bocb_jax.engine import signals

    signals.exit_unless_noticed(NOTICE_SECONDS)
    print("ready", file=answers, flush=True)
    while not signals.were_noticed():
        print(executor.answer(requests.get()).to_json(), file=answers, flush=True)
    os._exit(128 + signal.SIGTERM)  # the thread that reads cannot be stopped


def _read(requests: queue.SimpleQueue[Request]) -> None:
    for line in sys.stdin:
        requests.put(Request.from_json(line))
    os._exit(1)  # whoever started this process is gone


class Executor:
    """Does requests in this process, and counts what XLA compiles for them."""

    def __init__(self) -> None:
        import jax

        from bocb_jax.engine.compile_cache import use_compile_cache
        from bocb_jax.engine.memory import keep_freed_memory

        self._found: bool | None = None  # whether the last program was in the compile cache
        self._compiled: list[str] = []
        self._loaded: list[str] = []
        jax.monitoring.register_event_listener(self._on_cache)
        jax.monitoring.register_event_duration_secs_listener(self._on_compile)
        use_compile_cache(None)
        keep_freed_memory()

    def _on_cache(self, event: str, **_: Any) -> None:
        if event.endswith("/cache_hits"):
            self._found = True
        elif event.endswith("/cache_misses"):
            self._found = False

    def _on_compile(self, event: str, duration_secs: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            (self._loaded if self._found else self._compiled).append(about.get("fun_name", ""))
            self._found = None

    def answer(self, request: Request) -> Answer:
        """Do what is asked for, and say how it went and what was compiled for it."""
        tasks = {
            Task.TRAIN: self._train,
            Task.TRAIN_TOGETHER: self._train_together,
            Task.COMPARE: self._compare,
            Task.MEASURE: self._measure,
        }
        self._compiled, self._loaded = [], []
        answer = tasks[request.task](request)
        return dataclasses.replace(answer, compiled=self._compiled, loaded=self._loaded)

    def _train(self, request: Request) -> Answer:
        status, error = _train_one(request.configs[0])
        return Answer([status], error)

    def _train_together(self, request: Request) -> Answer:
        """Train runs together or, if that fails (for want of memory, say), one by one."""
        from bocb_jax.engine.memory import forget_peak_memory
        from bocb_jax.engine.outcome import cannot_write, failure
        from bocb_jax.errors import FolderInUse, Interrupted
        from bocb_jax.train_population import train_together

        interrupted = Answer(["interrupted"] * len(request.configs))
        forget_peak_memory()
        try:
            configs = [from_dict(TrainConfig, config) for config in request.configs]
            outcomes = train_together(configs, members=request.members)
            return Answer([outcome["status"] for outcome in outcomes])
        except Interrupted:
            return interrupted
        except FolderInUse:  # by a worker of a killed sweep, which is about to end
            time.sleep(IN_USE_SECONDS)
            return interrupted
        except Exception as caught:
            if cannot_write(caught):
                return Answer([UNWRITABLE] * len(request.configs), str(caught))
            result = failure(caught)
        # Outside the handler, so that the traceback no longer keeps the states alive.
        print(f"Training together failed, so one by one:\n{result['traceback']}", file=sys.stderr)
        gc.collect()
        statuses: list[str] = []
        for config in request.configs:
            # After a signal, the runs that follow are left for the next start.
            if statuses[-1:] == ["interrupted"]:
                statuses.append("interrupted")
                continue
            status, error = _train_one(config)
            if status == UNWRITABLE:
                return Answer([UNWRITABLE] * len(request.configs), error)
            statuses.append(status)
        return Answer(statuses, result["error"])

    def _compare(self, request: Request) -> Answer:
        from bocb_jax.study import measure

        config = from_dict(TrainConfig, request.configs[0])
        return Answer(choice=measure.compare(config, len(request.configs)))

    def _measure(self, request: Request) -> Answer:
        from bocb_jax.study import measure

        try:
            config = from_dict(TrainConfig, request.configs[0])
            return Answer(seconds_per_image=measure.seconds_per_image(config))
        except Exception as error:
            return Answer(error=f"{type(error).__name__}: {error}")


def _train_one(config_dict: dict[str, Any]) -> tuple[str, str | None]:
    """Train a run; return its status, see `Answer.statuses`, and the error that ended it."""
    from bocb_jax.engine.memory import forget_peak_memory
    from bocb_jax.engine.outcome import cannot_write, failure
    from bocb_jax.errors import FolderInUse, Interrupted
    from bocb_jax.train import train

    forget_peak_memory()
    config = from_dict(TrainConfig, config_dict)
    try:
        return train(config)["status"], None
    except Interrupted:
        return "interrupted", None
    except FolderInUse:  # by a worker of a killed sweep, which is about to end
        time.sleep(IN_USE_SECONDS)
        return "interrupted", None
    except Exception as caught:
        if cannot_write(caught):
            return UNWRITABLE, str(caught)
        result = failure(caught)
        run = config.run_id or run_id(config)
        with contextlib.suppress(Exception):
            workdir = Workdir.at(config.workdir, config.scratch)
            workdir.fetch(run)
            if not (workdir.path / run / "result.json").exists():  # it failed before it could write
                write_failure(workdir, run, config_dict, result)
        return result["status"], result["error"]


def write_failure(
    workdir: Workdir, run: str, config_dict: dict[str, Any], result: dict[str, Any]
) -> None:
    """Write the result of a run that could not write it itself.

    Args:
      workdir: the folder of runs.
      run: name of the run directory.
      config_dict: the run's config, as `config.to_dict` gives it.
      result: "status", "error" and whatever else is known.
    """
    folder = workdir.path / run
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "config.json").exists():
        config = from_dict(TrainConfig, config_dict)
        about = {"label": config.label or config.model, "study": config.study}
        if config.pretrained_with is not None:
            about["pretrained_with"] = config.pretrained_with
        write_json(folder / "config.json", {"config": config.identity(), "resolved": None, **about})
    write_json(folder / "result.json", result)
    workdir.publish(f"{run}/config.json")
    workdir.publish(f"{run}/result.json")


if __name__ == "__main__":
    main()
