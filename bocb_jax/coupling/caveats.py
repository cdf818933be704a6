"""What a table cannot say, in plain sentences."""

import pandas

from bocb_jax.coupling.result import Analysis
from bocb_jax.paper.categories import category


def warn(analysis: Analysis) -> list[str]:
    """Return sentences on an analysis: its noise, gaps, omissions and what it cannot show."""
    table = analysis.table
    found = list(table.notes)
    found += _seeds(analysis)
    found += _gaps(analysis)
    found += _failures(analysis)
    found += _omitted(analysis)
    found += _search(analysis)
    if analysis.features is not None and not analysis.features["helps"].any():
        families = int(analysis.features["families"].max())
        found.append(
            "No feature of the backbones (norm, stages, mixer, residual, recipe) predicts their "
            f"preference on a family it has not seen, after Holm's correction (n = {families} "
            "families)."
        )
    found.append(
        "Backbones differ in many things at once: nothing here says why one of them prefers an "
        "optimizer."
    )
    return found


def _seeds(analysis: Analysis) -> list[str]:
    table = analysis.table
    counts = table.counts()
    single, scored = int((counts == 1).to_numpy().sum()), int((counts > 0).to_numpy().sum())
    if table.one_seed:
        return [
            f"No cell has two seeds ({scored} cells): coupling cannot be told from noise, so there "
            "are no intervals, and the only test of the interaction is Tukey's, which detects one "
            "form of it."
        ]
    found = []
    if single:
        found.append(
            f"{single} of {scored} cells have one seed; their noise is taken to be that of the "
            "others."
        )
    finished = table.runs["status"] == "finished"
    pairs = [table.runs["optimizer"], table.runs["backbone"]]
    diverged = (table.runs["status"] == "diverged").groupby(pairs).any()
    mixed = int((finished.groupby(pairs).any() & diverged).sum())
    if mixed:
        found.append(
            f"In {mixed} cells some seeds diverged and others did not: the noise differs over the "
            "table, and intervals that pool it are rough."
        )
    return found


def _gaps(analysis: Analysis) -> list[str]:
    matrix = analysis.table.matrix()
    missing = int(matrix.isna().to_numpy().sum())
    if not missing:
        return []
    return [
        f"{missing} of {matrix.size} cells have no score: effects are those of least squares over "
        "the others, and rank tests leave out incomplete backbones."
    ]


def _failures(analysis: Analysis) -> list[str]:
    full, without = analysis.decomposition, analysis.decomposition_without_failures
    if full is None or without is None or not without.dropped:
        return []
    *first, last = without.dropped
    names = f"{', '.join(first)} and {last}" if first else last
    shares = [fit.terms.loc["interaction", "share"] for fit in (full, without)]
    verb = "fails" if len(without.dropped) == 1 else "fail"
    return [
        f"{names} {verb} on the whole (mean regret). Coupling is {shares[0]:.0%} of the variance "
        f"with them and {shares[1]:.0%} without."
    ]


def _omitted(analysis: Analysis) -> list[str]:
    table = analysis.table
    rows, columns = len(table.optimizers), len(table.backbones)
    reasons = {
        "decomposition": "a decomposition needs two optimizers and two backbones",
        "structure": "axes of preference need three optimizers and three backbones that differ",
        "clusters": "groups of backbones need four of them and three optimizers",
        "friedman": "a test of ranks needs three optimizers on two complete backbones",
        "category_contrast": "a contrast of categories a and b needs two optimizers of each",
        "features": "predicting a preference needs four families of known backbones",
        "hyperparameters": "distances of tuned values need learning rates and weight decays",
    }
    found = [
        f"No {name.replace('_', ' ')}: {reason} (there are {rows} optimizers and {columns} "
        "backbones)."
        for name, reason in reasons.items()
        if getattr(analysis, name) is None
    ]
    unknown = analysis.optimizers.index[analysis.optimizers["category"].isna()]
    if len(unknown) and analysis.category_contrast is not None:
        listed = "; ".join(f"{name} ({category(name)[1]})" for name in unknown[:4])
        more = f"; and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        found.append(f"Of no known category, so in no contrast: {listed}{more}.")
    nemenyi = analysis.nemenyi
    if nemenyi is not None and (nemenyi.backbones < columns or len(nemenyi.mean_ranks) < rows):
        found.append(
            f"Rank tests use {len(nemenyi.mean_ranks)} of {rows} optimizers on "
            f"{nemenyi.backbones} of {columns} backbones, those without gaps."
        )
    return found


def _search(analysis: Analysis) -> list[str]:
    if analysis.table.trials is None:
        return [
            "The trials of the search are not in the table, so a cost of tuning cannot be told "
            "from a ceiling."
        ]
    found = []
    if analysis.budget is None:
        found.append("No pair has two trials with a score: nothing can be said on tuning.")
    if analysis.width is not None and analysis.width["at_edge"].any():
        pairs = _named(analysis.width[analysis.width["at_edge"]])
        found.append(
            f"The best setting is at the edge of the search for {pairs}: a wider search may score "
            "better."
        )
    return found


def _named(rows: pandas.DataFrame, most: int = 3) -> str:
    names = [f"{row.backbone} with {row.optimizer}" for row in rows.itertuples()]
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
