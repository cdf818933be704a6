"""The cost of an optimizer: bytes of state and seconds of an update, for given shapes.

>>> import jax
>>> params = {"kernel": jax.ShapeDtypeStruct((256, 256), "float32")}
>>> [measure(name, params, rounds=0).state_bytes // 2**18 for name in ("sgd", "adamw")]
[1, 2]
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bocb_jax.optim.masks import kinds_of
from bocb_jax.optim.muon import ORTHOGONALIZED_KINDS
from bocb_jax.optim.registry import create_optimizer, optimizer_info


def _with_l2(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """Put L2 weight decay before an optimizer."""
    return optax.chain(optax.add_decayed_weights(1e-4), optimizer)


# name -> Optax's optimizer of the same kind, weight decay included, where it has one
OPTAX_TWINS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "sgd": lambda: _with_l2(optax.sgd(0.1, 0.9)),
    "adam": lambda: _with_l2(optax.adam(5e-4)),
    "adamax": lambda: _with_l2(optax.adamax(1e-3)),
    "nadam": lambda: _with_l2(optax.nadam(5e-4)),
    "adamw": lambda: optax.adamw(5e-4, weight_decay=0.05),
    "lamb": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.lamb(5e-3, weight_decay=0.05)
    ),
    "lion": lambda: optax.lion(1e-4),
    "radam": lambda: _with_l2(optax.radam(1e-3)),
    "adan": lambda: optax.adan(2e-3, weight_decay=0.05),
    "adabelief": lambda: optax.chain(
        optax.scale_by_belief(), optax.add_decayed_weights(0.01), optax.scale(-5e-3)
    ),
    "adagrad": lambda: _with_l2(optax.adagrad(5e-4)),
    "adadelta": lambda: _with_l2(optax.adadelta(2.0)),
    "rmsprop": lambda: _with_l2(optax.rmsprop(5e-4, decay=0.99)),
    "novograd": lambda: optax.novograd(2e-3, weight_decay=0.01),
    "lars": lambda: optax.lars(1.2, weight_decay=1e-6),
    "adafactor": lambda: optax.adafactor(
        1e-2, weight_decay_rate=1e-4, min_dim_size_to_factor=1, clipping_threshold=1.0
    ),
    "prodigy": lambda: optax.contrib.prodigy(1.0, weight_decay=1e-4),
    "ademamix": lambda: optax.contrib.ademamix(5e-4, weight_decay=0.05),
    "adopt": lambda: optax.chain(
        optax.contrib.scale_by_adopt(), optax.add_decayed_weights(0.05), optax.scale(-1e-3)
    ),
    "madgrad": lambda: optax.contrib.madgrad(1e-3, weight_decay=1e-4),
    "schedule_free_sgd": lambda: optax.contrib.schedule_free_sgd(1.0, weight_decay=1e-4),
    "schedule_free_adamw": lambda: optax.contrib.schedule_free_adamw(2.5e-3, weight_decay=0.05),
}


def optax_twin(
    name: str, params: Any, parameter_kinds: Any | None
) -> optax.GradientTransformation | None:
    """Return Optax's optimizer of the same kind, or None.

    Its Muon is told which tensors ours makes orthogonal.
    """
    if name != "muon":
        return OPTAX_TWINS[name]() if name in OPTAX_TWINS else None

    def dimensions(tensor: jax.Array, kind: str) -> optax.contrib.MuonDimensionNumbers | None:
        if kind not in ORTHOGONALIZED_KINDS:
            return None
        *inputs, output = range(len(tensor.shape))
        return optax.contrib.MuonDimensionNumbers(tuple(inputs), output)

    kinds = kinds_of(params, parameter_kinds)
    return optax.contrib.muon(
        1e-3,
        weight_decay=0.05,
        muon_weight_dimension_numbers=jax.tree.map(dimensions, params, kinds),
    )


@dataclasses.dataclass(frozen=True)
class Cost:
    """Cost of one optimizer on one set of parameters."""

    name: str
    state_bytes: int
    state_bytes_per_parameter: float
    update_seconds: float | None  # median over blocks of updates; None if not measured
    optax_ratio: float | None  # median ratio to the seconds of Optax's twin; None without one


def state_bytes(optimizer: optax.GradientTransformation, params: Any) -> int:
    """Return the bytes that the state of an optimizer takes; `params` may be abstract."""
    leaves = jax.tree.leaves(jax.eval_shape(optimizer.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def measure(
    name: str,
    params: Any,
    *,
    parameter_kinds: Any | None = None,
    rounds: int = 5,
    steps: int = 10,
) -> Cost:
    """Measure an optimizer with its defaults, in turn with Optax's of the same kind.

    Args:
      name: of the optimizer. Its weight decay acts on all parameters, as in Optax.
      params: a tree of arrays or of shapes.
      parameter_kinds: as for `create_optimizer`.
      rounds: timed blocks of `steps` updates, whose median counts; 0 to time nothing.
      steps: updates of a block; ten include what Sophia and SOAP do only at every tenth.
    """
    rate = optimizer_info(name).default_learning_rate
    ours = create_optimizer(name, rate, decay_mask="all", parameter_kinds=parameter_kinds)
    size = state_bytes(ours, params)
    per_parameter = size / sum(leaf.size for leaf in jax.tree.leaves(params))
    if not rounds:
        return Cost(name, size, per_parameter, None, None)
    twin = optax_twin(name, params, parameter_kinds)
    pair = {"ours": ours} | ({"optax": twin} if twin else {})
    seconds = update_seconds(pair, params, rounds=rounds, steps=steps)
    # Block by block: blocks that are close in time share whatever else the machine does.
    ratio = np.median(seconds["ours"] / seconds["optax"]) if "optax" in seconds else None
    return Cost(name, size, per_parameter, float(np.median(seconds["ours"])), ratio)


def update_seconds(
    optimizers: Mapping[str, optax.GradientTransformation],
    params: Any,
    *,
    rounds: int = 5,
    steps: int = 10,
) -> dict[str, np.ndarray]:
    """Time the updates of optimizers, gradients given, with their addition to the parameters.

    The optimizers take turns, block by block, so that a busy machine slows all of them alike; each
    goes first in every other round.

    Args:
      optimizers: name -> optimizer.
      params: a tree of arrays or of shapes.
      rounds: blocks of each optimizer.
      steps: updates of a block.

    Returns:
      name -> mean seconds of an update in each block, shape (rounds,).
    """
    rng = np.random.default_rng(0)

    def random_tree(scale: float) -> Any:
        return jax.tree.map(
            lambda x: jnp.asarray(scale * rng.standard_normal(x.shape, np.float32), x.dtype),
            params,
        )

    grads = random_tree(1e-3)
    runs, carries = {}, {}
    for name, optimizer in optimizers.items():
        start = random_tree(0.02)
        runs[name] = _compiled_step(optimizer)
        carry = start, jax.jit(optimizer.init)(start)
        carries[name] = jax.block_until_ready(runs[name](*carry, grads))  # compiles

    blocks: dict[str, list[float]] = {name: [] for name in optimizers}
    for number in range(rounds):
        for name in list(runs)[:: 1 if number % 2 else -1]:
            run, carry = runs[name], carries[name]
            begin = time.perf_counter()
            for _ in range(steps):
                carry = run(*carry, grads)
            carries[name] = jax.block_until_ready(carry)
            blocks[name].append((time.perf_counter() - begin) / steps)
    return {name: np.array(seconds) for name, seconds in blocks.items()}


def _compiled_step(optimizer: optax.GradientTransformation) -> Callable[..., tuple[Any, Any]]:
    """Return (params, state, grads) -> (params, state), compiled; it donates the first two."""
    optimizer = optax.with_extra_args_support(optimizer)

    def step(params: Any, state: Any, grads: Any) -> tuple[Any, Any]:
        # Extra gradients are the given one: what the model costs is not the optimizer's cost.
        updates, state = optimizer.update(
            grads,
            state,
            params,
            value=jnp.zeros(()),
            key=jax.random.key(0),
            value_and_grad_fn=lambda params: (jnp.zeros(()), grads),
            sampled_label_grad_fn=lambda params, key: grads,
        )
        return optax.apply_updates(params, updates), state

    return jax.jit(step, donate_argnums=(0, 1))
