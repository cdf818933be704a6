"""The loss of heat maps."""

import jax
import jax.numpy as jnp


def heatmap_loss(predicted: jax.Array, target: jax.Array, weights: jax.Array) -> jax.Array:
    """Return the mean squared error over all pixels of all maps, float32.

    A map of weight 0 adds nothing, but counts in the denominator, as in MMPose.

    Args:
      predicted: (..., H, W, K).
      target: of the same shape.
      weights: of each map, (..., K).
    """
    error = predicted.astype(jnp.float32) - target.astype(jnp.float32)
    return jnp.mean(weights.astype(jnp.float32)[..., None, None, :] * jnp.square(error))
