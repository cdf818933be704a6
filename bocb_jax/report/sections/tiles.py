"""The key figures at the top of the page."""

from bocb_jax.coupling.result import Analysis
from bocb_jax.report import advice, wording
from bocb_jax.report.style import label
from bocb_jax.report.wording import counted, gap, is_known


def build(analysis: Analysis) -> tuple[tuple[str, str], ...]:
    """Return pairs of a figure and its meaning."""
    found = [*_camps(analysis), *_price(analysis), *_portfolio(analysis), *_stakes(analysis)]
    return tuple(found[:5])


def _camps(analysis: Analysis) -> list[tuple[str, str]]:
    told = list(advice.told_camps(analysis).values())
    sgd, adaptive = told.count("SGD-like"), told.count("adaptive")
    if not sgd + adaptive:
        return []
    note = f"backbones on which SGD-like optimizers lead, and adaptive ones, of {len(told)}"
    return [(f"{sgd} : {adaptive}", note)]


def _price(analysis: Analysis) -> list[tuple[str, str]]:
    price, table = analysis.price.dropna(subset="price"), analysis.table
    fails = price["fails"].astype(bool)
    measured = price[~fails]
    if measured.empty:
        return []
    name = measured["price"].idxmax()
    row = measured.loc[name]
    note = (
        f"behind, the highest price of general advice: {label(row['general'], 20)} on "
        f"{label(name, 20)}{advice.between(table, row)}"
    )
    if fails.any():
        where = wording.listed([label(other, 20) for other in price.index[fails]], 3)
        note += f"; on {where} it does not finish"
    return [(wording.with_unit(table, row["price"]), note)]


def _portfolio(analysis: Analysis) -> list[tuple[str, str]]:
    found = []
    most = 2 if len(analysis.table.backbones) >= 4 else 1
    for _, row in analysis.portfolio.loc[:most].iterrows():
        if not is_known(row["mean"]) or len(analysis.table.optimizers) < 2:
            continue
        mean, worst = (gap(analysis.table, row[key], fine=True) for key in ("mean", "worst"))
        names = " + ".join(label(name, 14) for name in row["optimizers"])
        found.append((names, f"{mean} lost on average, {worst} at worst"))
    return found


def _stakes(analysis: Analysis) -> list[tuple[str, str]]:
    largest = analysis.stakes["largest"].dropna()
    if largest.empty or analysis.regret.notna().sum().max() < 2:
        return []
    name = largest.idxmax()
    worst = analysis.stakes.at[name, "worst"]
    if worst is None:
        return []
    note = f"behind, the worst choice: {label(worst, 20)} on {label(name, 20)}"
    count = int(analysis.stakes["beyond"].map(len).sum())
    note += f"; {counted(count, 'cell')} over {advice.far(analysis.table)}"
    return [(wording.with_unit(analysis.table, largest[name]), note)]
