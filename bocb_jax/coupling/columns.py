"""Which column of a table is what, and one row a run from long, wide and transposed tables."""

import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from bocb_jax.coupling import figures
from bocb_jax.coupling.metrics import VALIDATED, Metric, is_lower, plain_name
from bocb_jax.coupling.reading import RawTable, opened
from bocb_jax.errors import UserError
from bocb_jax.paper import categories, tables, taxonomy

# Names of columns by preference, as `plain_name` gives them.
_ALIASES = {
    "backbone": (
        "backbone", "backbones", "backbone_name", "model", "models", "model_name", "arch",
        "architecture", "model_arch", "network", "net", "net_name", "encoder", "workload",
    ),
    "optimizer": (
        "optimizer", "optimizers", "optimiser", "optimizer_name", "opt", "opt_name", "optim",
        "optim_name", "optimizer_type", "algorithm", "submission",
    ),
    "seed": ("seed", "seeds", "random_seed", "rng_seed", "seed_id", "replicate", "repeat", "rep"),
    "status": ("status", "state", "run_status", "outcome"),
    "spread": (
        "spread", "std", "sd", "stdev", "std_dev", "score_std", "std_score", "acc_std", "test_std",
        "accuracy_std", "test_acc_std", "test_accuracy_std", "std_acc",
    ),
    "learning_rate": ("learning_rate", "lr", "base_lr", "init_lr", "initial_lr", "peak_lr",
                      "max_lr"),
    "weight_decay": ("weight_decay", "wd", "weightdecay", "l2"),
    "train_loss": ("train_loss", "training_loss"),
    "train_accuracy": ("train_accuracy", "train_acc", "training_accuracy", "train_acc1",
                       "train_top1"),
    "first_train_loss": ("first_train_loss",),
    "validation_score": VALIDATED,
    "dataset": ("dataset", "data_set", "dataset_name"),
    "run": ("run", "run_name", "runname", "run_id", "mlflow_runname", "name", "id"),
    "epoch": ("epoch", "step", "iteration"),
}  # fmt: skip
NUMBERS = ("spread", "learning_rate", "weight_decay", "train_loss", "train_accuracy",
           "first_train_loss", "validation_score")  # fmt: skip
# Roles of columns that hold for every score in a row of a wide table.
_OF_ROWS = ("seed", "dataset", "learning_rate", "weight_decay")
# What W&B, MLflow and Hydra put before the names of settings and metrics.
_PREFIXES = ("summary", "summary_metrics", "config", "params", "param", "metrics", "metric",
             "tags", "hparams", "hyperparameters", "args", "cfg")  # fmt: skip
# Rows and columns that sum others up.
_TOTALS = ("mean", "average", "avg", "median", "std", "overall", "total", "mean_rank", "avg_rank",
           "average_rank", "rank")  # fmt: skip
# Optimizers that neither the paper nor what came after it in this project has.
_OPTIMIZERS = ("sgdm", "sgdw", "sgdmomentum", "momentum", "nesterov", "nesterovmomentum", "nag",
               "nadamw", "yogi", "fromage", "msvag", "apollo", "amsgrad", "adahessian", "ranger",
               "sam", "asam", "qhadam", "adasgd", "lookahead", "signsgd", "signum", "kfac", "nero",
               "cautious", "tiger", "came", "galore", "dadaptation", "adasqrt")  # fmt: skip
# Words for backbones beside the first words of the paper's.
_BACKBONES = ("resnet", "resnext", "wideresnet", "wrn", "vgg", "densenet", "mobilenet", "vit",
              "deit", "swin", "convnext", "mixer", "efficientnet", "inception", "squeezenet",
              "shufflenet", "ghostnet", "regnet", "resmlp", "poolformer", "cait", "pvt", "twins",
              "coatnet", "maxvit", "lstm", "gru", "transformer", "bert", "unet", "mlp", "cnn",
              "r", "dn", "cnx")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Columns:
    """Names of columns that the user gives; None for those told by their names."""

    backbone: str | None = None
    optimizer: str | None = None
    score: str | None = None

    @property
    def given(self) -> bool:
        """Whether any is."""
        return any(getattr(self, field.name) is not None for field in dataclasses.fields(self))


