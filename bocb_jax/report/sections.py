"""What a report says of an analysis, section by section."""

from collections.abc import Iterable

import pandas

from bocb_jax.coupling import recommend
from bocb_jax.report import section_weights, summary
from bocb_jax.coupling.analysis import Analysis
from bocb_jax.report.document import Document, HeatMap, Picture, Section, Table, Text, filled, table_of, text
from bocb_jax.report.style import label
from bocb_jax.patterns.cells import Weights


def build(
    analysis: Analysis, pictures: Iterable[str] = (), weights: Weights | None = None
) -> Document:
    """The report of an analysis.

    Args:
      analysis: of any table.
      pictures: names of those that there are.
      weights: of its runs.
    """
    pictures, table = set(pictures), analysis.table
    sections = [
        Section(
            "backbones",
            "Backbone by backbone",
            (
                Text(tuple(summary.backbone_sentence(analysis, n) for n in table.backbones), True),
                _backbones(analysis),
                _columns(analysis),
            ),
        ),
        Section("recommendation", "What to try first", _recommendation(analysis)),
        Section("table", "The table", (HeatMap(), _marks_text(analysis))),
        Section("shares", "Backbone, optimizer, coupling", _decomposition(analysis, pictures)),
        Section("optimizers", "Optimizer by optimizer", _optimizers(analysis, pictures)),
        Section("structure", "Which backbones want the same", _structure(analysis, pictures)),
        Section("ranks", "Ranks and significance", _ranks(analysis, pictures)),
        Section("tuning", "Learning rate and weight decay", _tuning(analysis, pictures)),
        Section("failures", "Cells that failed or lag behind", _failures(analysis, pictures)),
        *([] if weights is None else [section_weights.build(analysis, weights, pictures)]),
        Section("method", "How to read this", _method(analysis)),
    ]
    order = ["table", "recommendation"]
    sections.sort(key=lambda s: order.index(s.name) if s.name in order else len(order))
    return Document(
        title="Backbone-optimizer coupling",
        source=f"{table.source}; score: {table.score}, in {table.unit}",
        verdict=tuple(summary.verdict(analysis)),
        tiles=_tiles(analysis),
        warnings=tuple(dict.fromkeys([*analysis.warnings, *table.notes])),
        sections=tuple(s for s in sections if any(filled(block) for block in s.blocks)),
    )


def _pictures(found: set[str], *wanted: tuple[str, str, str]) -> tuple[Picture, ...]:
    return tuple(Picture(*entry) for entry in wanted if entry[0] in found)


def _tiles(analysis: Analysis) -> tuple[tuple[str, str], ...]:
    tiles, fit = [], analysis.decomposition
    if fit is not None:
        share = fit.terms.at["interaction", "share"]
        tiles.append(
            (text(share, "percent"), f"of the variance is coupling, n = {fit.cells} cells")
        )
        without = analysis.decomposition_without_failures
        if without is not None and without.dropped:
            share = without.terms.at["interaction", "share"]
            names = ", ".join(label(name, 12) for name in without.dropped[:3])
            more = f" and {len(without.dropped) - 3} more" if len(without.dropped) > 3 else ""
            note = f"without {names}{more}, n = {without.cells} cells"
            tiles.append((text(share, "percent"), note))
    strengths = analysis.backbones["strength"].value_counts()
    if strengths.get("strong", 0) or strengths.get("weak", 0) or strengths.get("moderate", 0):
        of = f"of {len(analysis.backbones)} backbones tightly coupled"
        tiles.append((str(int(strengths.get("strong", 0))), of))
    regret = analysis.optimizers["mean_regret"].dropna()
    if len(regret) > 1:
        name = regret.idxmin()
        note = (
            f"costs least: {regret.min():.2f} {analysis.table.unit} on average, "
            f"n = {int(analysis.optimizers.at[name, 'n'])} backbones"
        )
        tiles.append((label(name, 24), note))
    marks = analysis.marks
    tiles.append((f"{marks.outliers} of {marks.cells}", f"of the cells outliers by {marks.rule}"))
    return tuple(tiles)


