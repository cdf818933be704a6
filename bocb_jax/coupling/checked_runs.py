"""Runs of a table of any source with checked names, figures, statuses and seeds."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas

from bocb_jax.coupling import figures
from bocb_jax.coupling.columns import NUMBERS, Runs
from bocb_jax.coupling.metrics import Metric
from bocb_jax.coupling.reading import shown
from bocb_jax.errors import UserError

RUN_COLUMNS = (
    "backbone", "optimizer", "seed", "score", "status", "spread", "learning_rate", "weight_decay",
    "train_loss", "train_accuracy", "first_train_loss", "validation_score", "run",
)  # fmt: skip
_LONGEST_NAME = 200


def checked_runs(found: Runs, metric: Metric, notes: list[str]) -> tuple[pandas.DataFrame, bool]:
    """Return the runs with checked names, figures and statuses; and whether these are percents."""
    rows = len(found.rows)
    found = _named(found)
    roles = [role for role in ("score", *NUMBERS) if role in found.cells]
    below = 100.0 if metric.in_percent else math.inf
    columns = [found.cells[role] for role in roles]
    decimal = figures.decimal_of(columns, found.raw.name, below=below)
    score = _figures(found, "score", decimal, metric.unit)
    statuses = _statuses(found, score, metric, notes)
    known = statuses != ""
    found, score, statuses = found.take(known), score.take(known), statuses[known]
    if len(statuses) < rows and found.form == "long":
        count = rows - len(statuses)
        notes.append(f"{plural(count, 'row')} without a score or a status left out.")
    read = {role: _figures(found, role, decimal) for role in roles[1:]} | {"score": score}
    frame = pandas.DataFrame(
        {
            "backbone": found.cells["backbone"],
            "optimizer": found.cells["optimizer"],
            "score": score.values,
            "status": statuses,
            "spread": score.spreads,
        }
    )
    for role in NUMBERS:
        if role in read and (role != "spread" or not frame["spread"].notna().any()):
            frame[role] = read[role].values
    for role, figure in read.items():
        _check_finite(found, frame, role, figure, metric)
    percent = _in_percent(found, frame, metric, score.percent, notes)
    frame["run"] = [name_of(cell) for cell in found.cells["run"]] if "run" in found.cells else ""
    frame["seed"] = _seeds(found, frame, notes)
    for name in RUN_COLUMNS:
        if name not in frame:
            frame[name] = np.nan
    return frame[list(RUN_COLUMNS)], percent


def plural(count: int, noun: str) -> str:
    """Return a number and a noun, such as "1 run" or "2 runs"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _figures(found: Runs, role: str, decimal: str, unit: str = "") -> figures.Figures:
    cells = found.cells[role]
    read, wrong = figures.read(cells, decimal=decimal, unit=unit)
    if wrong is not None:
        name = role.replace("_", " ")
        raise UserError(
            f"{_place(found, wrong)}: the {name} '{shown(cells[wrong])}' is not a number."
        )
    return read


def _place(found: Runs, run: int) -> str:
    return found.place(run).capitalize()


def _named(found: Runs) -> Runs:
    """Return the runs without empty rows, names of backbones and optimizers as plain texts.

    Raises:
      UserError: a row has a score and no name, or a name that no terminal can show.
    """
    names = {}
    for role in ("backbone", "optimizer"):
        cells = pandas.Series(found.cells[role], dtype=object)
        codes, distinct = pandas.factorize(cells, use_na_sentinel=True)
        texts = [name_of(cell) for cell in distinct]
        for code, text in enumerate(texts):
            check_name(text, role, functools.partial(_first, found, codes == code))
        names[role] = np.array([*texts, ""], object)[codes]
    nameless = (names["backbone"] == "") | (names["optimizer"] == "")
    if nameless.any():
        blank = nameless & np.array([_is_blank(cell) for cell in found.cells["score"]])
        if (nameless & ~blank).any():
            row = int(np.flatnonzero(nameless & ~blank)[0])
            role = "backbone" if names["backbone"][row] == "" else "optimizer"
            raise UserError(f"{_place(found, row)} names no {role}.")
    return dataclasses.replace(found, cells=found.cells | names).take(~nameless)


