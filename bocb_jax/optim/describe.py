"""All that is known of an optimizer, as rows of text."""

import inspect

from bocb_jax.optim import digits
from bocb_jax.optim.bounds import Setting
from bocb_jax.optim.registry import CATEGORIES, OptimizerInfo, optimizer_info
from bocb_jax.paper.categories import category

_NUMBERS = {
    "exact": "exact: deviates by less than 1e-9 of the distance moved, in float64",
    "eps-level": "eps-level: deviates by less than 1e-6 of the distance moved, in float64",
    "variant": "variant: another algorithm than the reference's current one; see the notes",
}


def describe(name: str) -> list[tuple[str, str]]:
    """What is known of an optimizer, as (label, text) pairs; rows without text are left out.

    >>> dict(describe("lamb"))["weight decay"]
    'decoupled, 0.05 by default'
    """
    info = optimizer_info(name)
    rows = [
        ("what", info.summary),
        ("update", formula(info)),
        ("category", _category(info)),
        ("paper", info.paper),
        ("learning rate", f"{info.default_learning_rate:g} by default"),
        ("schedule", f"{info.default_schedule} after a warm-up, by default"),
        ("weight decay", _decay(info)),
        ("tuned in BOCB", _tuned(info)),
        ("on the digits", _on_digits(name)),
        ("hyper-parameters", "\n".join(_setting(k, s) for k, s in info.settings.items())),
        ("state", f"{info.state_per_parameter:g} numbers for each parameter"),
        ("cost of an update", info.cost),
        ("asks `update` for", ", ".join(info.hooks)),
        ("evaluated at", "other parameters than it trains" if info.evaluation_parameters else ""),
        ("reference", info.reference),
        ("numbers", _NUMBERS.get(info.numeric_class, "")),
        ("notes", info.notes),
    ]
    return [(label, text) for label, text in rows if text]


def _category(info: OptimizerInfo) -> str:
    text = f"{info.category}: {CATEGORIES[info.category]}"
    if info.category == "later":
        found, reason = category(info.name)
        text += f"; {found or 'none'} by the paper's definition ({reason})"
    return text


def formula(info: OptimizerInfo) -> str:
    """The update rule: what stands in a builder's docstring between its first line and Args."""
    _, _, rest = (inspect.getdoc(info.build) or "").partition("\n")
    return rest.partition("Args:")[0].strip()


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
    found = digits.accuracies().get(name)
    if not found:
        return ""
    shown = (f"{model} {x:.1f} %" if x else f"{model} diverged" for model, x in found.items())
    text = f"{', '.join(shown)} of the test images right with these defaults"
    return text + ("; see the notes" if min(found.values()) < 80 else "")


def _setting(name: str, setting: Setting) -> str:
    default = "none" if setting.default is None else f"{setting.default}"
    limits = f"  in {setting.interval}" if setting.interval else ""
    return f"{name} = {default}{limits}"
