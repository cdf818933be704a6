"""A net in evaluation mode as a pure function, for weights that nothing trains."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.engine.passes import view, weights_of
from bocb_jax.engine.state import Params
from bocb_jax.engine.task import Outputs

Forward = Callable[[Params, jax.Array], Outputs]


def forward_of(model: nnx.Module) -> Forward:
    """Return a function from "params" and "model_state" and from images to float32 outputs.

    Args:
      model: the net; one of shapes only will do.
    """
    graph = nnx.graphdef(view(model, training=False))

    def forward(weights: Params, images: jax.Array) -> Outputs:
        net = nnx.merge(graph, weights["params"], weights["model_state"])
        return jax.tree.map(lambda x: x.astype(jnp.float32), net(images))

    return forward


def whole_weights(model: nnx.Module) -> Params:
    """Return "params" and "model_state"; what is a shape only, such as the key of a dropout, is 0.

    Args:
      model: whose parameters and running statistics have values.
    """

    def value(leaf: jax.Array | jax.ShapeDtypeStruct) -> jax.Array:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            key = jax.random.key(0)
            return jax.random.split(key, leaf.shape) if leaf.shape else key
        return jnp.zeros(leaf.shape, leaf.dtype)

    return jax.tree.map(value, weights_of(model))