BY_NAME = Columns()


@dataclasses.dataclass(frozen=True)
class Runs:
    """One row a run: names, the cell of the score, and whatever else is known.

    Attributes:
      raw: the table that the runs come from.
      rows: (n,) row of `raw` that each run comes from.
      cells: role -> (n,) cells; "backbone", "optimizer" and "score" at least.
      form: "long", "wide" (backbones across) or "transposed" (optimizers across).
      headers: role -> the column that it was read from.
      left_out: rows and columns that are no scores of a backbone under an optimizer.
    """

    raw: RawTable
    rows: np.ndarray
    cells: dict[str, np.ndarray]
    form: Literal["long", "wide", "transposed"]
    headers: dict[str, str]
    left_out: tuple[str, ...] = ()

    def place(self, run: int) -> str:
        """Return where a run is in its file, such as "line 7"."""
        return self.raw.place(int(self.rows[run]))

    def take(self, kept: np.ndarray) -> "Runs":
        """Return the runs where a mask (n,) is true."""
        cells = {role: column[kept] for role, column in self.cells.items()}
        return dataclasses.replace(self, rows=self.rows[kept], cells=cells)


def runs_of(raw: RawTable, metric: Metric, given: Columns) -> Runs:
    """Find the columns of a table, and return its runs.

    Raises:
      UserError: a column is missing, or it cannot be told which axis holds the optimizers.
    """
    raw = _without_counter(opened(raw, _PREFIXES))
    headers = _headers(raw, metric, given)
    if "score" not in headers:  # a backbone across a wide table may be called "net"
        for role in ("backbone", "optimizer"):
            told = role in headers and getattr(given, role) is None
            if told and _holds_figures(raw.columns[headers[role]]):
                del headers[role]
    named = {"backbone", "optimizer"} & set(headers)
    if len(named) == 2 and "score" not in headers:
        headers |= _only_figures(raw, headers, metric)
    if len(named) == 2 or "score" in headers:
        for role in ("backbone", "optimizer", "score"):
            if role not in headers:
                raise UserError(_no_column(raw, role))
        cells = {role: _cells(raw.columns[header]) for role, header in headers.items()}
        return Runs(raw, np.arange(len(raw.at)), cells, "long", headers)
    return _melted(raw, headers)


def _cells(column: Sequence[Any]) -> np.ndarray:
    found = np.empty(len(column), object)
    found[:] = column
    return found


def _no_column(raw: RawTable, role: str) -> str:
    kind = {"score": "scores"}.get(role, f"{role}s")
    return (
        f"'{raw.name}' has no column '{role}'; its columns are: {_listed(raw)}. If one of them "
        f"holds the {kind}, name it with --{role}-column. A long table has a column each for "
        "backbone, optimizer and score; a wide one a column of optimizers, then one for each "
        "backbone, or the other way round."
    )


def _listed(raw: RawTable, most: int = 30) -> str:
    names = [name or "''" for name in raw.columns]
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _without_counter(raw: RawTable) -> RawTable:
    """Return a table without the unnamed first column in which pandas counts the rows."""
    name = next(iter(raw.columns), None)
    if name is None:
        raise UserError(f"'{raw.name}' has no columns.")
    if (name == "" or re.fullmatch(r"Unnamed: ?\d+|index|level_0", name)) and len(raw.columns) > 2:
        counted = [str(cell) for cell in raw.columns[name]]
        if counted in ([str(n + start) for n in range(len(counted))] for start in (0, 1)):
            kept = {key: cells for key, cells in raw.columns.items() if key != name}
            return dataclasses.replace(raw, columns=kept)
    return raw


