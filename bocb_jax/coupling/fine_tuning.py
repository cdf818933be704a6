"""Which optimizer to fine-tune with after a pre-training, from tables with pre-trained weights."""

import dataclasses

import numpy as np

from bocb_jax.coupling import recommend
from bocb_jax.coupling.pretraining import Pretraining, analyze_pretraining
from bocb_jax.coupling.recommend import Advice
from bocb_jax.coupling.replicates import START_COLUMNS
from bocb_jax.coupling.score_table import ScoreTable
from bocb_jax.paper.categories import to_opt


@dataclasses.dataclass(frozen=True)
class FineTuning:
    """What to fine-tune with, and what is known of the optimizer of pre-training."""

    advice: Advice
    pretrained_with: str | None  # whose weights the advice is for; None: those of all
    lines: tuple[str, ...]  # on pre-training, in sentences


def advise(
    table: ScoreTable, model: str | None, pretrained_with: str | None, *, most: int = 3
) -> FineTuning | None:
    """Return what to fine-tune with.

    Args:
      table: of detection, pose estimation or another task.
      model: a backbone; None for all together.
      pretrained_with: the optimizer that trained its weights, under any of its names; None where
        that is not known.
      most: largest number of choices.

    Returns:
      None where the table has no two optimizers to choose among.
    """
    part, name, why = _after(table, pretrained_with)
    known = part.backbones
    wanted = known[0] if model is None and len(known) == 1 else model
    advice = recommend.recommend(part, wanted or "any backbone", most=most)
    if advice is None:
        return None
    if wanted is None:
        advice = dataclasses.replace(advice, why=f"Over all {len(known)} backbones.")
    found = analyze_pretraining(table, resamples=200)
    lines = (why, *_lines(table, found, advice.backbone, name))
    return FineTuning(advice, name, tuple(line for line in lines if line))


def _after(table: ScoreTable, pretrained_with: str | None) -> tuple[ScoreTable, str | None, str]:
    """Return the runs after one pre-training by backbone, the name of it, and a sentence."""
    runs = table.runs
    if not {*START_COLUMNS} <= {*runs.columns} or runs["pretrained_with"].isna().all():
        return table, None, "These runs do not say what trained the weights that they start from."
    runs = runs[runs["pretrained_with"].notna()]
    names = list(dict.fromkeys(runs["pretrained_with"]))
    there = f"There are: {', '.join(names)}."
    if pretrained_with is None:
        chosen = None
        why = f"For weights of all pre-trainings together; --pretrained-with names one. {there}"
    else:
        asked = to_opt(pretrained_with).lower()
        same = (name for name in names if asked in (to_opt(name).lower(), name.lower()))
        chosen = next(same, None)
        why = f"For weights that were pre-trained with {chosen}."
        if chosen is None:
            why = f"No run here starts from weights of {pretrained_with}, so all stand in. {there}"
    if chosen is not None:
        runs = runs[runs["pretrained_with"] == chosen]
    # Weights of one optimizer, such as those of RSB A1, A2 and A3, are repetitions of it.
    runs = runs.assign(backbone=runs["base_backbone"], seed=np.arange(len(runs)))
    part = dataclasses.replace(table, runs=runs.reset_index(drop=True), trials=None)
    return part, chosen, why


def _lines(
    table: ScoreTable, found: Pretraining | None, backbone: str | None, name: str | None
) -> list[str]:
    """Return what the table says of the optimizer of pre-training on a backbone."""
    if found is None or backbone not in found.backbones.index:
        return ["Each backbone starts from weights of one optimizer here: what others would do is "
                "not known."] if backbone is not None else []  # fmt: skip
    words = {
        "yes": "constrains that of fine-tuning here",
        "not shown": "is not shown to constrain that of fine-tuning here",
        "not known": "may or may not constrain that of fine-tuning: no cell is repeated",
    }
    lines = [f"The optimizer of pre-training {words[found.verdict]}."]
    rows = found.columns[
        (found.columns["backbone"] == backbone) & (found.columns["pretrained_with"] == name)
    ]
    for _, row in rows.iterrows():
        if isinstance(row["general"], str) and np.isfinite(row["price"]):
            costs = f"costs {_distance(table, row['price'])}"
            lines.append(
                f"Without knowing that it was {name} one would take {row['general']}, which "
                f"{'does not finish' if row['fails'] else costs}."
            )
        if isinstance(row["own"], str):
            side = "ahead of" if row["gain"] >= 0 else "behind"
            lines.append(
                f"{row['own']} itself ends {_distance(table, abs(row['gain']))} {side} the best "
                f"other one, {row['other']}."
            )
    return lines


def _distance(table: ScoreTable, value: float) -> str:
    digits = 2 if table.relative else 3
    return f"{table.distances(value):.{digits}g} {table.distance_unit}"
