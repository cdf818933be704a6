"""The category of an optimizer by the paper's definition, also of those that came after the paper.

    a  fixed learning rate, momentum        c  estimated learning rate, momentum
    b  adaptive learning rate, momentum     d  adaptive learning rate, no momentum

Two tables: `published/optimizers.csv` is the paper's Table A2, `later_optimizers.csv` applies its
definition to optimizers that came later. Standard library only.
"""

import functools

from bocb_jax.paper.tables import own_rows, rows

_DIRECTION_ONLY = ("lion", "muon")  # of category a
# What each category is, in few words.
SHORT = {
    "a": "fixed rate + momentum",
    "b": "adaptive rate + momentum",
    "c": "estimated rate + momentum",
    "d": "adaptive rate, no momentum",
}


@functools.cache
def descriptions() -> dict[str, str]:
    """Return what each category is, in the paper's words: "a" to "d"."""
    return {row["category"]: row["category_name"] for row in rows("optimizers")}


def published_category(optimizer: str) -> str | None:
    """Return the category that the paper gives to an optimizer; None if it came later.

    The version of an optimizer by its authors, such as "lars@openmixup", counts as the optimizer.

    Args:
      optimizer: as this project names it.
    """
    return _published().get(optimizer.partition("@")[0])


def category(optimizer: str) -> tuple[str | None, str]:
    """Return the category of an optimizer, and why; None where the definition gives none.

    What wraps another ("sam+sgd"), masks it ("cadamw") or is its authors' version
    ("lars@openmixup") changes neither its gradient estimate nor its learning rate, and so has the
    category of the other.

    Args:
      optimizer: as this project names it.
    """
    base = optimizer.rpartition("+")[2].partition("@")[0]
    known = _decided()
    if base not in known and base.startswith("c") and base[1:] in known:
        base = base[1:]
    if base not in known:
        return None, "the paper does not have it, and its update rule is not known here"
    found, reason = known[base]
    return found, reason if base == optimizer else f"as {base}: {reason}"


def is_sgd_like(optimizer: str, of_category: str | None) -> bool:
    """Return whether an optimizer steps along the gradient with momentum at a fixed rate, as SGD.

    That is category a without what takes only the gradient's direction: its sign, or the nearest
    orthogonal matrix.

    Args:
      optimizer: as this project names it.
      of_category: its category.
    """
    base = optimizer.rpartition("+")[2].partition("@")[0]
    return of_category == "a" and base not in _DIRECTION_ONLY and base[1:] not in _DIRECTION_ONLY


def to_opt(optimizer: str) -> str:
    """Return this project's name of an optimizer that the paper names, and others as they are.

    >>> to_opt("SGD-M"), to_opt("muon")
    ('sgd', 'muon')
    """
    return _names().get(optimizer, optimizer)


def to_paper(opt: str) -> str:
    """Return the paper's name of one of its optimizers, and others as they are.

    >>> to_paper("sgd"), to_paper("muon")
    ('SGD-M', 'muon')
    """
    return next((theirs for theirs, ours in _names().items() if ours == opt), opt)


@functools.cache
def _names() -> dict[str, str]:
    return {row["optimizer"]: row["opt"] for row in rows("optimizers")}


@functools.cache
def _published() -> dict[str, str]:
    return {row["opt"]: row["category"] for row in rows("optimizers")}


@functools.cache
def _decided() -> dict[str, tuple[str | None, str]]:
    known: dict[str, tuple[str | None, str]] = {
        opt: (found, "the paper's Table A2") for opt, found in _published().items()
    }
    later = own_rows("later_optimizers")
    return known | {row["optimizer"]: (row["category"] or None, row["reason"]) for row in later}
