"""How far two tables agree, over the backbones and optimizers that both have."""

import dataclasses
import itertools
import math

import numpy as np
import pandas
from scipy import stats

from bocb_jax.coupling import camps, choice, contrasts
from bocb_jax.coupling.features import features_of
from bocb_jax.coupling.noise import estimate_noise
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.coupling.scores import from_published
from bocb_jax.errors import UserError
from bocb_jax.paper.categories import to_opt
from bocb_jax.paper.taxonomy import find, to_model

_PREFERENCE = {f"points{end}": f"preference{end}" for end in ("", "_low", "_high")}
_LABELINGS = 50_000  # up to so many orders, all are tried; 8! are 40,320


@dataclasses.dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of n pairs."""

    rho: float
    low: float  # 95 percent by Fisher's z with the variance of Bonett and Wright (2000)
    high: float
    p_value: float  # two-sided, by permutation
    n: int


@dataclasses.dataclass(frozen=True)
class Agreement:
    """What two tables say of the same backbones with the same optimizers."""

    # Index: backbones of the first table, in its order. Columns, each with its twin "other_...":
    # backbone (as its table names it), preference (median of the SGD-like minus median of the
    # adaptive), camp, general (the optimizer that general advice names), price (of that advice);
    # preference_low and _high (95 percent), price_low and _high (90), NaN where the noise is not
    # known. Prices are NaN for fewer backbones than `costs.LEAST_BACKBONES`.
    backbones: pandas.DataFrame
    optimizers: tuple[str, ...]  # in common, in the order of the first table
    preference: Correlation | None  # of `preference`; None for fewer than four known pairs
    price: Correlation | None
    # Backbones that are in a camp in both tables, and how many of these are in the same one, with
    # Wilson's interval at 95 percent.
    decided: int
    same_camp: int
    same_camp_low: float
    same_camp_high: float


def compare(table: ScoreTable, other: ScoreTable) -> Agreement:
    """Compare a table with another one, over what both have.

    A backbone is paired with the one of the same name or, else, with the backbone of the paper that
    it is a size or a small twin of: "vit_mini" with "DeiT-S". Everything is computed from the part
    of each table that the other has too, so that advice has the same candidates in both.

    Raises:
      UserError: fewer than two backbones or two optimizers are in both.
    """
    pairs, optimizers = _common(table, other)
    if not _is_enough(pairs, optimizers):
        raise UserError(
            f"The tables share {len(pairs)} backbones and {len(optimizers)} optimizers; to compare "
            "them takes two of each."
        )
    ours = _told(table.select(optimizers, pairs))
    theirs = _told(other.select(optimizers.values(), pairs.values()))
    theirs = theirs.reindex(list(pairs.values())).set_axis(list(pairs)).add_prefix("other_")
    frame = ours.reindex(list(pairs)).join(theirs)
    frame.insert(0, "other_backbone", list(pairs.values()))
    both = frame[["camp", "other_camp"]].isin(("SGD-like", "adaptive")).all(axis=1)
    decided, same = int(both.sum()), int((frame["camp"] == frame["other_camp"])[both].sum())
    low, high = choice.wilson(np.array(same), np.array(max(decided, 1)), 0.95)
    return Agreement(
        backbones=frame.rename_axis("backbone"),
        optimizers=tuple(optimizers),
        preference=correlate(frame["preference"], frame["other_preference"]),
        price=correlate(frame["price"], frame["other_price"]),
        decided=decided,
        same_camp=same,
        same_camp_low=float(low) if decided else math.nan,
        same_camp_high=float(high) if decided else math.nan,
    )


def beside_paper(table: ScoreTable) -> Agreement | None:
    """Compare accuracies with the paper's on CIFAR-100.

    Returns:
      None where the scores are no accuracies or are the paper's own, or where fewer than two
      backbones or two optimizers are in both.
    """
    if not table.is_accuracy:
        return None
    paper = from_published("cifar100")
    if table.source == paper.source or not _is_enough(*_common(table, paper)):
        return None
    return compare(table, paper)


def correlate(x: pandas.Series, y: pandas.Series, *, draws: int = 20_000) -> Correlation | None:
    """Return Spearman's correlation over pairs that are known on both sides.

    Args:
      x, y: of the same index.
      draws: permutations where there are too many to try all.

    Returns:
      None for fewer than four pairs, or if all values of a side are equal.
    """
    known = x.notna() & y.notna()
    n = int(known.sum())
    ranks = [stats.rankdata(side[known].to_numpy(float)) for side in (x, y)]
    if n < 4 or any(np.ptp(side) == 0 for side in ranks):
        return None
    first, second = ((side - side.mean()) / np.linalg.norm(side - side.mean()) for side in ranks)
    rho = float(first @ second)
    # Of orders that are the same, z would be infinite: as if two neighbors were exchanged.
    nearly = 1 - 12 / (n * (n**2 - 1))
    bounded = min(max(rho, -nearly), nearly)
    half = stats.norm.ppf(0.975) * math.sqrt((1 + bounded**2 / 2) / (n - 3))
    z = math.atanh(bounded)
    return Correlation(
        rho=rho,
        low=min(rho, math.tanh(z - half)),
        high=max(rho, math.tanh(z + half)),
        p_value=_permuted(first, second, rho, draws),
        n=n,
    )


def _permuted(first: np.ndarray, second: np.ndarray, rho: float, draws: int) -> float:
    """Return the share of orders of the second side that correlate as strongly, in either way."""
    n = len(first)
    if math.factorial(n) <= _LABELINGS:
        orders = np.array(list(itertools.permutations(range(n))))
        return float((np.abs(second[orders] @ first) >= abs(rho) - 1e-9).mean())
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(n), (draws, 1)), axis=1)
    return float((1 + (np.abs(second[orders] @ first) >= abs(rho) - 1e-9).sum()) / (1 + draws))


def _common(table: ScoreTable, other: ScoreTable) -> tuple[dict[str, str], dict[str, str]]:
    """Return backbones and optimizers that both tables have: name in the first -> in the other."""
    theirs = {to_opt(name): name for name in other.optimizers}
    shared = {name: theirs[to_opt(name)] for name in table.optimizers if to_opt(name) in theirs}
    return _pairs(table.backbones, other.backbones), shared


def _is_enough(pairs: dict[str, str], optimizers: dict[str, str]) -> bool:
    return min(len(pairs), len(optimizers)) >= 2


def _pairs(backbones: list[str], others: list[str]) -> dict[str, str]:
    """Return the partner of each backbone that has one; no partner is taken twice."""
    known = {to_model(name): name for name in reversed(others)} | {name: name for name in others}
    pairs: dict[str, str] = {}
    for name in backbones:
        relative = find(name)
        names = (name, to_model(name), relative.model if relative else "")
        partner = next((known[n] for n in names if n in known), None)
        if partner is not None and partner not in pairs.values():
            pairs[name] = partner
    return pairs


def _told(table: ScoreTable) -> pandas.DataFrame:
    """Return what a table says of each backbone, as `Agreement.backbones` has it."""
    noise = estimate_noise(table)
    found = camps.preference(table, contrasts.category_of(table.optimizers), noise)
    costs = choice.price(table, features_of(table.backbones)["family"], noise)
    general = costs["general"].map(to_opt, na_action="ignore")
    told = found.join(costs.assign(general=general)).rename(columns=_PREFERENCE)
    return told[[*_PREFERENCE.values(), "camp", "general", "price", "price_low", "price_high"]]
