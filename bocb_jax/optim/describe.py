"""The description of an optimizer: what is known of it, as rows of text."""

from bocb_jax.optim import digits_accuracy
from bocb_jax.optim.bounds import Hyperparameter
from bocb_jax.optim.registry import CATEGORIES, OptimizerInfo, formula_of, optimizer_info
from bocb_jax.paper.categories import category

_PARITY = {
    "exact": "exact: deviates by less than 1e-9 of the distance moved, in float64",
    "eps-level": "eps-level: deviates by less than 1e-6 of the distance moved, in float64",
    "variant": "variant: another algorithm than the reference's current one; see the notes",
}


def describe(name: str) -> list[tuple[str, str]]:
    """Return what is known of an optimizer as (label, text) pairs, without those that are empty.

    >>> dict(describe("lamb"))["weight decay"]
    'decoupled, 0.05 by default'
    """
    info = optimizer_info(name)
    rows = [
        ("what", info.summary),
        ("update", formula_of(info.build)),
        ("category", _category(info)),
        ("paper", info.paper),
        ("learning rate", f"{info.default_learning_rate:g} by default"),
        ("schedule", f"{info.default_schedule} after a warm-up, by default"),
        ("weight decay", _decay(info)),
        ("tuned in BOCB", _tuned(info)),
        ("on the digits", _on_digits(name)),
        (
            "hyper-parameters",
            "\n".join(_hyperparameter(*item) for item in info.hyperparameters.items()),
        ),
        ("state", f"{info.state_per_parameter:g} numbers for each parameter"),
        ("cost of an update", info.cost),
        ("`update` needs", ", ".join(info.extra_args)),
        ("evaluated at", "other parameters than it trains" if info.evaluation_parameters else ""),
        ("reference", info.reference),
        ("parity", _PARITY.get(info.numeric_class, "")),
        ("notes", info.notes),
    ]
    return [(label, text) for label, text in rows if text]


def _category(info: OptimizerInfo) -> str:
    text = f"{info.category}: {CATEGORIES[info.category]}"
    if info.category == "later":
        found, reason = category(info.name)
        text += f"; {found or 'none'} by the paper's definition ({reason})"
    return text


def _decay(info: OptimizerInfo) -> str:
    if not info.decays:
        return "none"
    first, *others = info.decays
    either = f" (or {', '.join(others)})" if others else ""
    return f"{first}{either}, {info.default_weight_decay:g} by default"


def _tuned(info: OptimizerInfo) -> str:
    if not info.paper_learning_rate:
        return ""
    rates = " or ".join(f"{x:g}" for x in info.paper_learning_rate)
    decays = " or ".join(f"{x:g}" for x in info.paper_weight_decay)
    return f"most often learning rate {rates}, weight decay {decays}"


def _on_digits(name: str) -> str:
    found = digits_accuracy.accuracies().get(name)
    if not found:
        return ""
    shown = (f"{model} {x:.1f} %" if x else f"{model} diverged" for model, x in found.items())
    text = f"test accuracy {', '.join(shown)} with these defaults"
    return text + ("; see the notes" if min(found.values()) < 80 else "")


def _hyperparameter(name: str, known: Hyperparameter) -> str:
    default = "none" if known.default is None else f"{known.default}"
    limits = f"  in {known.interval}" if known.interval else ""
    return f"{name} = {default}{limits}"