def _backbones(analysis: Analysis) -> Table:
    unit, near, (close, fair) = analysis.table.unit, summary.near(analysis), analysis.near
    columns = (
        ("backbone", "backbone", "text"),
        ("strength", "coupling", "text"),
        (
            "coupling_polished", f"coupling, {unit}", "number",
            "root mean square off the medians of rows and columns, without the failing optimizers",
        ),
        ("coupling_rms", "off the additive fit", "interval", "root mean square"),
        ("coupling_rms_without_failures", "without failures", "number"),
        ("coupling_mad", "median size", "number", "median absolute coupling, times 1.4826"),
        ("best_optimizer", "best optimizer", "text"),
        ("best", "best", "number"),
        ("best_share", "stays best", "percent", "share of bootstrap resamples with the same best"),
        ("within_1", f"within {close:g}", "int", f"optimizers within {near} of the best"),
        ("within_2", f"within {fair:g}", "int"),
        ("n", "n optimizers", "int"),
        ("seeds", "seeds a cell", "int"),
        ("one_seed_cells", "cells of one seed", "int"),
        ("mean_regret", "mean regret", "number"),
        ("worst_loss", "worst coupling", "number"),
        ("worst_optimizer", "with", "text"),
        ("sgd_minus_adamw", "SGD - AdamW", "interval"),
    )  # fmt: skip
    caption = f"In {unit}; [low, high] are {100 * analysis.confidence:g} % intervals."
    return table_of(analysis.backbones, "Backbones", columns, caption, index="backbone")


def _columns(analysis: Analysis) -> Table:
    columns = [("backbone", "backbone", "text"), ("n", "n", "int")]
    columns += [(key, key, "number") for key in ("mean", "std", "range", "median", "mad")]
    columns += [("best", "best", "number"), ("best_optimizer", "with", "text"),
                ("worst", "worst", "number"), ("worst_optimizer", "with", "text"),
                ("outliers", "outliers", "int")]  # fmt: skip
    caption = (
        "mean and std as the paper takes them, without the worst and the best two; range without "
        f"the worst. Outliers by {analysis.marks.rule}."
    )
    frame = analysis.column_statistics
    return table_of(
        frame, "The paper's statistics", columns, caption, index="backbone", folded=True
    )


def _recommendation(analysis: Analysis) -> tuple:
    rows, rule = [], ""
    for name in analysis.table.backbones:
        advice = recommend.recommend(analysis.table, name)
        if advice is None or not advice.exact:
            continue
        first, rule = advice.choices[0], advice.rule
        rows.append(
            {
                "backbone": name,
                "optimizer": first.optimizer,
                "learning_rate": first.learning_rate,
                "weight_decay": first.weight_decay,
                "rates": first.rates,
                "score": first.score,
                "behind": first.behind,
                "n": first.seeds,
                "next": ", ".join(f"{c.optimizer} ({c.behind:.2f})" for c in advice.choices[1:]),
                "mean_regret": first.mean_regret,
                "candidates": advice.candidates,
            }
        )
    columns = (
        ("backbone", "backbone", "text"),
        ("optimizer", "try first", "text"),
        ("learning_rate", "learning rate", "rate"),
        ("weight_decay", "weight decay", "rate"),
        ("rates", "rates", "text"),
        ("score", "score", "number"),
        ("behind", "behind the best", "number"),
        ("n", "n", "int", "figures behind the score"),
        ("next", "then", "text"),
        ("mean_regret", "its mean regret", "number", "over all backbones"),
        ("candidates", "of optimizers", "int"),
    )
    title = "The optimizer to try first on each backbone, and the evidence"
    caption = f"In {analysis.table.unit}; in brackets how far behind the best."
    return (
        Text((rule,) if rule else ()),
        table_of(pandas.DataFrame(rows), title, columns, caption),
    )


