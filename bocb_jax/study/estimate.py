"""What a sweep will take: runs, device-hours from measured steps, and disk."""

import contextlib
from pathlib import Path

from bocb_jax.console import console, duration
from bocb_jax.results import read_json
from bocb_jax.study.plan import Cell, Outcome
from bocb_jax.study.pool import LocalPool, share_out
from bocb_jax.study.spec import Study

KEPT_STATES = 2  # as many as `checkpoint.keep` says by default


def estimate(
    study: Study,
    cells: list[Cell],
    outcomes: dict[str, Outcome],
    workdir: Path,
    workers: int | None = None,
) -> str:
    """Says in words what is still to be done.

    The seconds of a run are those of a finished one of that backbone in `workdir`, or those of a
    few training steps that are measured now, with one of the study's optimizers, on one worker.
    Evaluation, saving and compilation are left out of the latter.

    Args:
      study: what it goes through.
      cells: its pairs.
      outcomes: of the runs that have ended.
      workdir: where these lie.
      workers: runs at a time; None for as many as a sweep would start.
    """
    shares = share_out(workers)
    seconds = _known(cells, outcomes, workdir)
    measured = _measure([c for c in cells if c.pair.label not in seconds], shares, workdir)
    seconds |= {label: per_image for label, per_image in measured.items() if per_image}
    unknown = sorted({cell.pair.label for cell in cells} - set(seconds))
    total, hours, kept = 0, 0.0, 0.0
    for cell in cells:
        pair = cell.pair
        ended = sum(planned.run in outcomes for planned in cell.planned(outcomes))
        runs = max(cell.size - ended, 0)
        total += runs
        hours += runs * pair.images * seconds.get(pair.label, 0.0) / 3600
        # The best weights, and the last states: parameters, their average, the optimizer's own.
        state = 1 + KEPT_STATES * (2 + pair.state_per_parameter)
        kept_runs = cell.size if study.checkpoints == "all" else len(study.final.seeds)
        kept += kept_runs * 4 * pair.parameters * state
    lines = [
        f"{study.name}: {len(cells)} pairs, {sum(cell.size for cell in cells)} runs, {total} of "
        "them still to do.",
        f"About {hours:.2f} device-hours, {duration(3600 * hours / len(shares))} on the "
        f"{len(shares)} workers of this machine, compilation left out "
        f"({len(measured)} backbones measured now, {len(seconds) - len(measured)} from runs "
        "that have ended).",
        f"Up to {kept / 1e9:.2f} GB of checkpoints in {workdir}.",
    ]
    if study.search.kind == "around" and study.search.moves:
        lines.insert(1, "More where the best lies at the edge of a search.")
    if unknown:
        lines.append(f"Not measured, and left out of the hours: {', '.join(unknown)}.")
    limit = study.budget.device_hours
    if limit is not None and hours > limit:
        lines.append(f"That is more than budget.device_hours, {limit:g}: it will stop before.")
    return "\n".join(lines)


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


def _measure(cells: list[Cell], shares: list, workdir: Path) -> dict[str, float | None]:
    """Seconds an image, by label, from a few steps of each; None where these failed."""
    waiting = {cell.pair.label: cell for cell in cells}
    found: dict[str, float | None] = {}
    if not waiting:
        return found
    jobs = list(waiting.items())
    asked: dict[int, str] = {}
    with contextlib.closing(LocalPool(shares[: len(jobs)], workdir / ".workers")) as pool:
        while len(found) < len(waiting):
            for event in pool.events(timeout=1.0):
                label = asked.pop(event.worker, None)
                if label and event.kind == "answer":
                    found[label] = event.content.get("seconds_per_image")
                elif label:
                    found[label] = None
                if label:
                    console.print(f"measured {label}, {len(found)} of {len(waiting)}", markup=False)
                if jobs and event.kind in ("ready", "answer"):
                    label, cell = jobs.pop(0)
                    asked[event.worker] = label
                    pool.start(event.worker, cell.planned({})[0].settings, kind="measure")
    return found
