"""The optimizer of pre-training as a third factor."""

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import pretraining, wording
from bocb_jax.report.document import Section, Text, table_from
from bocb_jax.report.wording import labels, listed


def build(analysis: Analysis) -> Section:
    """Return the section on pre-training; without blocks where all weights start at random."""
    found, table = analysis.pretraining, analysis.table
    unit = table.distance_unit
    title = "Pre-training and fine-tuning"
    if found is None:
        return Section("pretraining", title, ())
    columns = (
        ("backbone", "backbone", "text"),
        ("pretrained_with", "pre-trained with", "text"),
        ("best", "best for fine-tuning", "text"),
        ("best_score", f"reaches, {table.score_unit}", "number"),
        ("within", "close to it", "int", "optimizers that are as good, by the usual distance"),
        ("n", "of", "int"),
        ("sgd_like", "best SGD-like behind by", "number"),
        ("own_regret", "the same optimizer behind by", "number"),
        ("gain", "its gain over the best other", "interval"),
        ("general", "chosen without knowing", "text", "best after the other pre-trainings"),
        ("price", "costs", "interval"),
    )
    cells = found.cells.pivot_table(
        index=["backbone", "optimizer"], columns="pretrained_with", values="score", sort=False
    )
    cells = table.as_measured(cells)
    starts = wording.distances(table, found.columns, "sgd_like", "own_regret", "gain", "price")
    starts = wording.without_failed(starts).assign(
        best_score=table.as_measured(starts["best_score"])
    )
    keys = {f"with {name}": name for name in cells.columns}
    scores = cells.rename(columns={name: key for key, name in keys.items()}).reset_index()
    each = (
        ("backbone", "backbone", "text"),
        ("optimizer", "fine-tuned with", "text"),
        *(
            (key, f"pre-trained with {listed(labels([name]))}", "number")
            for key, name in keys.items()
        ),
    )
    tests = found.backbones[found.backbones["test"].notna()].assign(
        names=lambda frame: [listed(labels(names)) for names in frame["pretrained_with"]]
    )
    tests = wording.distances(table, tests, "interaction", "match")
    behind = (
        ("backbone", "backbone", "text"),
        ("names", "pre-trained with", "text"),
        ("starts", "sets of weights", "int"),
        ("interaction", f"interaction, {unit}", "interval", "standard deviation without noise"),
        ("share", "share of the variance", "percent"),
        ("p_holm", "p (Holm)", "p"),
        ("match", "gain of the same optimizer", "interval", "beyond what both add up to"),
        ("test", "test", "text"),
    )
    return Section(
        "pretraining",
        title,
        (
            Text(tuple(pretraining.sentences(analysis)), listed=True),
            table_from(
                starts,
                "After each pre-training",
                columns,
                "Chosen without knowing: the optimizer that loses least after the other "
                f"pre-trainings. Brackets: {100 * found.confidence:g} %, which hold whichever "
                "optimizer is the best other.",
                stacked=True,
            ),
            table_from(
                tests, "The interaction on each backbone", behind, index="backbone", stacked=True
            ),
            table_from(scores, "All scores", each, folded=True),
        ),
    )
