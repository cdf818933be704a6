"""What a sweep will take: runs, device-hours from measured steps, and disk."""

import contextlib
from pathlib import Path

from bocb_jax.console import console, duration
from bocb_jax.storage.files import read_json
from bocb_jax.storage.remote import Workdir
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.pool import LocalPool, share_out
from bocb_jax.study.spec import Study

KEPT_STATES = 2  # as many as `checkpoint.keep` says by default
# Forward, backward to activations and to weights; a multiplication and an addition each.
OPERATIONS_PER_MAC = 3 * 2


def estimate(
    study: Study,
    cells: list[Cell],
    outcomes: dict[str, Outcome],
    workdir: Workdir,
    workers: int | None = None,
    *,
    quick: bool = False,
) -> str:
    """Says in words what is still to be done.

    The seconds of a run are those of a finished one of that backbone in `workdir`, or those of a
    few training steps that are measured now: each backbone once, with one of the study's
    optimizers, on one worker. Evaluation, saving and compilation are left out of the latter.

    Args:
      study: what it goes through.
      cells: its pairs.
      outcomes: of the runs that have ended.
      workdir: where these lie.
      workers: runs at a time; None for as many as a sweep would start.
      quick: nothing is measured.
    """
    shares = share_out(workers)
    seconds = _known(cells, outcomes, workdir.path)
    measured: dict[str, float | None] = {}
    if not quick:
        left = {cell.pair.label: cell for cell in cells if cell.pair.label not in seconds}
        measured = _measure(left, shares, workdir.path)
        seconds |= {label: per_image for label, per_image in measured.items() if per_image}
    unknown = {cell.pair.label for cell in cells} - set(seconds)
    total, hours, operations, kept = 0, 0.0, 0.0, 0.0
    for cell in cells:
        pair = cell.pair
        ended = sum(planned.run in outcomes for planned in cell.planned(outcomes))
        runs = max(cell.size - ended, 0)
        total += runs
        hours += runs * pair.images * seconds.get(pair.label, 0.0) / 3600
        operations += runs * pair.images * pair.macs * OPERATIONS_PER_MAC
        # The best weights, and the last states: parameters, their average, the optimizer's own.
        state = 1 + KEPT_STATES * (2 + pair.state_per_parameter)
        kept_runs = cell.size if study.checkpoints == "all" else len(study.final.seeds)
        kept += kept_runs * 4 * pair.parameters * state
    lines = [
        f"{study.name}: {len(cells)} pairs, {sum(cell.size for cell in cells)} runs, {total} of "
        "them still to do."
    ]
    if study.search.kind == "around" and study.search.moves:
        lines.append("More where the best lies at the edge of a search.")
    if seconds:
        some = [label for label, per_image in measured.items() if per_image]
        lines.append(
            f"About {_count(hours)} device-hours, {duration(3600 * hours / len(shares))} on the "
            f"{len(shares)} workers of this machine ({len(some)} backbones measured now, "
            f"{len(seconds) - len(some)} from runs that have ended). Assumed: every optimizer "
            f"takes as long as the one that a backbone was measured with"
            f"{f' ({cells[0].pair.optimizer})' if some else ''}; compilation, evaluation and "
            "saving take nothing."
        )
    if unknown:
        names = ", ".join(sorted(unknown))
        lines.append(
            f"Not measured, and left out of the hours: {names}."
            if seconds
            else "Nothing was measured: the hours depend on the device."
        )
    lines.append(
        f"About {operations:.1e} floating-point operations, three times those of the forward pass; "
        f"a device that keeps up 100 TFLOP/s takes {_count(operations / 1e14 / 3600)} hours for "
        "them."
    )
    lines.append(f"Up to {_count(kept / 1e9)} GB of checkpoints in {workdir.where}.")
    missing = {c.pair.settings.get("dataset", "digits") for c in cells if not c.pair.has_data}
    if missing:
        lines.append(
            f"{' and '.join(sorted(missing))} is not on this machine: the published numbers of "
            "images were taken, and noise in their place."
        )
    limit = study.budget.device_hours
    if limit is not None and hours > limit:
        lines.append(f"That is more than budget.device_hours, {limit:g}: it will stop before.")
    return "\n".join(lines)


def _count(value: float) -> str:
    if value < 0.01:
        return f"{value:.1g}"
    return f"{value:.2f}" if value < 100 else f"{value:,.0f}"


def _known(cells: list[Cell], outcomes: dict[str, Outcome], workdir: Path) -> dict[str, float]:
    """Seconds an image, by label, of backbones that have a finished run."""
    found: dict[str, float] = {}
    for cell in cells:
        for planned in cell.planned(outcomes):
            outcome = outcomes.get(planned.run)
            if cell.pair.label in found or outcome is None or outcome.status != "finished":
                continue
            result = read_json(workdir / planned.run / "result.json") or {}
            images = cell.pair.images * planned.point.share
            first = result.get("seconds_to_first_step") or 0.0
            images *= result.get("population") or 1  # of all that trained in these seconds
            found[cell.pair.label] = max(result["wall_seconds"] - first, 0.0) / images
    return found


def _measure(waiting: dict[str, Cell], shares: list, workdir: Path) -> dict[str, float | None]:
    """Seconds an image, by label, from a few steps of each; None where these failed."""
    found: dict[str, float | None] = {}
    if not waiting:
        return found
    console.print(
        f"Measuring a few training steps of {len(waiting)} backbones, which compiles each of them "
        "once; --quick leaves that out.",
        markup=False,
        soft_wrap=True,
    )
    jobs = list(waiting.items())
    asked: dict[int, str] = {}
    with contextlib.closing(LocalPool(shares[: len(jobs)], workdir / ".workers")) as pool:
        while len(found) < len(waiting):
            for event in pool.events(timeout=1.0):
                label = asked.pop(event.worker, None)
                if label:
                    answer = event.content if event.kind == "answer" else {"error": event.content}
                    found[label] = answer.get("seconds_per_image")
                    how = (
                        f"{1 / found[label]:.3g} images/s"
                        if found[label]
                        else f"cannot be measured ({answer.get('error', '')[:200]})"
                    )
                    console.print(
                        f"{len(found)}/{len(waiting)} {label}: {how}", markup=False, soft_wrap=True
                    )
                if jobs and event.kind in ("ready", "answer"):
                    label, cell = jobs.pop(0)
                    asked[event.worker] = label
                    pool.start(event.worker, cell.planned({})[0].settings, kind="measure")
    return found
