"""How strongly backbones and optimizers are coupled: statistics of tables of scores.

| module | holds |
|---|---|
| `scores`, `score_table`, `curves` | tables of scores from the paper, a CSV file or a sweep |
| `analysis`, `result` | `analyze`, and the `Analysis` that it returns |
| `cells`, `decomposition`, `noncentral` | shares of variance, coupling of each row and column |
| `significance`, `contrasts`, `features` | tests, categories of optimizers, features of backbones |
| `interaction`, `claims` | is there any coupling; the paper's claims against a table |
| `noise`, `best`, `costs`, `choice` | what a choice costs, and how sure that is |
| `camps`, `portfolio` | who favors what, and which few optimizers do for all |
| `margins` | every backbone and optimizer in figures |
| `outliers`, `failures`, `caveats` | what stands out, and what limits the verdict |
| `ranking`, `structure` | rankings and profiles, axes and clusters |
| `tuning`, `trials` | cost of tuning, the expected best of k trials |
| `replicates`, `pretraining`, `starts` | does the optimizer of pre-training constrain the choice |
| `agreement` | how far two tables agree, such as yours and the paper's |
| `recommend`, `placement` | what to try first, and published backbones that are similar |
"""

from typing import Any

__all__ = ["analyze"]


def __getattr__(name: str) -> Any:
    # Imported when first asked for, because the statistics take a second to import.
    if name == "analyze":
        from bocb_jax.coupling.analysis import analyze

        return analyze
    raise AttributeError(f"module 'bocb_jax.coupling' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
