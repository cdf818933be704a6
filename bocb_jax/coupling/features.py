"""Does a feature of backbones (norm, stages, mixer, residual) predict which optimizer they prefer?

Comparing different backbones shows association, not cause: those that share a norm also share an
age, a recipe and often authors. The recipe is among the features for that reason.
"""

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas

from bocb_jax.coupling.significance import holm
from bocb_jax.paper import taxonomy

# All assignments of levels to families are gone through if there are no more than these.
_MOST_ASSIGNMENTS = 20_000


def features_of(backbones: list[str], extra: pandas.DataFrame | None = None) -> pandas.DataFrame:
    """Return the features of backbones, by the paper's names or this project's.

    A backbone that `taxonomy.find` does not know is a family of its own, without features.

    Args:
      backbones: names.
      extra: further features, indexed by backbone; a column "family" overrides the family.

    Returns:
      Index backbone: family, norm, stages, stem, mixer, residual, recipe, and those of `extra`.
    """
    found = {name: _features(name) for name in backbones}
    columns = ["family", "norm", "stages", "stem", "mixer", "residual", "recipe"]
    frame = pandas.DataFrame.from_dict(found, orient="index").reindex(columns=columns)
    frame = frame.reindex(backbones).rename_axis("backbone")
    if extra is not None:
        for column in extra:
            frame[column] = (
                extra[column]
                .reindex(frame.index)
                .combine_first(frame.get(column, pandas.Series(index=frame.index, dtype=object)))
            )
    return frame


def _features(name: str) -> dict[str, str]:
    known = taxonomy.find(name)
    if known is None:
        return {"family": name}
    return {
        "family": known.family,
        "norm": known.norm,
        "stages": known.stages,
        "stem": known.stem,
        "mixer": known.mixer,
        "residual": known.residual,
        "recipe": known.training_setting,
    }


def predict(
    preference: pandas.Series,
    features: pandas.DataFrame,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pandas.DataFrame | None:
    """Test how well each feature alone predicts a preference on families that were left out.

    The preference is predicted twice: its rank among the backbones, so that one that fails with a
    whole group of optimizers does not decide alone, and its sign, which is the camp. The prediction
    for a backbone is the mean over backbones of other families with the same level, or of all other
    families if none has that level. The p-values are those of the spread of family means between
    levels when levels are dealt to families anew: all ways where they are few, else random ones.

    Args:
      preference: of each backbone, such as SGD-like minus adaptive optimizers in points.
      features: from `features_of`, with a column "family".
      resamples: ways to deal levels to families, where all would be more than 20,000.
      seed: of these.

    Returns:
      Index feature, best skill first: levels, n (backbones), families, skill (of ranks:
      1 - squared error / squared error without the feature; below 0 the feature misleads),
      p_value, p_holm (over the features), sign_skill, sign_p_value, sign_p_holm (the same of
      signs; NaN if all backbones have one sign), assignments (ways to deal the levels), exact
      (whether these were all), helps (skill above 0 and p_holm below 0.05, of ranks). None with
      fewer than four families.
    """
    rng = np.random.default_rng(seed)
    rows = {}
    for name in features.columns.drop("family"):
        both = pandas.DataFrame(
            {"y": preference, "level": features[name], "family": features["family"]}
        ).dropna()
        if both["family"].nunique() < 4 or both["level"].nunique() < 2:
            continue
        scales = np.stack([both["y"].rank().to_numpy(), np.sign(both["y"].to_numpy())])
        skill = [_skill(y, both["level"].to_numpy(), both["family"].to_numpy()) for y in scales]
        p_values, assignments, exact = _permutation_p(scales, both, resamples, rng)
        rows[name] = {
            "levels": both["level"].nunique(),
            "n": len(both),
            "families": both["family"].nunique(),
            "skill": skill[0],
            "p_value": p_values[0],
            "sign_skill": skill[1],
            "sign_p_value": p_values[1],
            "assignments": assignments,
            "exact": exact,
        }
    if not rows:
        return None
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("feature")
    frame.insert(5, "p_holm", holm(frame["p_value"]))
    frame.insert(8, "sign_p_holm", holm(frame["sign_p_value"]))
    frame["helps"] = (frame["skill"] > 0) & (frame["p_holm"] < 0.05)
    return frame.sort_values("skill", ascending=False, kind="stable")


def _skill(y: np.ndarray, level: np.ndarray, family: np.ndarray) -> float:
    """Return 1 - squared error / squared error without the feature, families left out in turn."""
    squares = np.zeros(2)
    for left in np.unique(family):
        outside = family != left
        for i in np.flatnonzero(~outside):
            same = outside & (level == level[i])
            guess = y[same].mean() if same.any() else y[outside].mean()
            squares += (y[i] - guess) ** 2, (y[i] - y[outside].mean()) ** 2
    return float(1 - squares[0] / squares[1]) if squares[1] > 0 else math.nan


def _permutation_p(
    scales: np.ndarray, both: pandas.DataFrame, resamples: int, rng: np.random.Generator
) -> tuple[np.ndarray, int, bool]:
    """Return the p-values of the between-level spread of family means.

    Args:
      scales: (2, backbones) what is predicted; a scale without differences gets NaN.
      both: a row per backbone: level, family.
      resamples: random assignments, where there are too many to go through.
      rng: of these.

    Returns:
      (2,) p-values, the number of assignments, and whether these were all.
    """
    families = both.groupby("family", sort=False)
    means = np.stack(
        [pandas.Series(y).groupby(families.ngroup().to_numpy()).mean() for y in scales]
    )
    levels = families["level"].agg(lambda values: values.mode().iloc[0]).to_numpy()
    codes = np.unique(levels.astype(str), return_inverse=True)[1]
    counts = np.bincount(codes)
    if len(counts) < 2:
        return np.full(2, np.nan), 0, True
    ways = math.factorial(len(codes)) // math.prod(map(math.factorial, counts.tolist()))
    exact = ways <= _MOST_ASSIGNMENTS
    if exact:
        dealt = np.array(list(_assignments(tuple(counts.tolist()))))
    else:
        dealt = np.vstack([codes, rng.permuted(np.tile(codes, (resamples, 1)), axis=1)])
    p_values = np.full(2, np.nan)
    for scale, values in enumerate(means):
        if not np.ptp(scales[scale]) > 0:
            continue

        def between(codes: np.ndarray, values: np.ndarray = values) -> np.ndarray:
            sums = [((codes == level) @ values) ** 2 / n for level, n in enumerate(counts)]
            return np.sum(sums, axis=0)

        own = between(codes)
        p_values[scale] = (between(dealt) >= own - 1e-9 * abs(own)).mean()
    return p_values, ways if exact else resamples, exact


def _assignments(counts: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield every way to deal levels 0, 1, ... to places, level i to counts[i] of them."""
    places = sum(counts)
    if len(counts) == 1:
        yield np.zeros(places, int)
        return
    for chosen in itertools.combinations(range(places), counts[-1]):
        taken = np.zeros(places, bool)
        taken[list(chosen)] = True
        for rest in _assignments(counts[:-1]):
            dealt = np.full(places, len(counts) - 1)
            dealt[~taken] = rest
            yield dealt
