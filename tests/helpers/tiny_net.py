"""A net of four tensors, and what the trainer passes to an optimizer, for tests of optimizers."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax


def tiny_params(seed: int = 0, dtype: Any = jnp.float32) -> Any:
    """Return a convolution kernel, a matrix, a position table and a vector, drawn from a seed."""
    shapes = {
        "blocks": {0: {"conv": {"kernel": (2, 1, 4, 6)}, "norm": {"scale": (6,)}}},
        "head": {"kernel": (6, 3)},
        "pos_embed": (1, 8),
    }
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda x: isinstance(x, tuple))
    draw = np.random.default_rng(seed)
    return tree.unflatten([jnp.asarray(0.3 * draw.standard_normal(s), dtype) for s in leaves])


def logits_of(params: Any) -> jax.Array:
    """Return the (16, 3) logits of a two-layer net on 16 fixed inputs of 8 numbers."""
    x = jnp.asarray(np.random.default_rng(1).standard_normal((16, 8)), jnp.float32)
    block = params["blocks"][0]
    hidden = (x + params["pos_embed"]) @ block["conv"]["kernel"].reshape(8, 6)
    return jnp.tanh(hidden * block["norm"]["scale"][None]) @ params["head"]["kernel"]


def loss_of(params: Any, labels: jax.Array | None = None) -> jax.Array:
    """Return the mean cross-entropy, by default for fixed labels."""
    labels = jnp.arange(16) % 3 if labels is None else labels
    return optax.softmax_cross_entropy_with_integer_labels(logits_of(params), labels).mean()


def extra_args(params: Any, key: jax.Array) -> dict[str, Any]:
    """Return the extra arguments that the trainer passes to every update."""

    def sampled_label_grad_fn(params: Any, key: jax.Array) -> Any:
        labels = jax.random.categorical(key, logits_of(params))
        return jax.grad(loss_of)(params, labels)

    return {
        "value": loss_of(params),
        "key": key,
        "value_and_grad_fn": jax.value_and_grad(loss_of),
        "sampled_label_grad_fn": sampled_label_grad_fn,
    }


def assert_same(a: Any, b: Any, **tolerance: float) -> None:
    """Compare two trees leaf by leaf, with the tolerance of `np.testing.assert_allclose`."""
    for path, x in jax.tree_util.tree_leaves_with_path(a):
        y = dict(jax.tree_util.tree_leaves_with_path(b))[path]
        np.testing.assert_allclose(x, y, err_msg=jax.tree_util.keystr(path), **tolerance)
