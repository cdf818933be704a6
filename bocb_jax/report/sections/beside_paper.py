"""The same backbones and optimizers in the paper's table of CIFAR-100."""

from bocb_jax.coupling.agreement import Agreement, Correlation
from bocb_jax.coupling.result import Analysis
from bocb_jax.coupling.rounding import p_text
from bocb_jax.report.document import Section, Text, table_from
from bocb_jax.report.wording import counted


def build(analysis: Analysis) -> Section:
    """Return the section on how far the table agrees with the paper's."""
    found = analysis.beside_paper
    title = "Beside the paper's table"
    if found is None:
        return Section("beside-paper", title, ())
    columns = (
        ("backbone", "backbone", "text"),
        ("other_backbone", "name in the paper", "text"),
        ("preference", "lead of SGD-like optimizers", "interval", "over adaptive: medians"),
        ("other_preference", "lead in the paper", "number"),
        ("camp", "who leads", "text"),
        ("other_camp", "who leads in the paper", "text"),
        ("general", "general advice", "text", "the optimizer that is best on other families"),
        ("other_general", "advice in the paper", "text"),
        ("price", "its price", "interval", "points behind the best"),
        ("other_price", "price in the paper", "number"),
    )
    caption = (
        f"Both sides over the {counted(len(found.optimizers), 'optimizer')} in common and these "
        "backbones alone. The paper trained nets of full size on CIFAR-100 for 200 epochs."
    )
    table = table_from(
        found.backbones, "Here and in the paper", columns, caption, index="backbone", stacked=True
    )
    return Section("beside-paper", title, (Text(tuple(sentences(found))), table))


def sentences(found: Agreement) -> list[str]:
    """Return what two tables agree on, in sentences."""
    said = [
        f"{len(found.backbones)} of these backbones, or nets that they are sizes of, are in the "
        "paper's CIFAR-100 table."
    ]
    if found.decided:
        low, high = found.same_camp_low, found.same_camp_high
        said.append(
            f"Of {found.decided} on which one kind of optimizers leads in both tables, it is the "
            f"same kind on {found.same_camp} ({found.same_camp / found.decided:.0%}, 95 percent "
            f"interval {low:.0%} to {high:.0%})."
        )
    for name, correlation in (
        ("By how much SGD-like optimizers lead", found.preference),
        ("The price of general advice", found.price),
    ):
        if correlation is not None:
            said.append(f"{name} correlates with the paper's {_told(correlation)}.")
    return said


def _told(found: Correlation) -> str:
    return (
        f"by {found.rho:z.2f} (Spearman, {found.n} backbones; 95 percent interval {found.low:z.2f} "
        f"to {found.high:z.2f}, {p_text(found.p_value)})"
    )
