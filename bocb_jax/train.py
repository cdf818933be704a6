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
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro

from bocb_jax.build import compiled_program, program_spec, starting_weights, use_compile_cache
from bocb_jax.config import TrainConfig, dotted, from_toml, present_flags
from bocb_jax.console import console, duration, reporter
from bocb_jax.data.dataset import Dataset
from bocb_jax.data.decode import RandomCrop
from bocb_jax.data.loader import Loader
from bocb_jax.data.pipeline import steps_per_epoch
from bocb_jax.data.registry import open_dataset
from bocb_jax.engine import run_dir as run_folder
from bocb_jax.engine import signals
from bocb_jax.engine.memory import keep_freed_memory
from bocb_jax.engine.outcome import failure
from bocb_jax.engine.record import Record
from bocb_jax.engine.sharding import check_batch
from bocb_jax.engine.state import TrainState
from bocb_jax.errors import Diverged, Interrupted, UserError
from bocb_jax.resolve import resolve
from bocb_jax.storage.files import read_json
from bocb_jax.storage.remote import is_url

PRECISE_BN_BATCHES = 50  # at most an epoch; as many as the authors of schedule-free advise


def main(arguments: list[str]) -> int:
    """Train the run that the command line asks for, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    # Orbax tells of a damaged file through absl at length; we say it in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    keep_freed_memory()
    result = train(parse(arguments))
    return Diverged.exit_code if result["status"] == "diverged" else 0


def parse(arguments: list[str]) -> TrainConfig:
    """Command-line arguments to a config; `--config FILE.toml` is what the others start from."""
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    known, arguments = before.parse_known_args(present_flags(arguments))
    default = from_toml(known.config) if known.config else TrainConfig()
    # Settings of one backbone or optimizer have no field: those named on the command line join
    # the defaults, where tyro finds them with their types.
    for name in ("model_args", "opt_args"):
        named = {**getattr(default, name), **dotted(arguments, name)}
        default = dataclasses.replace(default, **{name: named})
    return tyro.cli(TrainConfig, args=arguments, default=default, prog="bocb train")


# --- The run -----------------------------------------------------------------------------------


def train(config: TrainConfig) -> dict[str, Any]:
    """Trains one run to its end, or goes on with one that was stopped.

    Returns:
      What `result.json` holds; its "status" is "finished" or "diverged".

    Raises:
      UserError: a setting is wrong; nothing was written.
      Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    if is_url(config.workdir):
        with run_folder.working_here(config) as here:
            outcome = train(here)
        console.print(f"Sent to {config.workdir}.", markup=False)
        return outcome
    started = time.monotonic()
    parallel = config.parallel
    if parallel.distributed or parallel.coordinator:
        jax.distributed.initialize(parallel.coordinator, parallel.processes, parallel.process)
    use_compile_cache(config.compile_cache)
    run = Run(config)
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(signals.catching())
        earlier = run.open(stack, started)
        if earlier:
            console.print(
                f"This run has ended already:\n{closing(earlier, run.folder)}", markup=False
            )
            return earlier
        return train_alone(run, caught, stack)


