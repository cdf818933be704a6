"""What a sweep will take: runs, device-hours from measured steps, and disk space."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from bocb_jax.config import TrainConfig, from_dict
from bocb_jax.console import console, duration
from bocb_jax.run_files import read_result
from bocb_jax.storage.remote import Workdir
from bocb_jax.study.messages import EventKind, Request, Task
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.pool import LocalPool, Share, StartWatch, share_out
from bocb_jax.study.spec import Study

# Forward, backward to activations and to weights; a multiplication and an addition each.
FLOPS_PER_MAC = 3 * 2


def estimate(
    study: Study,
    cells: list[Cell],
    outcomes: dict[str, Outcome],
    workdir: Workdir,
    workers: int | None = None,
    *,
    quick: bool = False,
) -> str:
    """Return, in sentences, what is left to do.

    The time of a run is that of a finished run of its backbone in `workdir`. Other backbones are
    measured now: a few training steps each, with one of the study's optimizers, on one worker;
    evaluation, saving and compilation are not counted then.

    Args:
      study: the study.
      cells: its pairs.
      outcomes: of the runs that have ended.
      workdir: the folder of runs.
      workers: runs at a time; None for as many as a sweep would start.
      quick: whether to measure nothing.
    """
    shares = share_out(workers)
    known = _known_seconds(cells, outcomes, workdir.path)
    measured: dict[str, float] = {}
    if not quick:
        left = {cell.pair.label: cell for cell in cells if cell.pair.label not in known}
        measured = _measure(left, shares, workdir.path)
    seconds = known | measured
    runs, hours, flops, stored = 0, 0.0, 0.0, 0.0
    for cell in cells:
        pair = cell.pair
        ended = [planned for planned in cell.planned(outcomes) if planned.run in outcomes]
        runs += max(cell.size - len(ended), 0)
        done = sum(planned.config["epochs"] for planned in ended) / pair.epochs
        images = max(cell.length - done, 0.0) * pair.images
        hours += images * seconds.get(pair.label, 0.0) / 3600
        flops += images * pair.macs * FLOPS_PER_MAC
        stored += _stored_bytes(cell)
    lines = [
        f"{study.name}: {len(cells)} pairs, {sum(cell.size for cell in cells)} runs, {runs} of "
        "them still to do."
    ]
    if study.search.kind == "around" and study.search.moves:
        lines.append("There will be more where the best lies at the edge of a search.")
    if seconds:
        lines.append(
            f"About {_number(hours)} device-hours, {duration(3600 * hours / len(shares))} on the "
            f"{len(shares)} workers of this machine ({len(measured)} backbones measured now, "
            f"{len(known)} from runs that have ended). Assumed: every optimizer takes as long as "
            "the one that a backbone was measured with"
            f"{f' ({cells[0].pair.optimizer})' if measured else ''}; compilation, evaluation and "
            "saving take no time."
        )
    unknown = sorted({cell.pair.label for cell in cells} - set(seconds))
    if unknown and seconds:
        lines.append(f"Not measured, and left out of the hours: {', '.join(unknown)}.")
    elif unknown:
        lines.append("Nothing was measured: the hours depend on the device.")
    lines.append(
        f"About {flops:.1e} floating-point operations, three times those of the forward pass; "
        f"a device that sustains 100 TFLOP/s takes {_number(flops / 1e14 / 3600)} hours for them."
    )
    lines.append(f"Up to {_number(stored / 1e9)} GB of checkpoints in {workdir.where}.")
    missing = {c.pair.train.get("dataset", "digits") for c in cells if not c.pair.has_data}
    if missing:
        lines.append(
            f"{' and '.join(sorted(missing))} is not on this machine: the published number of "
            "images was assumed, with noise for images."
        )
    limit = study.budget.device_hours
    if limit is not None and hours > limit:
        lines.append(f"That exceeds budget.device_hours, {limit:g}: the sweep will stop early.")
    return "\n".join(lines)


def _stored_bytes(cell: Cell) -> float:
    """Return the size of the checkpoints that a pair's runs leave."""
    pair, study = cell.pair, cell.study
    checkpoint = from_dict(TrainConfig, pair.train).checkpoint
    if checkpoint.discard:
        return 0.0
    runs = cell.size if study.checkpoints == "all" else len(study.final.seeds)
    # The best weights, and the last states: parameters, their average, the optimizer's own.
    copies = 1 + checkpoint.keep * (2 + pair.state_per_parameter)
    return runs * 4 * pair.num_params * copies


def _number(value: float) -> str:
    if value < 0.01:
        return f"{value:.1g}"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _known_seconds(
    cells: list[Cell], outcomes: dict[str, Outcome], workdir: Path
) -> dict[str, float]:
    """Return the seconds per image, by label, of backbones with a finished run."""
    known: dict[str, float] = {}
    for cell in cells:
        for planned in cell.planned(outcomes):
            outcome = outcomes.get(planned.run)
            if cell.pair.label in known or outcome is None or outcome.status != "finished":
                continue
            result = read_result(workdir / planned.run) or {}
            if result.get("wall_seconds") is None:
                continue
            compiling = result.get("seconds_to_first_step") or 0.0
            members = result.get("population") or 1  # that trained in the same seconds
            images = cell.pair.images * planned.point.share * members
            known[cell.pair.label] = max(result["wall_seconds"] - compiling, 0.0) / images
    return known


def _measure(cells: dict[str, Cell], shares: Sequence[Share], workdir: Path) -> dict[str, float]:
    """Return the seconds per image, by label, of the backbones whose steps could be taken."""
    found: dict[str, float] = {}
    if not cells:
        return found
    console.print(
        f"Measuring a few training steps of {len(cells)} backbones, which compiles each of them "
        "once; --quick skips that.",
        markup=False,
        soft_wrap=True,
    )
    todo = list(cells.items())
    asked: dict[int, str] = {}
    done = 0
    with contextlib.closing(LocalPool(shares[: len(todo)], workdir / ".workers")) as pool:
        starts = StartWatch(pool)
        while done < len(cells):
            for event in pool.events(timeout=1.0):
                starts.note(event)
                label = asked.pop(event.worker, None)
                if label:
                    seconds = event.answer.seconds_per_image if event.answer else None
                    error = event.answer.error if event.answer else event.reason
                    if seconds:
                        found[label] = seconds
                    how = (
                        f"{1 / seconds:.3g} images/s"
                        if seconds
                        else f"cannot be measured ({(error or '')[:200]})"
                    )
                    done += 1
                    console.print(
                        f"{done}/{len(cells)} {label}: {how}", markup=False, soft_wrap=True
                    )
                if todo and event.kind is not EventKind.DIED:
                    label, cell = todo.pop(0)
                    asked[event.worker] = label
                    config = cell.planned({})[0].config
                    pool.start(event.worker, Request(Task.MEASURE, [config]))
    return found
