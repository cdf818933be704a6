"""Check several runs, each in a process of its own; what has been compiled is kept in a file."""

import concurrent.futures
import json
import multiprocessing
import time
from collections.abc import Callable, Mapping
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax

from bocb_jax import __version__
from bocb_jax.config import TrainConfig, from_dict, to_dict
from bocb_jax.console import console, duration
from bocb_jax.errors import UserError
from bocb_jax.preflight.check import Check, compile_run, use_cpu
from bocb_jax.preflight.proposal import find_setting
from bocb_jax.preflight.wording import settings, shortage_text
from bocb_jax.roofline.topology import open_topology
from bocb_jax.storage.files import read_jsonl

Row = dict[str, Any]
FITS = "fits"


def check_each(
    runs: Mapping[str, TrainConfig],
    topology: str,
    *,
    kept: Path,
    jobs: int,
    search: bool,
    on_rows: Callable[[dict[str, Row]], None],
) -> dict[str, Row]:
    """Check runs, several at a time, and say after each how long the rest will take.

    A run that the same version checked before is taken from the file.

    Args:
      runs: by a name for messages.
      topology: name of the chips.
      kept: a file of JSON lines, one for each run that was checked; new ones are added.
      jobs: how many are compiled at a time.
      search: whether to look for a setting that fits where a run does not.
      on_rows: called with what is known, at first and after each run.

    Returns:
      A row by name, see `row_of`.

    Raises:
      UserError: a setting is wrong, and so in every run; or a process was killed.
    """
    before = {line.get("question"): line for line in (read_jsonl(kept) if kept.exists() else [])}
    asked = {name: _question(config, topology, search=search) for name, config in runs.items()}
    rows = {name: before[text] for name, text in asked.items() if text in before}
    left = [name for name in runs if name not in rows]
    if rows and left:
        console.print(f"{len(rows)} of {len(runs)} were compiled before ({kept}).", markup=False)
    on_rows(rows)
    started = time.monotonic()
    context = multiprocessing.get_context("spawn")  # a fork of a process with JAX may hang
    with concurrent.futures.ProcessPoolExecutor(jobs, context) as pool:
        futures = {
            pool.submit(row_of, to_dict(runs[name]), topology, search=search): name for name in left
        }
        for done, future in enumerate(concurrent.futures.as_completed(futures), 1):
            name = futures[future]
            row = rows[name] = {"name": name, "question": asked[name], **_result(future, jobs)}
            with kept.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            on_rows(rows)
            spent = time.monotonic() - started
            remaining = duration(spent / done * (len(left) - done))
            said = f"{done}/{len(left)}  {duration(spent)}  {remaining} left"
            console.print(f"{said}  {name}: {row['verdict']}", markup=False, soft_wrap=True)
    refused = [row for row in rows.values() if row.get("refused")]
    if len(refused) == len(rows) > 0:
        raise UserError(refused[0]["verdict"])
    return rows


def _result(future: "concurrent.futures.Future[Row]", jobs: int) -> Row:
    try:
        return future.result()
    except BrokenProcessPool as error:
        fewer = f" with fewer than {jobs} at a time" if jobs > 1 else " on a machine with more"
        raise UserError(
            "A process that compiles was killed, perhaps for want of memory. What was compiled "
            f"before is kept: start the same command again,{fewer}."
        ) from error


def row_of(config: dict[str, Any], topology: str, *, search: bool) -> Row:
    """Check a run; runs in a process of its own.

    Args:
      config: of the run, see `config.to_dict`.
      topology: name of the chips.
      search: whether to look for a setting that fits.

    Returns:
      "verdict", which is `FITS` or sentences. If a setting fits, "flags", the flags that it takes
      beside those of the run, and what it costs. If the settings do not go together, "refused".
    """
    use_cpu()
    opened = open_topology(topology)
    try:
        check = compile_run(from_dict(TrainConfig, config), opened)
    except UserError as error:
        return {"verdict": str(error), "refused": True}
    verdict = FITS
    if check.cost is None:
        assert check.shortage is not None
        verdict = shortage_text(check.shortage)
        found = find_setting(check, opened) if search else None
        if found is None:
            return {"verdict": verdict}
        check, verdict = found, f"{verdict} Fits with{settings(found.config)}."
    return {"verdict": verdict, "flags": settings(check.config).strip(), **_costs(check)}


def _costs(check: Check) -> Row:
    cost, seconds = check.cost, check.least
    assert cost is not None
    sent: dict[str, float] = {}
    for transfer in cost.collectives:
        name = f"{transfer.kind} {transfer.dtype} ({transfer.stage}, {transfer.operation})"
        sent[name] = sent.get(name, 0) + transfer.bytes * transfer.times
    return {
        "memory": cost.memory,
        "flops": cost.flops,
        "traffic": cost.traffic,
        "least": seconds.least,
        "bound": seconds.bound,
        "images_per_second": check.resolved.batch_size / seconds.least,
        "hours": check.least_hours,
        "chip_hours": check.least_hours * check.topology.num_chips,
        "received": cost.received,
        "ratio": check.traffic_ratio,
        "sent": dict(sorted(sent.items(), key=lambda item: -item[1])),
        "seconds": check.seconds,
    }


def _question(config: TrainConfig, topology: str, *, search: bool) -> str:
    """Return what a row answers."""
    identity = config.identity()
    return json.dumps([__version__, jax.__version__, topology, search, identity], sort_keys=True)