def _marks_text(analysis: Analysis) -> Text:
    marks = analysis.marks
    return Text(
        (
            f"Marks by the rule {marks.rule}: {summary.sentence(marks.description)} "
            f"Outliers: {marks.outliers} of {marks.cells} cells.",
        )
    )


def _decomposition(analysis: Analysis, pictures: set[str]) -> tuple:
    blocks: list = [
        *_pictures(
            pictures,
            ("shares", "Shares of variance", "Stacked bars of the table's figures below."),
        )
    ]
    fits = [(analysis.decomposition, "All optimizers")]
    without = analysis.decomposition_without_failures
    if without is not None and without.dropped:
        names = ", ".join(label(name) for name in without.dropped)
        fits.append((without, f"Without {names}"))
    columns = (
        ("term", "term", "text"), ("share", "share", "percent"),
        ("omega_squared", "omega squared", "interval"),
        ("sum_of_squares", "sum of squares", "number"),
        ("degrees_of_freedom", "degrees of freedom", "int"), ("f", "F", "number"),
        ("p_value", "p", "p"),
    )  # fmt: skip
    for fit, title in fits:
        if fit is not None:
            caption = (
                f"n = {fit.runs} runs in {fit.cells} cells, {fit.replicated_cells} with two or "
                f"more; {fit.missing_cells} missing."
            )
            blocks.append(table_of(fit.terms, title, columns, caption, index="term"))
    return tuple(blocks)


def _optimizers(analysis: Analysis, pictures: set[str]) -> tuple:
    unit, near, (close, fair) = analysis.table.unit, summary.near(analysis), analysis.near
    columns = (
        ("optimizer", "optimizer", "text"),
        ("category", "category", "text"),
        ("mean_regret", f"mean regret, {unit}", "interval", "distance to the best of a backbone"),
        ("median_regret", "median", "number"),
        ("worst_regret", "worst", "number"),
        ("share_within_1", f"within {close:g}", "percent", f"share of backbones within {near}"),
        ("share_within_2", f"within {fair:g}", "percent"),
        ("coupling_rms", "coupling", "interval"),
        ("strength", "strength", "text"),
        ("worst_loss", "worst coupling", "number"),
        ("worst_backbone", "on", "text"),
        ("outliers", "outliers", "int"),
        ("failed", "failed", "int", "cells in which no run finished"),
        ("mean_score", "mean score", "number"),
        ("n", "n backbones", "int"),
        ("seeds", "seeds a cell", "int"),
        ("one_seed_cells", "cells of one seed", "int"),
    )
    caption = f"Outliers by {analysis.marks.rule}. Intervals at {100 * analysis.confidence:g} %."
    blocks = [
        *_pictures(
            pictures,
            ("regret", "Regret", "For each optimizer a dot a backbone and a bar at the mean."),
        ),
        table_of(analysis.optimizers, "Optimizers", columns, caption, index="optimizer"),
    ]
    families = analysis.families
    if families is not None:
        contrast = (
            ("backbone", "backbone", "text"), ("contrast", "contrast", "interval"),
            ("p_value", "p", "p"), ("p_holm", "p (Holm)", "p"),
            ("n_first", f"n {families.first}", "int"),
            ("n_second", f"n {families.second}", "int"),
            ("best_first", f"best of {families.first}", "text"),
            ("best_second", f"best of {families.second}", "text"),
        )  # fmt: skip
        frame = families.contrasts.copy()
        frame[["contrast_low", "contrast_high"]] = frame[["low", "high"]]
        title = f"Category {families.first} minus category {families.second}"
        blocks.append(table_of(frame, title, contrast, families.description, index="backbone"))
    return tuple(blocks)


