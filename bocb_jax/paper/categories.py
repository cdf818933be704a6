"""The category of an optimizer by the paper's definition, also of those that came after the paper.

    a  fixed learning rate, momentum        c  estimated learning rate, momentum
    b  adaptive learning rate, momentum     d  adaptive learning rate, no momentum

Read from two tables, without JAX: the analysis and the table of optimizers say the same.
"""

import csv
import functools
import importlib.resources

_TABLES = ("paper/optimizers.csv", "optim/later.csv")


@functools.cache
def _known() -> dict[str, tuple[str | None, str]]:
    known = {}
    for table in _TABLES:
        file = importlib.resources.files("bocb_jax").joinpath(*table.split("/"))
        lines = file.read_text("utf-8").splitlines()
        for row in csv.DictReader(line for line in lines if not line.startswith("#")):
            name = row.get("opt") or row["optimizer"]
            known[name] = row["category"] or None, row.get("reason") or "the paper's Table A2"
    return known


def category(optimizer: str) -> tuple[str | None, str]:
    """The category of an optimizer of this project by name, and why; None where there is none.

    What wraps another ("sam+sgd"), masks it ("cadamw") or is its authors' version
    ("lars@openmixup") changes neither its gradient estimate nor its learning rate: it has the
    category of the other.
    """
    known = _known()
    base = optimizer.rpartition("+")[2].partition("@")[0]
    if base not in known and base.startswith("c") and base[1:] in known:
        base = base[1:]
    if base not in known:
        return None, "the paper does not have it, and its steps are not known here"
    found, reason = known[base]
    return found, reason if base == optimizer else f"as {base}: {reason}"
