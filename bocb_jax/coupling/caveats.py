"""What a table cannot say, in plain sentences."""

import pandas

from bocb_jax.coupling.cells import MOST_CELLS
from bocb_jax.coupling.result import Analysis
from bocb_jax.paper.categories import category

# Sections that a table may be too small for: their name, and what they need.
_NEEDS = {
    "decomposition": ("decomposition", "two optimizers and two backbones"),
    "structure": ("axes of preference", "three optimizers and three backbones that differ"),
    "clusters": ("groups of backbones", "four backbones and three optimizers"),
    "friedman": ("test of ranks", "three optimizers on two complete backbones"),
    "nemenyi": ("critical difference", "more backbones, for any difference of ranks to reach it"),
    "category_contrast": ("contrast of categories a and b", "two optimizers of each"),
    "features": ("prediction by features", "four families of known backbones"),
    "hyperparameters": ("distances of tuned values", "learning rates and weight decays"),
}
_OF_SMALL_TABLES = ("structure", "clusters", "nemenyi")


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
            f"No feature of the backbones ({', '.join(analysis.features.index)}) predicts their "
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
    if table.one_seed and analysis.interaction is not None:
        return [
            f"No cell has two seeds ({scored} cells): intervals and tests rest on the noise that "
            "is given."
        ]
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
        cells = "1 cell" if mixed == 1 else f"{mixed} cells"
        found.append(
            f"In {cells} some seeds diverged and others did not: scores are those of the finished "
            "ones, and how many finish is a figure of its own."
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
    found = []
    full, without = analysis.decomposition, analysis.decomposition_without_failures
    if full is not None and without is not None and without.dropped:
        shares = [fit.terms.loc["interaction", "share"] for fit in (full, without)]
        if not any(map(pandas.isna, shares)):
            one = len(without.dropped) == 1
            found.append(
                f"{_listed(without.dropped)} {'is' if one else 'are'} far behind on average: the "
                f"interaction is {shares[0]:.0%} of the variance, and {shares[1]:.0%} without "
                f"{'it' if one else 'them'}. The difference is coupling too where "
                f"{'it does' if one else 'they do'} well on some backbones; only the axes of "
                f"preference leave {'it' if one else 'them'} out."
            )
    runs = analysis.table.runs
    for status, what in (("timed_out", "time"), ("out_of_memory", "memory")):
        names = pandas.unique(runs["optimizer"][runs["status"] == status])
        if len(names):
            found.append(
                f"Runs with {_listed(tuple(map(str, names)))} ran out of {what} and count as not "
                f"tried. Where an optimizer needs far more {what} than others, as Shampoo and SOAP "
                "may, that is its cost and no accident."
            )
    return found


def _listed(names: tuple[str, ...], most: int = 6) -> str:
    if len(names) > most:
        return f"{', '.join(names[:most])} and {len(names) - most} more"
    *first, last = names
    return f"{', '.join(first)} and {last}" if first else last


def _omitted(analysis: Analysis) -> list[str]:
    table = analysis.table
    rows, columns = len(table.optimizers), len(table.backbones)
    large = rows * columns > MOST_CELLS
    found = []
    if large:
        found.append(
            f"The table has {rows * columns} cells: axes of preference, groups of backbones and "
            f"tests of all pairs of optimizers are left out above {MOST_CELLS}."
        )
    missing = [name for name in _NEEDS if getattr(analysis, name) is None]
    if large:
        missing = [name for name in missing if name not in _OF_SMALL_TABLES]
    if "friedman" in missing and "nemenyi" in missing:
        missing.remove("nemenyi")
    for name in missing:
        section, needed = _NEEDS[name]
        found.append(
            f"No {section}: that takes {needed} (there are {rows} optimizers and {columns} "
            "backbones)."
        )
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