def _structure(analysis: Analysis, pictures: set[str]) -> tuple:
    blocks = [
        *_pictures(
            pictures,
            (
                "biplot",
                "Biplot of the coupling",
                "Backbones as lines from the middle, optimizers as markers; a backbone gains with "
                "the optimizers in its direction.",
            ),
        )
    ]
    clusters = analysis.clusters
    if clusters is not None:
        groups = {}
        for name in clusters.order:
            groups.setdefault(int(clusters.labels[name]), []).append(label(name))
        if clusters.number == 1:
            lines = ("The gap statistic finds no groups of backbones with their own preferences.",)
        else:
            lines = tuple(f"Group {n}: {', '.join(names)}." for n, names in sorted(groups.items()))
        blocks.append(Text(lines, listed=clusters.number > 1))
    columns = (
        ("feature", "feature", "text"), ("kind", "kind", "text"), ("levels", "levels", "text"),
        ("n", "n backbones", "int"), ("in_sample_r2", "R² in the sample", "number"),
        ("error", "error, family left out", "number"),
        ("error_without", "error of the mean", "number"),
        ("skill", "skill", "number"), ("p_value", "p", "p"), ("helps", "helps", "text"),
    )  # fmt: skip
    caption = "Does a property of a backbone predict what it prefers, on families not seen?"
    frame = analysis.features
    if frame is not None and "helps" in frame:
        frame = frame.assign(helps=["yes" if helps else "no" for helps in frame["helps"]])
    blocks.append(table_of(frame, "Features", columns, caption, index="feature"))
    return tuple(blocks)


def _ranks(analysis: Analysis, pictures: set[str]) -> tuple:
    ranking = (
        ("overall_rank", "rank", "int"), ("optimizer", "optimizer", "text"),
        ("overall", "weighted", "number"), ("performance_rank", "performance rank", "int"),
        ("performance", "performance", "number"),
        ("hyperparameter_rank", "hyper-parameter rank", "int"),
        ("hyperparameter_distance", "distance", "number"), ("flag", "flag", "int"),
        ("computation_rank", "computation rank", "int"), ("seconds", "seconds", "number"),
    )  # fmt: skip
    pairs = (
        ("first", "first", "text"), ("second", "second", "text"), ("n", "n", "int"),
        ("median_difference", "median difference", "number"), ("p_value", "p", "p"),
        ("p_holm", "p (Holm)", "p"), ("p_family", "p over families", "p"),
        ("families", "families", "int"),
    )  # fmt: skip
    frame = analysis.pairwise
    if frame is not None:
        frame = frame.sort_values("p_value", kind="stable")
    return (
        *_pictures(
            pictures,
            ("critical_difference", "Mean ranks", "Mean rank of each optimizer, and which differ."),
            ("profiles", "Performance profiles", "Share of backbones near the best."),
        ),
        table_of(analysis.ranking, "The paper's weighted ranking", ranking, index="optimizer"),
        table_of(
            frame, "Pairs of optimizers", pairs,
            "Wilcoxon's signed-rank test over backbones, with Holm's correction.", folded=True,
        ),
    )  # fmt: skip


