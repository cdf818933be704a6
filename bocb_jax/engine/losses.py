"""Losses and counts over a batch of logits, in float32."""

import jax
import jax.numpy as jnp
import optax


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Softmax cross entropy of each example, in nats.

    Args:
      logits: (batch, classes).
      labels: (batch,) integers.
      smoothing: share of the label that is spread evenly over all classes
        (Szegedy et al., 2016, arXiv 1512.00567).

    Returns:
      (batch,) losses.
    """
    logits = logits.astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    if not smoothing:
        return loss
    uniform = -jax.nn.log_softmax(logits).mean(axis=-1)
    return (1 - smoothing) * loss + smoothing * uniform


def correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """(batch,) of 1.0 where the largest logit is the label's, else 0.0."""
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
