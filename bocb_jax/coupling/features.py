"""Does a feature of backbones (norm, stages, mixer, residual) predict which optimizer they prefer?

Comparing different backbones shows association, not cause: those that share a norm also share an
age, a recipe and often authors. The recipe is among the features for that reason.
"""

import numpy as np
import pandas

from bocb_jax.coupling.significance import holm
from bocb_jax.paper import taxonomy


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
    target: pandas.Series,
    features: pandas.DataFrame,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> pandas.DataFrame | None:
    """Test how well each feature alone predicts a preference on unseen families.

    The prediction for a backbone is the mean over backbones of other families with the same level,
    or of all other families if none has that level. The p-value permutes whole families, and
    compares the between-level sum of squares of their means.

    Args:
      target: preference of each backbone, such as the contrast of two categories of optimizers.
      features: from `features_of`, with a column "family".
      resamples: permutations.
      seed: of the permutations.

    Returns:
      Index feature, best skill first: levels, n (backbones), families, in_sample_r2, error (root
      mean square, leaving one family out at a time), error_without (the same without the feature),
      skill (1 - error^2 / error_without^2; below 0 the feature misleads), p_value, p_holm, helps
      (skill above 0 and p_holm below 0.05). None with fewer than four families.
    """
    rng = np.random.default_rng(seed)
    rows = {}
    for name in features.columns.drop("family"):
        both = pandas.DataFrame(
            {"y": target, "level": features[name], "family": features["family"]}
        ).dropna()
        if both["family"].nunique() < 4 or both["level"].nunique() < 2:
            continue
        y, level, family = both["y"].to_numpy(), both["level"].to_numpy(), both["family"].to_numpy()
        error, error_without = _left_out(y, level, family)
        fitted = both.groupby("level")["y"].transform("mean").to_numpy()
        spread = ((y - y.mean()) ** 2).sum()
        rows[name] = {
            "levels": both["level"].nunique(),
            "n": len(both),
            "families": both["family"].nunique(),
            "in_sample_r2": 1 - ((y - fitted) ** 2).sum() / spread if spread > 0 else np.nan,
            "error": error,
            "error_without": error_without,
            "skill": 1 - (error / error_without) ** 2 if error_without > 0 else np.nan,
            "p_value": _permutation_p(both, resamples, rng),
        }
    if not rows:
        return None
    frame = pandas.DataFrame.from_dict(rows, orient="index").rename_axis("feature")
    frame["p_holm"] = holm(frame["p_value"])
    frame["helps"] = (frame["skill"] > 0) & (frame["p_holm"] < 0.05)
    return frame.sort_values("skill", ascending=False, kind="stable")


def _left_out(y: np.ndarray, level: np.ndarray, family: np.ndarray) -> tuple[float, float]:
    """Return the root mean square error of the prediction, with the feature and without."""
    squares = np.zeros(2)
    for left in np.unique(family):
        outside = family != left
        for i in np.flatnonzero(~outside):
            same = outside & (level == level[i])
            guess = y[same].mean() if same.any() else y[outside].mean()
            squares += (y[i] - guess) ** 2, (y[i] - y[outside].mean()) ** 2
    error, error_without = np.sqrt(squares / len(y))
    return float(error), float(error_without)


def _permutation_p(both: pandas.DataFrame, resamples: int, rng: np.random.Generator) -> float:
    """Return the p-value of the between-level spread of family means.

    Args:
      both: a row per backbone: y, level, family.
      resamples: permutations.
      rng: of the permutations.
    """
    families = both.groupby("family", sort=False)
    means = families["y"].mean().to_numpy()
    levels = families["level"].agg(lambda values: values.mode().iloc[0]).to_numpy()
    names, codes = np.unique(levels.astype(str), return_inverse=True)
    if len(names) < 2:
        return np.nan
    members = np.eye(len(names))[codes]
    draws = rng.permuted(np.tile(means, (resamples, 1)), axis=1)
    between = ((np.vstack([means, draws]) @ members) ** 2 / members.sum(axis=0)).sum(axis=1)
    return float((between >= between[0] - 1e-9 * abs(between[0])).mean())
