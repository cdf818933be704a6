"""Train several runs as one program: `train_together(configs)`.

They differ only in learning rate, weight decay and seed. Each leaves the run directory that it
would leave alone, and can be resumed alone or together with others. Only the speed changes: several
small models fill an accelerator that one leaves idle. `bocb sweep --population N` trains the runs
of a backbone-optimizer pair this way.
"""

import contextlib
import itertools
import logging
import time
from typing import Any

import jax

from bocb_jax.build import compiled_population
from bocb_jax.config import TrainConfig, difference
from bocb_jax.engine import compile_cache, signals
from bocb_jax.engine.run_dir import working_here
from bocb_jax.engine.trainer import PopulationTrainer
from bocb_jax.errors import UserError
from bocb_jax.storage.remote import is_url
from bocb_jax.train import Loop, Run, closing_text, train_single

logger = logging.getLogger(__name__)

PER_MEMBER = ("lr", "weight_decay", "hparams", "seed")  # settings in which the members may differ


def train_together(
    configs: list[TrainConfig], *, members: int | None = None
) -> list[dict[str, Any]]:
    """Train runs to their ends, resuming those that were stopped before.

    Runs that resume at different steps are trained in groups, one group per step.

    Args:
      configs: of different runs.
      members: size of the compiled program; None for one member per config. A group that fills at
        least half of it is trained in it, with the last run repeated; the runs of a smaller group
        are trained one by one.

    Returns:
      The content of each `result.json`, in the order of `configs`.

    Raises:
      UserError: a setting is wrong, or the runs differ in more than learning rate, weight decay and
        seed; nothing was written.
      Interrupted: SIGTERM or SIGINT came; the states are saved.
    """
    started = time.monotonic()
    members = members or len(configs)
    check_alike(configs)
    if is_url(configs[0].workdir):
        with contextlib.ExitStack() as stack:
            here = [stack.enter_context(working_here(config)) for config in configs]
            return train_together(here, members=members)
    if len(configs) > members:
        raise UserError(f"{len(configs)} runs are more than the {members} that train together.")
    compile_cache.use_compile_cache(configs[0].compile_cache)
    runs = [Run(config) for config in configs]
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(signals.catching(started, configs[0].max_minutes))
        for index, run in enumerate(runs):
            # A terminal has room for one progress bar: that of the first run.
            run.outcome = run.open(stack, started, progress=None if index == 0 else "none")
        unfinished = [run for run in runs if run.outcome is None]
        for group in by_step(unfinished):
            if len(group) > 1 and 2 * len(group) >= members:
                _train_group(group, members, caught, stack)
            else:
                for run in group:
                    train_single(run, caught, stack)
    return [run.result for run in runs]


def check_alike(configs: list[TrainConfig]) -> None:
    """Check that runs can share one program.

    Raises:
      UserError: they differ in more than `PER_MEMBER`, which it names, or two are the same run.
    """
    first, *others = configs
    for other in others:
        differing = difference(_shared(first), _shared(other))
        if differing:
            raise UserError(
                "Runs that train together may differ only in learning rate, weight decay and seed; "
                f"these differ in {'; '.join(differing)}. Train them one by one."
            )
    if len({config.folder() for config in configs}) < len(configs):
        raise UserError("Two of the runs to train together are the same; leave one out.")
    if jax.process_count() > 1:
        raise UserError("Runs cannot train together over several processes; train them one by one.")


def _shared(config: TrainConfig) -> dict[str, Any]:
    shared = {name: value for name, value in config.identity().items() if name not in PER_MEMBER}
    return shared | {"test": config.test}


def by_step(runs: list[Run]) -> list[list[Run]]:
    """Return groups of runs at the same step, the earliest step first."""
    ordered = sorted(runs, key=lambda run: run.record.step)
    return [list(group) for _, group in itertools.groupby(ordered, lambda run: run.record.step)]


def _train_group(
    group: list[Run], members: int, caught: signals.Signals, stack: contextlib.ExitStack
) -> None:
    report = group[0].record.report
    for run in group:
        report.say(run.opening_text())
    report.say(f"These {len(group)} train together.")
    trainer = PopulationTrainer(
        compiled_population(group[0].spec, members),
        group[0].program,
        [run.hand_over_state() for run in group],
        [run.key for run in group],
    )
    Loop(group, trainer, caught, stack).train()
    for run in group:
        report.say(closing_text(run.result, run.folder))
