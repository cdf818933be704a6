"""Several runs that train together, as one program: `train_together(configs)`.

They differ in learning rate, weight decay and seed alone, and each is a run like any other: its
folder holds what a run alone leaves there, and either way of training goes on with what the other
began. Nothing but speed is gained: an accelerator that one small model leaves idle is filled with
several. `bocb sweep --population N` trains the runs of a pair so.
"""

import contextlib
import itertools
import logging
import time
from typing import Any

import jax

from bocb_jax.build import compiled_population, use_compile_cache
from bocb_jax.config import TrainConfig, difference
from bocb_jax.engine import signals
from bocb_jax.engine.run_dir import working_here
from bocb_jax.errors import UserError
from bocb_jax.storage.remote import is_url
from bocb_jax.train import Loop, Run, closing, train_alone

logger = logging.getLogger(__name__)

OWN = ("lr", "weight_decay", "hparams", "seed")  # what the members may each have of their own


def train_together(
    configs: list[TrainConfig], *, members: int | None = None
) -> list[dict[str, Any]]:
    """Trains runs to their ends, or goes on with those that were stopped.

    Runs that are found at different steps are trained group by group.

    Args:
      configs: of different runs.
      members: places of the compiled program; None for as many as there are configs. A group that
        fills half of them or more is trained in it, the last member repeated; the runs of a smaller
        one are trained one by one.

    Returns:
      What the `result.json` of each holds, in their order.

    Raises:
      UserError: a setting is wrong, or the runs differ in more than numbers; nothing was written.
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
    use_compile_cache(configs[0].compile_cache)
    runs = [Run(config) for config in configs]
    with contextlib.ExitStack() as stack:
        caught = stack.enter_context(signals.catching())
        for place, run in enumerate(runs):
            # A terminal has room for one bar; it is the first run's.
            run.outcome = run.open(stack, started, progress=None if place == 0 else "none")
        waiting = [run for run in runs if run.outcome is None]
        for group in by_step(waiting):
            if len(group) > 1 and 2 * len(group) >= members:
                _train_group(group, members, caught, stack)
            else:
                for run in group:
                    train_alone(run, caught, stack)
    return [run.outcome for run in runs]


def check_alike(configs: list[TrainConfig]) -> None:
    """Refuses runs that cannot share one program, or are one and the same.

    Raises:
      UserError: it names what they differ in.
    """
    first, *others = configs
    for other in others:
        differing = difference(*(_shared(config) for config in (first, other)))
        if differing:
            raise UserError(
                "Runs that train together differ in learning rate, weight decay and seed alone; "
                f"these differ in {'; '.join(differing)}. Train them one by one."
            )
    if len({config.folder() for config in configs}) < len(configs):
        raise UserError("Two of the runs that are to train together are the same; leave one out.")
    if jax.process_count() > 1:
        raise UserError("Runs train together in one process alone; train them one by one.")


def _shared(config: TrainConfig) -> dict[str, Any]:
    shared = {name: value for name, value in config.identity().items() if name not in OWN}
    return shared | {"test": config.test}


def by_step(runs: list[Run]) -> list[list[Run]]:
    """Groups of runs at the same step, those that are furthest behind first."""
    ordered = sorted(runs, key=lambda run: run.record.step)
    return [list(group) for _, group in itertools.groupby(ordered, lambda run: run.record.step)]


def _train_group(group: list[Run], members: int, caught, stack) -> None:
    report = group[0].record.report
    for run in group:
        report.say(run.opening())
    report.say(f"These {len(group)} train together.")
    Loop(group, compiled_population(group[0].spec, members), caught, stack).train()
    for run in group:
        report.say(closing(run.outcome, run.folder))
