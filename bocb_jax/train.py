"""One run: `python -m bocb_jax.train --model vit_s --opt lamb`.

Reads top to bottom: the command line, the set-up, the loop. The same command again goes on where
the run stopped, and leaves the same bits as if it had never stopped.

Exit codes: 0 finished, 2 a setting is wrong, 3 diverged, 130 or 143 interrupted and saved.
"""

import argparse
import contextlib
import dataclasses
import functools
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import jax
import tyro

from bocb_jax.config import TrainConfig, dotted, from_toml
from bocb_jax.console import console, duration, reporter
from bocb_jax.data.encoded import RandomCrop
from bocb_jax.data.loader import Loader
from bocb_jax.data.pipeline import steps_per_epoch
from bocb_jax.data.sources import Dataset, open_dataset
from bocb_jax.engine import folder as run_folder
from bocb_jax.engine import mirror, signals
from bocb_jax.engine.checkpoint import Checkpoints
from bocb_jax.engine.memory import keep_freed_memory, peak_memory
from bocb_jax.engine.metrics import Window, Writers, open_writers, read_jsonl, write_json
from bocb_jax.engine.outcome import failure, summary
from bocb_jax.engine.sharding import batch_sharding, check_batch
from bocb_jax.engine.state import TrainState
from bocb_jax.errors import Diverged, Interrupted, UserError
from bocb_jax.program import compiled_program, program_spec, starting_weights, use_compile_cache
from bocb_jax.remote import is_url
from bocb_jax.settings import resolve

SETTLING_BATCHES = 50  # at most an epoch; as many as the authors of schedule-free advise


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Orbax tells of a damaged file through absl at length; we say it in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep_freed_memory()
    try:
        result = train(parse(sys.argv[1:] if arguments is None else arguments))
    except (UserError, Interrupted) as stop:
        console.print(str(stop), markup=False, soft_wrap=True)
        return stop.exit_code
    return Diverged.exit_code if result["status"] == "diverged" else 0


