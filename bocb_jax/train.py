"""Train one run: `python -m bocb_jax.train --model vit_s --opt lamb`.

Reads top to bottom: the command line, the set-up of a run, the loop. The same command resumes a
run that was stopped, and leaves the same bits as an uninterrupted run.

Exit codes: 0 finished, 2 a setting is wrong, 3 diverged, 75 another process of the run is gone, 130
or 143 interrupted and saved.
"""

import contextlib
import dataclasses
import logging
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from bocb_jax import command_line, pictures
from bocb_jax.build import compiled_program, program_spec
from bocb_jax.command_line import Parser
from bocb_jax.config import TrainConfig, dotted, from_dict, from_toml, present_flags
from bocb_jax.console import console, duration, reporter
from bocb_jax.engine import compile_cache, run_dir, signals
from bocb_jax.engine.memory import keep_freed_memory
from bocb_jax.engine.outcome import cannot_write, failure, in_a_sentence
from bocb_jax.engine.processes import follow_failed_partner, on_first, together
from bocb_jax.engine.record import Record, Records
from bocb_jax.engine.sharding import check_batch, platform_of
from bocb_jax.engine.state import Batch, Metrics, Params, TrainState
from bocb_jax.engine.trainer import SingleTrainer, Trainer
from bocb_jax.errors import Diverged, Interrupted, UserError
from bocb_jax.run_files import optimizer_of, read_result, score_name
from bocb_jax.starting_weights import starting_weights
from bocb_jax.storage.remote import is_url
from bocb_jax.tasks.described import describe
from bocb_jax.tasks.kinds import KINDS, AnyDataset, Parts

# Batches of precise BatchNorm where other weights are evaluated than are trained, at most an epoch
# (as the authors of Schedule-Free recommend).
PRECISE_BN_BATCHES = 50


def main(arguments: list[str]) -> int:
    """Train the run that the command line asks for, and return the exit code."""
    return start(parse(arguments))