def _first(found: Runs, rows: np.ndarray) -> str:
    return _place(found, int(rows.argmax()))


def check_name(text: str, role: str, place: str | Callable[[], str]) -> None:
    """Raise UserError unless a name can be shown in a terminal and in a picture.

    Args:
      text: the name.
      role: what it names.
      place: where it is, in words, or a function that finds it out.
    """
    if not text.isprintable() or len(text) > _LONGEST_NAME:
        where = place if isinstance(place, str) else place()
        raise UserError(
            f"{where}: the name of the {role} is not printable text of at most {_LONGEST_NAME} "
            "characters."
        )


def name_of(cell: Any) -> str:
    """Return a name as text, "" for none: "nan" is a name that pandas wrote for none."""
    if _is_blank(cell) or str(cell).strip().lower() in ("nan", "none", "null", "<na>", "n/a"):
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _is_blank(cell: Any) -> bool:
    return cell is None or cell != cell or (isinstance(cell, str) and not cell.strip())


def _statuses(found: Runs, score: figures.Figures, metric: Metric, notes: list[str]) -> np.ndarray:
    """Return the status of every run; "" where there is neither a score nor a status."""
    empty = score.empty
    statuses = np.where(empty, "", "finished").astype(object)
    if metric.censored:
        statuses[empty] = "not_reached"
    if "status" in found.cells:
        words = pandas.Series(found.cells["status"], dtype=object).map(_spelled)
        for word, rows in words.groupby(words, sort=False).indices.items():
            status = figures.status_of(word)
            if status is None:
                raise UserError(
                    f"{_place(found, rows[0])}: there is no status '{shown(word)}'. There are: "
                    "finished, diverged, out_of_memory, crashed, timed_out, not_reached."
                )
            if status == "":
                continue
            statuses[rows] = status
            if status == "finished":
                statuses[rows[empty[rows]]] = "not_reached" if metric.censored else ""
            elif word != status and status != "unfinished":
                notes.append(
                    f"The status '{word}' is taken for {status.replace('_', ' ')} "
                    f"({plural(len(rows), 'run')})."
                )
    told = score.statuses != ""
    statuses[told] = score.statuses[told]
    infinite = np.isinf(score.values)
    if infinite.any() and not metric.is_accuracy:
        # An infinite loss diverged, and a target was never reached.
        worst = score.values == (-math.inf if metric.higher_is_better else math.inf)
        statuses[worst] = "not_reached" if metric.censored else "diverged"
    return statuses


def _spelled(cell: Any) -> str:
    return "" if _is_blank(cell) else shown(str(cell).strip())


def _check_finite(
    found: Runs, frame: pandas.DataFrame, role: str, figure: figures.Figures, metric: Metric
) -> None:
    values = figure.values
    finite = np.isnan(values) | (np.abs(values) <= figures.LARGEST)
    if role == "score" and not metric.is_accuracy:
        finite |= (frame["status"] != "finished").to_numpy()
    elif role != "score":  # the training loss of a run that diverged
        frame[role] = frame[role].where(finite) if role in frame else np.nan
        return
    if not finite.all():
        at = int(np.flatnonzero(~finite)[0])
        size = "infinite" if np.isinf(values[at]) else "too large"
        raise UserError(
            f"{_place(found, at)}: the {role} is {size}; give the run status 'diverged'."
        )