def parse(arguments: list[str]) -> TrainConfig:
    """Command-line arguments to a config; `--config FILE.toml` is what the others start from."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    known, arguments = before.parse_known_args(arguments)
    default = from_toml(known.config) if known.config else TrainConfig()
    # Settings of one backbone or optimizer have no field: those named on the command line join
    # the defaults, where tyro finds them with their types.
    for name in ("model_args", "opt_args"):
        named = {**getattr(default, name), **dotted(arguments, name)}
        default = dataclasses.replace(default, **{name: named})
    return tyro.cli(TrainConfig, args=arguments, default=default, prog="bocb train")


# --- The run -----------------------------------------------------------------------------------


@dataclasses.dataclass
class Progress:
    """How far a run is, beside its state; saved with every checkpoint."""

    elapsed: float = 0.0  # seconds, over all starts
    logged: int = 0  # step of the last line of metrics
    evaluated: int = 0  # step of the last look at the validation split
    validation_accuracy: float | None = None
    best_validation_accuracy: float | None = None
    best_step: int | None = None
    rows: list[dict[str, float]] = dataclasses.field(default_factory=list)  # since `logged`
    data: dict[str, Any] | None = None  # position in the data


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains one run to its end, or goes on with one that was stopped.

    Returns:
      What `result.json` holds; its "status" is "finished" or "diverged".

    Raises:
      UserError: a setting is wrong; nothing was written.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    if is_url(config.workdir):
        with mirror.working_here(config) as here:
            outcome = train(here)
        console.print(f"Sent to {config.workdir}.", markup=False)
        return outcome
    started = time.monotonic()

    parallel = config.parallel
    if parallel.distributed or parallel.coordinator:
        jax.distributed.initialize(parallel.coordinator, parallel.processes, parallel.process)
    use_compile_cache(config.compile_cache)

    dataset = open_run_dataset(config)
    settings = resolve(config, dataset)
    epoch_steps = steps_per_epoch(len(dataset.splits["train"]), settings.batch_size)
    spec = program_spec(config, settings, dataset, epoch_steps)
    program = compiled_program(spec)
    check_batch(settings.batch_size, program.mesh, config.step.accumulate)

    folder = config.folder()
    start = functools.cache(lambda: _start(config, spec))
    if not (folder / "config.json").exists():
        start()  # weights that do not fit are found before anything is written
    with contextlib.ExitStack() as stack:
        if jax.process_index() == 0:
            record = {
                "config": config.identity(),
                "resolved": dataclasses.asdict(settings),
                "label": config.label or config.model,
                "study": config.study,
            }
            stack.enter_context(run_folder.claim(folder, record, resume=config.resume))
        earlier = run_folder.read_json(folder / "result.json")
        if earlier and earlier["status"] in ("finished", "diverged"):
            console.print(f"This run has ended already:\n{_closing(earlier, folder)}", markup=False)
            return earlier
        caught = stack.enter_context(signals.catching())
        run = Run(
            config, settings, dataset, epoch_steps, program, start, folder, caught, started, stack
        )
        return run.train()


def open_run_dataset(config: TrainConfig) -> Dataset:
    """The data set of a run, with the splits that its protocol has."""
    dataset = _dataset(
        config.dataset,
        split_seed=config.data.split_seed,
        data_dir=config.data.dir,
        on_corrupt=config.on_corrupt,
    )
    return dataset.tuned_on_test() if config.protocol == "paper" else dataset


# Images that were decoded stay so for the next run of this process.
_dataset = functools.lru_cache(maxsize=1)(open_dataset)


def _start(config, spec) -> dict[str, Any] | None:
    """The weights that `--init` names; says so if the classifier is not among them."""
    if config.init is None:
        return None
    weights, new = starting_weights(spec, config.init, jax.random.key(config.seed))
    if new and jax.process_index() == 0:
        console.print(
            f"{config.init} is for another number of classes than the {spec.num_classes} of "
            f"{config.dataset}: the classifier ({', '.join(new)}) begins anew.",
            markup=False,
            soft_wrap=True,
        )
    return weights


class Run:
    """The loop and what it keeps track of.

    The loop's body looks at nothing but the number of steps taken and `Progress`, both of which a
    checkpoint holds: wherever a run is stopped, the next start does what this one would have done.
    """

    def __init__(
        self,
        config,
        settings,
        dataset,
        epoch_steps,
        program,
        start,
        folder,
        signals,
        started,
        stack,
    ):
        self.config, self.settings, self.dataset, self.program = config, settings, dataset, program
        self.folder, self.signals, self.started = folder, signals, started
        self.writes = jax.process_index() == 0
        self.epoch_steps = epoch_steps
        self.total_steps = settings.epochs * epoch_steps
        self.key = jax.random.key(config.seed)

        checkpoints = Checkpoints(folder / "checkpoints", keep=config.checkpoint.keep)
        self.checkpoints = stack.enter_context(contextlib.closing(checkpoints))
        restored = checkpoints.restore(program.abstract_state)
        if restored:
            self.step, self.state = restored.step, restored.state
            self.progress = Progress(**restored.progress)
            checkpoints.discard_after(self.step)
        else:
            self.step = 0
            rates = settings.learning_rate, settings.weight_decay
            self.state = program.init(self.key, *rates, start())
            start.cache_clear()  # the state holds its own copy
            self.progress = Progress()
        self.window = Window(self.progress.rows)

        self.loader = Loader(
            dataset,
            batch_size=settings.batch_size,
            image_size=settings.image_size,
            test_size=settings.test_size,
            sharding=batch_sharding(program.mesh),
            workers=config.data.workers,
            crop=settings.host_crop and RandomCrop(settings.host_crop),
            crop_ratio=settings.crop_ratio,
            on_device=config.data.on_device,
        )
        self.batches = stack.enter_context(
            self.loader.train(seed=config.seed, repeats=settings.repeats)
        )
        if restored:
            self.batches.set_state(self.progress.data)

        writers = open_writers(config, folder, self.progress.logged) if self.writes else []
        self.writers = stack.enter_context(contextlib.closing(Writers(writers)))
        self.report = reporter(config.log.progress if self.writes else "none")
        stack.callback(self.report.stop)

        self.waiting = []  # metrics of dispatched steps, not yet fetched
        self.best_weights = None  # on the devices, until the next save
        self.saved_step, self.saved_at = self.step, time.monotonic()
        self.begun = time.monotonic() - self.progress.elapsed
        self.mark_step, self.mark_time = self.step, time.monotonic()
        self.seconds_to_first_step = None

    def train(self) -> dict[str, Any]:
        """Runs to the end and writes `result.json`."""
        self.report.say(self._opening())
        self.report.start(self.total_steps, self.step)
        try:
            outcome = self._loop()
        except Diverged as diverged:
            self.step = diverged.step
            outcome = {"status": "diverged", "diverged_at_step": diverged.step}
        except (Interrupted, UserError, KeyboardInterrupt):
            raise
        except Exception as error:
            self._write_result(failure(error))
            raise
        outcome = self._write_result(outcome)
        self.report.stop()
        self.report.say(_closing(outcome, self.folder))
        return outcome

    def _loop(self) -> dict[str, Any]:
        config, progress = self.config, self.progress
        evaluate_every = config.log.evaluate_every_epochs * self.epoch_steps
        while True:
            self._stop_if_asked()
            last = self.step == self.total_steps
            if self.step > progress.evaluated and (last or self.step % evaluate_every == 0):
                self._validate()
            if last:
                break
            if self._save_is_due():
                self._save()
            self.state, metrics = self.program.train_step(self.state, next(self.batches), self.key)
            if self.seconds_to_first_step is None:
                self._first_step(metrics)
            if self.step > progress.logged and self.step % config.log.every_steps == 0:
                self._fetch()  # the metrics of the steps before, while the devices do this one
                self._write_line({})
            self.waiting.append(metrics)
            self.step += 1
            self.report.step(self.step)
        self._save()
        test = self._evaluate("test", self._settled()) if self.config.test else {}
        self.checkpoints.wait()
        return {
            "status": "finished",
            "validation_accuracy": progress.validation_accuracy,
            "best_validation_accuracy": progress.best_validation_accuracy,
            "best_step": progress.best_step,
            **test,
        }

    def _fetch(self) -> None:
        """Takes over the metrics of the steps dispatched; stops at the first not finite."""
        waiting, self.waiting = jax.device_get(self.waiting), []
        for number, row in enumerate(waiting, start=self.step - len(waiting) + 1):
            row = {name: float(value) for name, value in row.items()}
            self.window.add({"step": number, **row})
            if not (abs(row["loss"]) < float("inf") and row["grad_norm"] < float("inf")):
                self._write_line({})
                raise Diverged(f"The loss was no longer finite at step {number}.", step=number)

    def _write_line(self, validation: dict[str, float]) -> None:
        line = self.window.flush()
        step = self.progress.logged = line["step"]
        now = time.monotonic()
        images = (step - self.mark_step) * self.settings.batch_size
        line |= {"epoch": step / self.epoch_steps, **validation, "seconds": now - self.begun}
        line["images_per_second"] = images / max(now - self.mark_time, 1e-9)
        self.mark_step, self.mark_time = step, now
        self.writers.write(line)
        self.report.metrics(line)

    def _validate(self) -> None:
        self._fetch()
        now = time.monotonic()
        state = self._settled()
        scores = self._evaluate("validation", state)
        self.mark_time += time.monotonic() - now  # images/s is that of training
        self._write_line(scores)
        progress = self.progress
        progress.evaluated = self.step
        progress.validation_accuracy = scores["validation_accuracy"]
        best = progress.best_validation_accuracy
        if best is None or progress.validation_accuracy > best:
            progress.best_validation_accuracy = progress.validation_accuracy
            progress.best_step = self.step
            self.best_weights = self.program.weights(state)

    def _settled(self) -> TrainState:
        """The state to evaluate.

        BatchNorm's running statistics are those of the trained weights. Where others are evaluated,
        or where it is asked for, these see training batches first, always the same ones.
        """
        settle, model_state = self.program.settle, self.state.model_state
        count = self.config.step.settling_batches
        if count is None:
            count = SETTLING_BATCHES if self.program.evaluates_others else 0
        if settle is None or not count:
            return self.state
        with self.loader.train(seed=self.config.seed) as batches:
            for number in range(min(self.epoch_steps, count)):
                key = jax.random.fold_in(self.key, number)
                model_state = settle(self.state, model_state, next(batches), key)
                self._stop_if_asked()
        return dataclasses.replace(self.state, model_state=model_state)

    def _evaluate(self, split: str, state: TrainState) -> dict[str, float]:
        """Mean loss and accuracy over every example of a split."""
        sums = []
        with self.loader.evaluation(split) as batches:
            for batch in batches:
                sums.append(self.program.eval_step(state, batch))
                self._stop_if_asked()
        sums = jax.device_get(sums)
        total = {name: sum(float(part[name]) for part in sums) for name in sums[0]}
        return {
            f"{split}_loss": total["loss"] / total["count"],
            f"{split}_accuracy": total["correct"] / total["count"],
        }

    def _save_is_due(self) -> bool:
        every = self.config.checkpoint.every_steps
        if self.step == self.saved_step:
            return False
        if every is not None:
            return self.step % every == 0
        if jax.process_count() > 1:  # the clocks of several processes do not agree
            return self.step % self.epoch_steps == 0
        return time.monotonic() - self.saved_at >= self.config.checkpoint.every_seconds

    def _save(self) -> None:
        self._fetch()
        progress = self.progress
        if self.best_weights is not None:
            accuracy = {"validation_accuracy": progress.best_validation_accuracy}
            self.checkpoints.save_best(progress.best_step, self.best_weights, accuracy)
            self.best_weights = None
        progress.elapsed = time.monotonic() - self.begun
        progress.rows = self.window.rows
        progress.data = self.batches.get_state()
        self.checkpoints.save(self.step, self.state, dataclasses.asdict(progress))
        self.saved_step, self.saved_at = self.step, time.monotonic()

    def _stop_if_asked(self) -> None:
        if self.signals.received(self.step):
            self._save()
            self.checkpoints.wait()
            raise Interrupted(
                f"Stopped at step {self.step} and saved; the same command goes on.",
                signal_number=self.signals.number,
            )

    def _first_step(self, metrics) -> None:
        jax.block_until_ready(metrics)
        self.seconds_to_first_step = time.monotonic() - self.started
        self.mark_step, self.mark_time = self.step + 1, time.monotonic()

    def _write_result(self, outcome: dict[str, Any]) -> dict[str, Any]:
        outcome = {
            **outcome,
            "protocol": self.config.protocol,
            "steps": self.step,
            "parameters": self.program.parameters,
            **summary(read_jsonl(self.folder / "metrics.jsonl"), self.epoch_steps),
            "peak_memory_bytes": peak_memory(),
            "wall_seconds": time.monotonic() - self.begun,
            "seconds_to_first_step": self.seconds_to_first_step,
        }
        if self.writes:
            write_json(self.folder / "result.json", outcome)
            if self.config.checkpoint.discard and outcome["status"] in ("finished", "diverged"):
                self.checkpoints.wait()
                shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return outcome

    def _opening(self) -> str:
        settings, mesh = self.settings, self.program.mesh
        resumed = f", from step {self.step}" if self.step else ""
        return (
            f"{self.config.model} ({self.program.parameters:,} parameters) with {self.config.opt} "
            f"on {self.config.dataset}, recipe {settings.recipe}; lr {settings.learning_rate:g}, "
            f"weight decay {settings.weight_decay:g} ({settings.rates_from}); "
            f"{settings.epochs} epochs of {self.epoch_steps} steps of {settings.batch_size} images "
            f"of {settings.image_size} px, {settings.precision}, "
            f"{mesh.size} {mesh.devices.flat[0].platform} device(s){resumed}\n{self.folder}"
        )


def _closing(outcome: dict[str, Any], folder: Path) -> str:
    took = duration(outcome["wall_seconds"])
    if outcome["status"] == "diverged":
        step = outcome["diverged_at_step"]
        return f"Diverged: the loss was no longer finite at step {step}, after {took}. {folder}"
    if "test_accuracy" not in outcome:
        return (
            f"Validation accuracy {outcome['validation_accuracy']:.2%}, test split not read, "
            f"{took}. {folder / 'result.json'}"
        )
    if outcome.get("protocol") == "paper":
        return (
            f"Test accuracy {outcome['test_accuracy']:.2%}, best "
            f"{outcome['best_validation_accuracy']:.2%}, looked at every epoch as in the paper; "
            f"{took}. {folder / 'result.json'}"
        )
    return (
        f"Test accuracy {outcome['test_accuracy']:.2%} "
        f"(validation {outcome['validation_accuracy']:.2%}), {took}. {folder / 'result.json'}"
    )


if __name__ == "__main__":
    sys.exit(main())