def _plain_names(header: str) -> list[str]:
    """Return the plain names of a column: whole, and without the prefix of an export."""
    first, dot, rest = re.sub(r"^mlflow\.", "mlflow_", header.strip()).partition(".")
    whole = plain_name(header)
    if not dot:
        first, dot, rest = header.partition("/")
    return [plain_name(rest), whole] if dot and plain_name(first) in _PREFIXES else [whole]


def _headers(raw: RawTable, metric: Metric, given: Columns) -> dict[str, str]:
    """Return role -> column, for the roles that a column has."""
    known: dict[str, list[str]] = {}
    for header in raw.columns:
        for name in _plain_names(header):
            known.setdefault(name, []).append(header)
    aliases = {
        "backbone": _ALIASES["backbone"], "optimizer": _ALIASES["optimizer"],
        "score": metric.columns, **_ALIASES,
    }  # fmt: skip
    headers: dict[str, str] = {}
    for role in ("backbone", "optimizer", "score"):
        wanted = getattr(given, role)
        if wanted is not None:
            headers[role] = _given(raw, role, wanted, headers.values())
    for role, names in aliases.items():
        if role in headers:
            continue
        for name in names:
            free = [header for header in known.get(name, ()) if header not in headers.values()]
            if len(free) > 1 and role in ("backbone", "optimizer", "score"):
                raise UserError(
                    f"'{raw.name}' has the columns {' and '.join(free)}; say which one holds the "
                    f"{role}s with --{role}-column."
                )
            if free:
                headers[role] = free[0]
                break
    return headers


def _given(raw: RawTable, role: str, wanted: str, taken: Iterable[str]) -> str:
    same = [header for header in raw.columns if header == wanted]
    same = same or [header for header in raw.columns if header.lower() == wanted.strip().lower()]
    if not same:
        raise UserError(
            f"--{role}-column is '{wanted}', but '{raw.name}' has no such column; its columns "
            f"are: {_listed(raw)}."
        )
    if same[0] in taken:
        raise UserError(f"--{role}-column is '{wanted}', which is given for something else too.")
    return same[0]


def _only_figures(raw: RawTable, headers: dict[str, str], metric: Metric) -> dict[str, str]:
    """Return the score's column where only one column is left that holds figures."""
    left = [header for header in raw.columns if header not in headers.values()]
    left = [header for header in left if _holds_figures(raw.columns[header], metric.unit)]
    if len(left) == 1 and not is_lower(plain_name(left[0])):
        return {"score": left[0]}
    if left:
        lower = [header for header in left if is_lower(plain_name(header))]
        other = f", or --metric '{lower[0]}' for a metric of another kind" if lower else ""
        raise UserError(
            f"'{raw.name}' has no column 'score' or 'accuracy'; name the one to compare with "
            f"--score-column{other}. Columns of figures: {', '.join(left[:30])}."
        )
    return {}


def _holds_figures(cells: Sequence[Any], unit: str = "", most: int = 1000) -> bool:
    """Return whether a column begins with figures; the first cells tell."""
    for decimal in ".,":
        found, wrong = figures.read(cells[:most], decimal=decimal, unit=unit)
        if wrong is None:
            return bool(np.isfinite(found.values).any())
    return False


# -- wide tables -----------------------------------------------------------------------------------


