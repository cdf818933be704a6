"""What the paper publishes, as data: Li et al. 2024, arXiv 2410.06373.

| module | owns |
|---|---|
| `tables` | the published tables, one CSV file each in `published/` |
| `taxonomy` | what is known of each backbone, and which family a name belongs to |
| `categories` | the category a to d of each optimizer, also of those that came after the paper |
| `pretraining` | which weights the columns of the COCO table start from |
| `tuned_values` | tuned learning rates and weight decays, and the pairs that stand in for others |
"""

from bocb_jax.paper.tables import backbones, names, optimizers, rows, table
from bocb_jax.paper.tuned_values import STAND_INS, Tuned, most_frequent, tuned

__all__ = [
    "STAND_INS",
    "Tuned",
    "backbones",
    "most_frequent",
    "names",
    "optimizers",
    "rows",
    "table",
    "tuned",
]
