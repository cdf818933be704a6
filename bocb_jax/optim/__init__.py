"""Optimizers, made by name, with a learning rate and a weight decay that are arrays of the state.

>>> from bocb_jax import optim
>>> optimizer = optim.create_optimizer("lamb", optim.schedules.warmup_cosine(5e-3, 10, 100))
>>> optim.optimizer_info("lamb").category
'b'
"""

from bocb_jax.optim import masks, schedules
from bocb_jax.optim.injected import (
    OptimizerState,
    current_learning_rate,
    set_hyperparameters,
)
from bocb_jax.optim.registry import (
    OptimizerInfo,
    create_optimizer,
    list_optimizers,
    optimizer_info,
    register_optimizer,
)

# Each of these registers its optimizers when it is imported.
from bocb_jax.optim import (  # isort: skip  # noqa: F401
    adabelief,
    adabound,
    adafactor,
    adagrad,
    adam_mini,
    adan,
    from_optax,
    lamb,
    lars,
    later_from_optax,
    madgrad,
    mars,
    muon,
    nadam,
    novograd,
    prodigy,
    psgd_kron,
    projection,
    radam,
    schedule_free,
    shampoo,
    soap,
    sophia,
)
from bocb_jax.optim import wrappers  # isort: skip  # noqa: F401


__all__ = [
    "OptimizerInfo",
    "OptimizerState",
    "create_optimizer",
    "current_learning_rate",
    "list_optimizers",
    "masks",
    "optimizer_info",
    "register_optimizer",
    "schedules",
    "set_hyperparameters",
]