def start(config: TrainConfig) -> int:
    """Train a run for the command line, and return the exit code."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    keep_freed_memory()
    config, said = run_dir.with_other_epochs(run_dir.with_other_devices(config))
    if said:
        console.print(said, markup=False, soft_wrap=True)
    result = train(config)
    return Diverged.exit_code if result["status"] == "diverged" else 0


def parse(
    arguments: list[str], prog: str = "bocb train", defaults: Mapping[str, Any] | None = None
) -> TrainConfig:
    """Return the config of command-line arguments.

    Args:
      arguments: of the command line; what they leave out is taken from `--config FILE.toml`.
      prog: name of the command.
      defaults: settings that neither gives, where they differ from those of `TrainConfig`.
    """
    before = Parser(prog=prog, add_help=False, allow_abbrev=False)
    before.add_argument("--config")
    known, arguments = before.parse_known_args(present_flags(arguments))
    defaults = defaults or {}
    if known.config is None:
        default = from_dict(TrainConfig, dict(defaults))
    else:
        default = from_toml(known.config, defaults)
    # A config declares no arguments of a backbone or an optimizer, and tyro knows only what it
    # declares. They go into the defaults, which `--help` shows.
    model_args, arguments = dotted(arguments, "model_args")
    opt_args, arguments = dotted(arguments, "opt_args")
    default = dataclasses.replace(
        default, model_args=default.model_args | model_args, opt_args=default.opt_args | opt_args
    )
    return command_line.parse(TrainConfig, arguments, prog=prog, default=default)


# --- The run -----------------------------------------------------------------------------------


def train(config: TrainConfig) -> dict[str, Any]:
    """Train a run to its end, resuming it if it was stopped before.

    Returns:
      The content of `result.json`; "status" is "finished" or "diverged".

    Raises:
      UserError: a setting is wrong; nothing was written.
      Interrupted: SIGTERM or SIGINT came, or `max_minutes` are over; the state is saved.
    """
    with in_a_sentence(config.workdir):
        if not is_url(config.workdir):
            return _train(config)
        with run_dir.working_here(config) as here:
            outcome = _train(here)
        console.print(f"Sent to {config.workdir}.", markup=False)
        return outcome


def _train(config: TrainConfig) -> dict[str, Any]:
    """Train a run in a folder on this machine."""
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        telling = stack.enter_context(together(config))
        stack.enter_context(in_a_sentence(config.workdir))  # which the other processes are told
        compile_cache.use_compile_cache(config.compile_cache)
        run = Run(config)
        caught = stack.enter_context(signals.catching(started, config.max_minutes))
        earlier = run.open(stack, started)
        if earlier:
            console.print(
                f"This run has already ended:\n{closing_text(earlier, run.folder)}", markup=False
            )
            return earlier
        # Checkpoints wait for the other processes when they are closed, which is before this.
        stack.enter_context(telling)
        stack.enter_context(in_a_sentence(config.workdir))
        return train_single(run, caught, stack)


def train_single(
    run: "Run", caught: signals.Signals, stack: contextlib.ExitStack
) -> dict[str, Any]:
    """Train an open run to its end and return its result.

    An unexpected error is recorded in `result.json` and raised; a UserError or an interruption is
    only raised, since the same command resumes the run.
    """
    report = run.record.report
    report.say(run.opening_text())
    trainer = SingleTrainer(run.program, run.hand_over_state(), run.key)
    try:
        Loop([run], trainer, caught, stack).train()
    except (Interrupted, UserError, KeyboardInterrupt):
        raise
    except Exception as error:
        follow_failed_partner()
        if not cannot_write(error):
            with contextlib.suppress(UserError):  # a disk that fills now is no second error
                run.record.write_result(failure(error))
        raise
    report.say(closing_text(run.result, run.folder))
    return run.result


class Run:
    """One run: what follows from its config and, once it is open, its record and its state.

    Args:
      config: of the run.
      dataset: None for the one that the config names.

    Raises:
      UserError: a setting is wrong.
    """

    def __init__(self, config: TrainConfig, dataset: AnyDataset | None = None):
        self.config, self.folder = config, config.folder()
        self.kind = KINDS[config.task]
        self.dataset = dataset or self.kind.open(config)
        self.resolved = resolved = dataclasses.replace(
            self.kind.resolve(config, self.dataset), **run_dir.earlier_defaults(self.folder)
        )
        self.data = self.kind.data(config, resolved, self.dataset)
        self.epoch_steps = self.data.epoch_steps
        self.total_steps = resolved.epochs * self.epoch_steps
        self.spec = program_spec(config, resolved, self.dataset, self.epoch_steps)
        self.program = compiled_program(self.spec)
        check_batch(resolved.batch_size, self.program.mesh, config.step.accumulate)
        self.key = jax.random.key(config.seed)
        self.record: Record  # from `open` on
        self.outcome: dict[str, Any] | None = None  # content of `result.json`, once it has ended
        self._state: TrainState | None = None  # from `open` until it is handed over

    def open(
        self, stack: contextlib.ExitStack, started: float, progress: str | None = None
    ) -> dict[str, Any] | None:
        """Claim the run directory, and restore the latest checkpoint or draw the weights.

        Args:
          stack: closes everything.
          started: `time.monotonic()` at the start of this command.
          progress: how to show the progress; None for what the config says.

        Returns:
          The result if the run has ended already, else None.
        """
        config, resolved = self.config, self.resolved
        weights = None
        if not (self.folder / "config.json").exists():
            # Weights that do not fit raise before anything is written.
            weights = self._starting_weights()
        manifest = {
            "config": config.identity(),
            "resolved": dataclasses.asdict(resolved),
            "label": config.label or config.model,
            "study": config.study,
        }
        if config.init is not None:
            manifest["pretrained_with"] = config.pretrained_with or optimizer_of(config.init)
        data = describe(self.dataset)
        claim = run_dir.claim(self.folder, manifest, resume=config.resume, data=data)
        on_first(lambda: stack.enter_context(claim))
        earlier = on_first(lambda: read_result(self.folder))
        if earlier and earlier["status"] in ("finished", "diverged"):
            return earlier
        shown = (progress or config.log.progress) if jax.process_index() == 0 else "none"
        record = Record(
            config,
            self.folder,
            score=self.kind.score,
            means=("loss", *self.program.steps.passes.task.metrics),
            epoch_steps=self.epoch_steps,
            batch_size=resolved.batch_size,
            num_params=self.program.num_params,
            report=reporter(shown),
            started=started,
        )
        self.record = stack.enter_context(contextlib.closing(record))
        self._state = record.restore(self.program.abstract_state)
        if self._state is None:
            self._state = self.init_state(weights or self._starting_weights())
        mesh = self.program.mesh
        said = on_first(
            lambda: run_dir.note_start(self.folder, record.step, mesh.size, mesh.shape["fsdp"])
        )
        if said:
            record.report.say(said)
        return None

    @property
    def result(self) -> dict[str, Any]:
        """The content of `result.json` of a run that has ended."""
        assert self.outcome is not None, "the run has not ended"
        return self.outcome

    def init_state(self, weights: Params | None = None) -> TrainState:
        """Return the state before the first step, from these weights or random ones."""
        rates = self.resolved.learning_rate, self.resolved.weight_decay
        return self.program.init(self.key, *rates, weights)

    def hand_over_state(self) -> TrainState:
        """Return the state, and forget it: the first training step donates its buffers."""
        state, self._state = self._state, None
        assert state is not None, "the run is not open"
        return state

    def keep_picture(self, step: int, parts: Parts) -> None:
        """Write a picture of some validation examples, of what an evaluation returned."""
        if jax.process_index() == 0 and (found := self.data.picture("validation", parts)):
            pictures.keep(self.folder / "pictures", step, found)

    def _starting_weights(self) -> Params | None:
        """Return the weights that `--init` names, or None; say what was chosen."""
        config, spec = self.config, self.spec
        if config.init is None:
            return None

        def say(text: str) -> None:
            if jax.process_index() == 0:
                console.print(text, markup=False, soft_wrap=True)

        weights, new = starting_weights(spec, config.init, self.key, ema=config.init_ema, say=say)
        if new and spec.net is None:
            say(
                f"{config.init} has another number of classes than the {spec.num_classes} of "
                f"{config.dataset}: the classifier ({', '.join(new)}) starts from random weights."
            )
        return weights

    def opening_text(self) -> str:
        """Describe what is about to be trained."""
        resolved, mesh = self.resolved, self.program.mesh
        resumed = f", from step {self.record.step}" if self.record.step else ""
        data = f"{self.dataset.describe()}\n" if self.dataset.notes else ""
        data += self.data.said
        return (
            f"{self.config.model} ({self.program.num_params:,} parameters) with {self.config.opt} "
            f"on {self.config.dataset}, recipe {resolved.recipe}; lr {resolved.learning_rate:g}, "
            f"weight decay {resolved.weight_decay:g} ({resolved.hparams_source}); "
            f"{resolved.epochs} epochs of {self.epoch_steps} steps of {resolved.batch_size} images "
            f"of {resolved.image_size} px, {resolved.precision}, "
            f"{mesh.size} {platform_of(mesh)} device(s){resumed}\n{data}{self.folder}"
        )


# --- The loop ----------------------------------------------------------------------------------


class Loop:
    """Trains runs in step with one another: a single one, or the members of a population.

    What is computed depends only on the number of steps taken and on the records. A checkpoint
    holds both: wherever a run is stopped, the next start does what this one would have. The clock
    decides only when to save.

    Args:
      runs: open, at the same step, and equal but for learning rate, weight decay and seed.
      trainer: holds their states.
      caught: whether to stop.
      stack: closes the data pipelines.
    """

    def __init__(
        self,
        runs: list[Run],
        trainer: Trainer,
        caught: signals.Signals,
        stack: contextlib.ExitStack,
    ):
        first = runs[0]
        self.config, self.runs, self.trainer, self.signals = first.config, runs, trainer, caught
        self.epoch_steps, self.total_steps = first.epoch_steps, first.total_steps
        self.records = Records([run.record for run in runs])
        self.step = first.record.step
        self.loader = first.data.loader(trainer.batch_sharding)
        # The seed decides the order of the data: runs with the same seed share their batches.
        self.seeds = [run.config.seed for run in runs]
        self.streams = self._open_streams(stack, repeats=first.resolved.repeats)
        for run in runs:
            if run.record.progress.data:
                self.streams[run.config.seed].set_state(run.record.progress.data)
        self.pending_metrics: list[Metrics] = []  # of dispatched steps, still on the devices

    def train(self) -> None:
        """Train to the end, and set `outcome` of every run."""
        self.records.begin(self.total_steps)
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.suppress(Diverged))  # all have, and have their results
            self._loop(stack)
        for run, outcome in zip(self.runs, self.records.outcomes, strict=True):
            run.outcome = outcome

    def _loop(self, stack: contextlib.ExitStack) -> None:
        records, compiled = self.records, False
        while True:
            self._stop_if_asked()
            last = self.step == self.total_steps
            if records.evaluation_is_due(last=last):
                self._validate()
            if last:
                break
            if records.save_is_due():
                self._save()
            metrics = self.trainer.train_step(self._next(self.streams))
            if not compiled:
                records.first_step_dispatched()
                jax.block_until_ready(metrics)
                records.first_step_done()
                stack.enter_context(signals.steps())
                compiled = True
            if records.line_is_due():
                self._fetch_metrics()  # of earlier steps, while the devices compute this one
                records.write_line()
            self.pending_metrics.append(metrics)
            self.step += 1
            records.step_dispatched()
        self._save()
        test = self._evaluate("test", self._eval_model_state()) if self.config.test else None
        records.finish(test)

    def _open_streams(self, stack: contextlib.ExitStack, **options: Any) -> dict[int, Any]:
        """Open a stream of training batches for each seed."""
        return {
            seed: stack.enter_context(self.loader.train(seed=seed, **options))
            for seed in dict.fromkeys(self.seeds)
        }

    def _next(self, streams: dict[int, Any]) -> list[Batch]:
        """Return the next batch of every run."""
        batches = {seed: next(stream) for seed, stream in streams.items()}
        return [batches[seed] for seed in self.seeds]

    def _fetch_metrics(self) -> None:
        """Record the metrics of the dispatched steps. A value that is not finite ends its run."""
        fetched, self.pending_metrics = jax.device_get(self.pending_metrics), []
        self.records.add([self.trainer.per_run(metrics) for metrics in fetched])

    def _validate(self) -> None:
        self._fetch_metrics()
        began = time.monotonic()
        model_state = self._eval_model_state()
        scores = self._evaluate("validation", model_state)
        for index in self.records.validated(scores, time.monotonic() - began):
            self.records.keep_best(index, self.trainer.weights(index, model_state))

    def _eval_model_state(self) -> Params:
        """Return the model state for an evaluation.

        Training updates BatchNorm's running statistics at the trained weights. If other weights
        are evaluated (a moving average, Schedule-Free), or the config asks for it, the first
        training batches, the same each time, pass through the evaluated weights first, and the
        running statistics go on from there. This is a simple form of precise BatchNorm (Wu and
        Johnson, 2021, arXiv 2105.07576), which averages the statistics of batches.
        """
        model_state = self.trainer.model_state
        count = self.config.step.precise_bn_batches
        if count is None:
            count = PRECISE_BN_BATCHES if self.trainer.eval_params_differ else 0
        if not count or not self.trainer.has_batch_stats:
            return model_state
        with contextlib.ExitStack() as stack:
            streams = self._open_streams(stack)
            for number in range(min(self.epoch_steps, count)):
                batches = self._next(streams)
                model_state = self.trainer.update_batch_stats(model_state, batches, number)
                self._stop_if_asked()
        return model_state

    def _evaluate(self, split: str, model_state: Params) -> list[dict[str, float]]:
        """Return the scores of every run over all examples of a split."""
        found = []
        with self.loader.evaluation(split) as batches:
            for batch in batches:
                found.append(self.trainer.eval_step(model_state, batch))
                self._stop_if_asked()
        parts = [self.trainer.per_run(part) for part in jax.device_get(found)]
        scores = []
        for index, run in enumerate(self.runs):
            own = [part[index] for part in parts]
            of_run = run.data.scores(split, own)
            if split == "validation":
                run.keep_picture(self.step, own)
            scores.append({f"{split}_{name}": value for name, value in of_run.items()})
        return scores

    def _save(self) -> None:
        """Start to save all runs, so that they resume at the same step."""
        self._fetch_metrics()
        self.records.save(
            self.trainer.state, lambda index: self.streams[self.seeds[index]].get_state()
        )

    def _stop_if_asked(self) -> None:
        if self.signals.received(self.step, reserve=self.records.save_seconds):
            self._save()
            self.records.wait()
            assert self.signals.number is not None
            raise Interrupted(
                f"{self.signals.reason}Stopped at step {self.step} and saved; run the same command "
                "again to resume.",
                signal_number=self.signals.number,
            )


def closing_text(outcome: dict[str, Any], folder: Path) -> str:
    """Describe how a run ended."""
    score = score_name(outcome)
    took = duration(outcome["wall_seconds"])
    result = folder / "result.json"
    if outcome["status"] == "diverged":
        step = outcome["diverged_at_step"]
        return (
            f"Diverged: the loss or the gradient was no longer finite at step {step}, after "
            f"{took}. {folder}"
        )
    validation = f"{outcome[f'validation_{score}']:.2%}"
    if f"test_{score}" not in outcome:
        return f"Validation {score} {validation}, test split not read, {took}. {result}"
    test = f"Test {score} {outcome[f'test_{score}']:.2%}"
    if outcome.get("protocol") == "paper":
        best = f"{outcome[f'best_validation_{score}']:.2%}"
        return f"{test}, best of all epochs {best} (the paper's protocol); {took}. {result}"
    return f"{test} (validation {validation}), {took}. {result}"


if __name__ == "__main__":
    from bocb_jax.__main__ import run_command

    sys.exit(run_command(main))