def _melted(raw: RawTable, headers: dict[str, str]) -> Runs:
    """Return the runs of a table with a row per optimizer and a column per backbone, or turned."""
    key, rows_are = _key(raw, headers)
    across = "backbone" if rows_are == "optimizer" else "optimizer"
    # Settings of a whole row; what else has a role is of no use here.
    roles = {role: header for role, header in headers.items() if header != key}
    kept = {role: header for role, header in roles.items() if role in _OF_ROWS}
    columns = [header for header in raw.columns if header not in (key, *kept.values())]
    odd = {*roles.values(), *(header for header in columns if plain_name(header) in _TOTALS)}
    odd |= {header for header in columns if _is_text(raw.columns[header])}
    totals = [header for header in columns if header in odd]
    columns = [header for header in columns if header not in odd]
    if not columns:
        raise UserError(_no_column(raw, across))
    keys = raw.columns[key]
    rows = [i for i, name in enumerate(keys) if plain_name(str(name)) not in _TOTALS]
    left_out = (*totals, *(str(name) for name in keys if plain_name(str(name)) in _TOTALS))
    whole = np.empty((len(keys), len(columns)), object)
    for i, header in enumerate(columns):
        whole[:, i] = raw.columns[header]
    at = np.repeat(np.array(rows, int), len(columns))
    cells = {
        rows_are: _cells(keys)[at],
        across: np.tile(_cells(columns), len(rows)),
        "score": whole[rows].ravel(),
    } | {role: _cells(raw.columns[header])[at] for role, header in kept.items()}
    form: Literal["wide", "transposed"] = "wide" if rows_are == "optimizer" else "transposed"
    return Runs(raw, at, cells, form, {rows_are: key, **kept}, left_out)


def _is_text(cells: Sequence[Any]) -> bool:
    """Return whether a column holds words, none of which has a digit or is how a run ended."""
    filled = [cell for cell in cells if figures.status_of(cell) != ""] if _no_digit(cells) else []
    return any(figures.status_of(cell) is None for cell in filled)


def _no_digit(cells: Sequence[Any]) -> bool:
    return all(
        cell is None or (isinstance(cell, str) and not re.search(r"\d", cell)) for cell in cells
    )


def _key(raw: RawTable, headers: dict[str, str]) -> tuple[str, str]:
    """Return the column that names the rows of a wide table, and what it names."""
    for role in ("optimizer", "backbone"):
        if role in headers:
            return headers[role], role
    first = next(iter(raw.columns))
    down = [str(cell) for cell in raw.columns[first]]
    across = [header for header in raw.columns if header != first]
    # Each name that is known speaks for an orientation.
    wide = sum(map(is_optimizer, down)) + sum(map(is_backbone, across))
    turned = sum(map(is_backbone, down)) + sum(map(is_optimizer, across))
    if wide == turned:
        if wide == 0 and _holds_figures(raw.columns[first]):
            raise UserError(_no_column(raw, "backbone"))
        raise UserError(
            f"'{raw.name}' does not say whether its rows are optimizers or backbones; if they are "
            f"optimizers, give --optimizer-column '{first}', else --backbone-column '{first}'."
        )
    return first, "optimizer" if wide > turned else "backbone"


def is_optimizer(name: str) -> bool:
    """Return whether a name is, or begins with, that of an optimizer.

    >>> is_optimizer("SGD-M"), is_optimizer("nadamw_baselinev05"), is_optimizer("vit_s")
    (True, True, False)
    """
    words = re.split(r"[^0-9a-z]+", name.lower())
    parts = {"".join(words[:n]) for n in range(1, len(words) + 1)}
    return bool(parts & _known_optimizers())


@functools.cache
def _known_optimizers() -> frozenset[str]:
    """Return the names of optimizers, of any spelling, as `_joined` gives them."""
    known = {*_OPTIMIZERS, *map(_joined, tables.optimizers())}
    known |= {_joined(row["optimizer"]) for row in tables.own_rows("later_optimizers")}
    return frozenset(known | {_joined(categories.to_paper(opt)) for opt in tables.optimizers()})


def is_backbone(name: str) -> bool:
    """Return whether a name is that of a backbone of the paper, or of a well-known family.

    >>> is_backbone("R-50"), is_backbone("ResNet18"), is_backbone("my_vit"), is_backbone("adan")
    (True, True, True, False)
    """
    lower = name.lower()
    if taxonomy.find(name) is not None or taxonomy.find(lower) is not None:
        return True
    return bool(set(re.findall(r"[a-z]+", lower)) & set(_BACKBONES))


def _joined(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "", name.lower())