def _in_percent(
    found: Runs, frame: pandas.DataFrame, metric: Metric, signed: bool, notes: list[str]
) -> bool:
    """Turn fractions into percent in place; return whether the table gives percents.

    Raises:
      UserError: an accuracy is out of range.
    """
    for name in ("validation_score", "train_accuracy"):
        if name in frame and (metric.in_percent or name == "train_accuracy"):
            frame[name] = frame[name] * (1 if frame[name].max() > 1 else 100)
    if not metric.in_percent:
        return False
    scores = frame["score"].where(frame["status"] == "finished")
    fractions = not signed and not scores.max() > 1
    if fractions:
        frame[["score", "spread"]] *= 100
        scores = 100 * scores
        notes.append(
            "No score exceeds 1, so they were taken for fractions and are shown in percent."
        )
    # 100.0000001 comes of sums in float32.
    wrong = ((scores < 0) | (scores > 100 + 1e-4)).to_numpy()
    if wrong.any():
        what = "an accuracy" if metric.is_accuracy else metric.name
        raise UserError(
            f"'{found.raw.name}', {found.place(int(wrong.argmax()))}: {what} is between 0 and "
            "100 percent. For losses, give --score loss (score='train loss'); for anything else, "
            "--metric NAME."
        )
    frame["score"] = frame["score"].clip(upper=100)
    return not fractions


def _seeds(found: Runs, frame: pandas.DataFrame, notes: list[str]) -> list[Any]:
    """Return the seed of every run; rows without one are numbered within their setting.

    Raises:
      UserError: a pair repeats a seed with the same settings.
    """
    keys = ["backbone", "optimizer", *settings_of(frame)]
    settings = frame[keys].assign(**{name: rounded(frame[name]) for name in keys[2:]})
    groups = settings.groupby(keys, sort=False, dropna=False).ngroup()
    if "seed" not in found.cells:
        numbers = groups.groupby(groups).cumcount()
        if numbers.any():
            _refuse_epochs(found, frame)
            notes.append("There is no column of seeds: rows that repeat a pair are its seeds.")
        return numbers.tolist()
    texts = [_seed(cell) for cell in found.cells["seed"]]
    known = pandas.DataFrame({"group": groups, "seed": pandas.Series(texts, dtype=object)})
    twice = known[known["seed"] != ""].duplicated()
    if twice.any():
        _refuse_epochs(found, frame)
        second = int(twice.index[twice.to_numpy().argmax()])
        first = int(np.flatnonzero((known == known.loc[second]).all(axis=1).to_numpy())[0])
        row = frame.iloc[second]
        raise UserError(
            f"'{found.raw.name}', {found.place(second)} repeats {found.place(first)}: backbone "
            f"{row['backbone']}, optimizer {row['optimizer']}, seed {shown(texts[second])}; keep "
            "one of them."
        )
    counts = groups.groupby(groups).cumcount()
    return [f"row {n}" if text == "" else text for text, n in zip(texts, counts, strict=True)]


def _seed(cell: Any) -> Any:
    """Return a seed as a whole number where it is one: 0, "0" and 0.0 are the same."""
    if _is_blank(cell):
        return ""
    try:
        number = float(cell)
        return int(number) if number.is_integer() and abs(number) < 2**53 else str(cell)
    except (TypeError, ValueError, OverflowError):
        return str(cell).strip()[:_LONGEST_NAME]


def settings_of(frame: pandas.DataFrame) -> list[str]:
    """Return the settings that a table gives."""
    names = ("learning_rate", "weight_decay")
    return [name for name in names if name in frame and frame[name].notna().any()]


def rounded(values: pandas.Series) -> pandas.Series:
    """Return settings to six digits: 0.1 may come back from a log as 0.10000000149."""
    numbers = values.to_numpy(float)
    return pandas.Series(np.char.mod("%.6g", numbers), index=values.index)


def _refuse_epochs(found: Runs, frame: pandas.DataFrame) -> None:
    """Raise UserError if the rows that repeat one another are epochs of a run."""
    if "epoch" not in found.cells:
        return
    epochs = pandas.Series(found.cells["epoch"], dtype=object)
    keys = [frame[name] for name in ("backbone", "optimizer", "run")]
    if epochs.groupby(keys).nunique().max() > 1:
        raise UserError(
            f"'{found.raw.name}' has a row per {found.headers['epoch']} of each run: keep the row "
            "of the last one."
        )