def _tuning(analysis: Analysis, pictures: set[str]) -> tuple:
    unit = analysis.table.unit
    blocks: list = [
        *_pictures(
            pictures,
            (
                "budget",
                "Score and coupling against tuning budget",
                "Expected best of so many trials.",
            ),
            (
                "sensitivity",
                "Sensitivity to the learning rate",
                "Distance to the best of each pair.",
            ),
            ("robustness", "Tuned values against the usual ones", "Boxes of ordinal distances."),
        )
    ]
    budget = analysis.budget
    if budget is not None:
        columns = (
            ("trials", "trials", "int"), ("interaction_std", f"coupling, {unit}", "number"),
            ("interaction_share", "share", "percent"), ("mean_regret", "mean regret", "number"),
            ("cells", "n cells", "int"),
        )  # fmt: skip
        blocks.append(
            table_of(budget.coupling, "Coupling and tuning budget", columns, index="trials")
        )
        defaults = (
            ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
            ("learning_rate", "learning rate", "rate"), ("weight_decay", "weight decay", "rate"),
            ("score", "score", "number"), ("best", "best", "number"), ("gap", "gap", "number"),
        )  # fmt: skip
        note = "Scores with the setting that won most often on the other backbones."
        blocks.append(table_of(budget.defaults, "Without tuning", defaults, note, folded=True))
        if budget.optimism is not None:
            interval = text(budget.optimism, "interval", {
                "x_low": budget.optimism_low, "x_high": budget.optimism_high}, "x")  # fmt: skip
            blocks.append(
                Text(
                    (
                        f"The winner of a search looked {interval} {unit} better there than fresh "
                        f"seeds did on the same split, n = {budget.optimism_cells} cells.",
                    )
                )
            )
    hyper = analysis.hyperparameters
    if hyper is not None:
        quartiles = (("n", "n", "int"), ("median", "median", "number"), ("mean", "mean", "number"),
                     ("q1", "1st quartile", "number"), ("q3", "3rd quartile", "number"),
                     ("max", "largest", "number"))  # fmt: skip
        for kind, frame in (("backbone", hyper.by_backbone), ("optimizer", hyper.by_optimizer)):
            title, columns = (
                f"Steps from the usual values, by {kind}",
                ((kind, kind, "text"), *quartiles),
            )
            blocks.append(
                table_of(frame, title, columns, hyper.description, index=kind, folded=True)
            )
    width = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("trials", "n trials", "int"),
        ("within", f"within {analysis.near[0]:g}", "int"), ("share", "share", "percent"),
        ("learning_rate_low", "from", "rate"), ("learning_rate_high", "to", "rate"),
        ("learning_rate_factor", "factor", "number"), ("best_learning_rate", "best rate", "rate"),
        ("best_weight_decay", "best decay", "rate"), ("at_edge", "at the edge", "text"),
    )  # fmt: skip
    near = summary.near(analysis)
    note = f"Learning rates within {near} of the best of the pair; at the edge: search further."
    frame = analysis.width
    if frame is not None and "at_edge" in frame:
        frame = frame.assign(at_edge=["yes" if edge else "" for edge in frame["at_edge"]])
    blocks.append(table_of(frame, "Width of the good region", width, note, folded=True))
    return tuple(blocks)


def _failures(analysis: Analysis, pictures: set[str]) -> tuple:
    columns = (
        ("backbone", "backbone", "text"), ("optimizer", "optimizer", "text"),
        ("label", "what happened", "text"), ("reason", "as seen in", "text"),
        ("score", "score", "number"), ("regret", "behind", "number"),
        ("train_loss", "training loss", "number"), ("n", "n", "int"),
    )  # fmt: skip
    curves = ("training_curves", "Training curves", "Score against epochs, a panel a backbone.")
    note = f"Outliers by {analysis.marks.rule}, and cells in which no run finished."
    frame = analysis.failures
    if frame is not None and "regret" in frame:
        frame = frame.sort_values("regret", ascending=False, kind="stable")
    return (table_of(frame, "Failures", columns, note), *_pictures(pictures, curves))


def _method(analysis: Analysis) -> tuple:
    percent = f"{100 * analysis.confidence:g} %"
    return (
        Text(
            (
                "Coupling is what is left of a cell's score after the mean, the effect of its "
                "backbone and the effect of its optimizer: that some optimizers are better "
                "everywhere is no coupling.",
                "Regret is the distance of a cell to the best optimizer of its backbone.",
                f"Coupling strength: {summary.sentence(analysis.strength_rule)}",
                f"Marks: {analysis.marks.rule}: {summary.sentence(analysis.marks.description)}",
                f"Intervals hold {percent}; {analysis.resamples} resamples, seed {analysis.seed}.",
                "A run that diverged scores what a guess would; one that ended for another reason "
                "has no score.",
                "Backbones differ in many ways at once, so nothing here names a cause.",
                "After Li et al., Unveiling the Backbone-Optimizer Coupling Bias in Visual "
                "Representation Learning, 2024, arXiv 2410.06373.",
            ),
            listed=True,
        ),
    )