def train_alone(run: "Run", caught: signals.Signals, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Trains a run that is open to its end; an error that ends it goes into its result too."""
    report = run.record.report
    report.say(run.opening())
    loop = Loop([run], run.program, caught, stack)
    try:
        loop.train()
    except (Interrupted, UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        run.record.write_result(failure(error))
        raise
    report.say(closing(run.outcome, run.folder))
    return run.outcome


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


class Run:
    """One run: what follows from its config and, once it is open, its record and its state.

    Args:
      config: its settings.
      dataset: None for the one that the config names.

    Raises:
      UserError: a setting is wrong.
    """

    def __init__(self, config: TrainConfig, dataset: Dataset | None = None):
        self.config, self.folder = config, config.folder()
        self.dataset = dataset or open_run_dataset(config)
        self.settings = settings = resolve(config, self.dataset)
        self.epoch_steps = steps_per_epoch(len(self.dataset.splits["train"]), settings.batch_size)
        self.total_steps = settings.epochs * self.epoch_steps
        self.spec = program_spec(config, settings, self.dataset, self.epoch_steps)
        self.program = compiled_program(self.spec)
        check_batch(settings.batch_size, self.program.mesh, config.step.accumulate)
        self.key = jax.random.key(config.seed)
        self.record: Record | None = None
        self.state: TrainState | None = None
        self.outcome: dict[str, Any] | None = None  # once it has ended

    def open(
        self, stack: contextlib.ExitStack, started: float, progress: str | None = None
    ) -> dict[str, Any] | None:
        """Claims the folder, and goes to where an earlier start left the run.

        Args:
          stack: lets go of everything.
          started: when this start began.
          progress: how it is shown; None for what the config says.

        Returns:
          The result of a run that has ended already; None for one that is now open.
        """
        config, settings = self.config, self.settings
        start = None
        if not (self.folder / "config.json").exists():
            start = self._start()  # weights that do not fit are found before anything is written
        if jax.process_index() == 0:
            record = {
                "config": config.identity(),
                "resolved": dataclasses.asdict(settings),
                "label": config.label or config.model,
                "study": config.study,
            }
            stack.enter_context(run_folder.claim(self.folder, record, resume=config.resume))
        earlier = read_json(self.folder / "result.json")
        if earlier and earlier["status"] in ("finished", "diverged"):
            return earlier
        shown = (progress or config.log.progress) if jax.process_index() == 0 else "none"
        record = Record(
            config,
            self.folder,
            epoch_steps=self.epoch_steps,
            batch_size=settings.batch_size,
            parameters=self.program.parameters,
            report=reporter(shown),
            started=started,
        )
        self.record = stack.enter_context(contextlib.closing(record))
        self.state = record.restore(self.program.abstract_state)
        if self.state is None:
            rates = settings.learning_rate, settings.weight_decay
            self.state = self.program.init(self.key, *rates, start or self._start())
        return None

    def loader(self, sharding: jax.sharding.NamedSharding) -> Loader:
        """What reads its data set, into batches that are split so over the devices."""
        settings, data = self.settings, self.config.data
        return Loader(
            self.dataset,
            batch_size=settings.batch_size,
            image_size=settings.image_size,
            test_size=settings.test_size,
            sharding=sharding,
            workers=data.workers,
            crop=settings.host_crop and RandomCrop(settings.host_crop),
            crop_ratio=settings.crop_ratio,
            on_device=data.on_device,
        )

    def _start(self) -> dict[str, Any] | None:
        """The weights that `--init` names; says so if the classifier is not among them."""
        config, spec = self.config, self.spec
        if config.init is None:
            return None
        weights, new = starting_weights(spec, config.init, self.key)
        if new and jax.process_index() == 0:
            console.print(
                f"{config.init} is for another number of classes than the {spec.num_classes} of "
                f"{config.dataset}: the classifier ({', '.join(new)}) begins anew.",
                markup=False,
                soft_wrap=True,
            )
        return weights

    def opening(self) -> str:
        """What is about to be trained."""
        settings, mesh = self.settings, self.program.mesh
        resumed = f", from step {self.record.step}" if self.record.step else ""
        return (
            f"{self.config.model} ({self.program.parameters:,} parameters) with {self.config.opt} "
            f"on {self.config.dataset}, recipe {settings.recipe}; lr {settings.learning_rate:g}, "
            f"weight decay {settings.weight_decay:g} ({settings.rates_from}); "
            f"{settings.epochs} epochs of {self.epoch_steps} steps of {settings.batch_size} images "
            f"of {settings.image_size} px, {settings.precision}, "
            f"{mesh.size} {mesh.devices.flat[0].platform} device(s){resumed}\n{self.folder}"
        )


class Loop:
    """Trains runs in step with one another: one alone, or the members of a population.

    The loop's body looks at nothing but the number of steps taken and what the records hold, both
    of which a checkpoint holds too: wherever a run is stopped, the next start does what this one
    would have done.

    Args:
      runs: open, at one step, and alike but for rates and seed; their states are taken over.
      program: a `Program` for one run, a `Population` for several.
      signals: whether to stop.
      stack: lets go of everything.
    """

    def __init__(self, runs: list[Run], program, signals, stack: contextlib.ExitStack):
        first = runs[0]
        self.config, self.program, self.signals = first.config, program, signals
        self.epoch_steps, self.total_steps = first.epoch_steps, first.total_steps
        self.live = dict(enumerate(runs))  # by place in the population; those not ended
        self.step = first.record.step
        self.state = program.stack_states([run.state for run in runs])
        for run in runs:
            run.state = None
        self.keys = [run.key for run in runs]
        self.key = program.stack(self.keys)
        self.seeds = [run.config.seed for run in runs]
        self.loader = first.loader(program.batch_sharding)
        # The order of the data follows from the seed: runs of one seed share their batches.
        self.batches = self._open_batches(stack, repeats=first.settings.repeats)
        for run in runs:
            if run.record.progress.data:
                self.batches[run.config.seed].set_state(run.record.progress.data)
        self.waiting = []  # metrics of dispatched steps, not yet fetched

    def train(self) -> None:
        """Runs to the end; every run's `outcome` is then what its `result.json` holds."""
        for run in self.live.values():
            run.record.begin(self.total_steps, population=len(self.live))
        with contextlib.suppress(Diverged):  # the last of them, which has its result
            self._loop()

    def _loop(self) -> None:
        dispatched = False
        while True:
            self._stop_if_asked()
            last = self.step == self.total_steps
            if any(record.evaluation_is_due(last=last) for record in self._records()):
                self._validate()
            if last:
                break
            if any(record.save_is_due() for record in self._records()):
                self._save()
            batch = self._next(self.batches)
            self.state, metrics = self.program.train_step(self.state, batch, self.key)
            if not dispatched:
                for record in self._records():
                    record.first_step_begun()
                jax.block_until_ready(metrics)
                for record in self._records():
                    record.first_step_taken()
                dispatched = True
            if any(record.line_is_due() for record in self._records()):
                self._fetch()  # the metrics of the steps before, while the devices do this one
                for record in self._records():
                    record.write_line({})
            self.waiting.append(metrics)
            self.step += 1
            for record in self._records():
                record.step = self.step
                record.report.step(self.step)
        self._save()
        test = self._evaluate("test", self._settled()) if self.config.test else None
        for place, run in self.live.items():
            run.outcome = run.record.finished(test[place] if test else {})

    def _records(self) -> list[Record]:
        return [run.record for run in self.live.values()]

    def _open_batches(self, stack: contextlib.ExitStack, **options) -> dict[int, Any]:
        return {
            seed: stack.enter_context(self.loader.train(seed=seed, **options))
            for seed in dict.fromkeys(self.seeds)
        }

    def _next(self, batches: dict[int, Any]) -> dict[str, jax.Array]:
        found = {seed: next(stream) for seed, stream in batches.items()}
        return self.program.stack([found[seed] for seed in self.seeds])

    def _fetch(self) -> None:
        """Takes over the metrics of the steps dispatched; the first not finite ends a run."""
        waiting, self.waiting = jax.device_get(self.waiting), []
        for place, run in list(self.live.items()):
            rows = [
                {name: float(np.reshape(value, -1)[place]) for name, value in row.items()}
                for row in waiting
            ]
            try:
                run.record.add(rows)
            except Diverged as diverged:
                outcome = {"status": "diverged", "diverged_at_step": diverged.step}
                run.outcome = run.record.write_result(outcome)
                del self.live[place]
                if not self.live:
                    raise

    def _validate(self) -> None:
        self._fetch()
        now = time.monotonic()
        state = self._settled()
        scores = self._evaluate("validation", state)
        seconds = time.monotonic() - now
        for place, run in self.live.items():
            if run.record.validated(scores[place], seconds):
                run.record.keep_best(run.program.weights(self.program.member(state, place)))

    def _settled(self) -> TrainState:
        """The state to evaluate.

        BatchNorm's running statistics are those of the trained weights. Where others are evaluated,
        or where it is asked for, these see training batches first, always the same ones.
        """
        settle, model_state = self.program.settle, self.state.model_state
        count = self.config.step.precise_bn_batches
        if count is None:
            count = PRECISE_BN_BATCHES if self.program.evaluates_others else 0
        if settle is None or not count:
            return self.state
        with contextlib.ExitStack() as stack:
            batches = self._open_batches(stack)
            for number in range(min(self.epoch_steps, count)):
                key = self.program.stack([jax.random.fold_in(key, number) for key in self.keys])
                model_state = settle(self.state, model_state, self._next(batches), key)
                self._stop_if_asked()
        return dataclasses.replace(self.state, model_state=model_state)

    def _evaluate(self, split: str, state: TrainState) -> list[dict[str, float]]:
        """Mean loss and accuracy over every example of a split, for each run."""
        sums = []
        with self.loader.evaluation(split) as batches:
            for batch in batches:
                sums.append(self.program.eval_step(state, batch))
                self._stop_if_asked()
        sums = [
            {name: np.reshape(value, -1).tolist() for name, value in part.items()}
            for part in jax.device_get(sums)
        ]
        scores = []
        for place in range(len(self.seeds)):
            total = {name: sum(part[name][place] for part in sums) for name in sums[0]}
            scores.append(
                {
                    f"{split}_loss": total["loss"] / total["count"],
                    f"{split}_accuracy": total["correct"] / total["count"],
                }
            )
        return scores

    def _save(self) -> None:
        """Saves all of them, so that they are found at one step again."""
        self._fetch()
        for place, run in self.live.items():
            state = self.program.member(self.state, place)
            run.record.save(state, self.batches[run.config.seed].get_state())

    def _stop_if_asked(self) -> None:
        if self.signals.received(self.step):
            self._save()
            for record in self._records():
                record.wait()
            raise Interrupted(
                f"Stopped at step {self.step} and saved; the same command goes on.",
                signal_number=self.signals.number,
            )


def closing(outcome: dict[str, Any], folder: Path) -> str:
    """How a run has ended, in words."""
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
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
