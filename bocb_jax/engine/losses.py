"""Losses and accuracy of each example of a batch, in float32."""

import jax
import jax.numpy as jnp
import optax


def loss(name: str, logits: jax.Array, targets: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Return the loss of each example, by name.

    Args:
      name: "cross_entropy", of the softmax, in nats; "bce", binary cross entropy averaged over the
        classes, as in timm; "bce_sum", the same summed over the classes, as in OpenMMLab.
      logits: (batch, classes).
      targets: (batch,) integers, or (batch, classes) probabilities.
      smoothing: share of the label that is spread evenly over all classes
        (Szegedy et al., 2016, arXiv 1512.00567).

    Returns:
      (batch,) losses.
    """
    logits = logits.astype(jnp.float32)
    if name == "cross_entropy" and targets.ndim == 1:
        return cross_entropy(logits, targets, smoothing)
    classes = logits.shape[-1]
    if targets.ndim == 1:
        targets = jax.nn.one_hot(targets, classes)
    targets = (1 - smoothing) * targets + smoothing / classes
    if name == "cross_entropy":
        return optax.softmax_cross_entropy(logits, targets)
    each = optax.sigmoid_binary_cross_entropy(logits, targets)
    return each.sum(axis=-1) if name == "bce_sum" else each.mean(axis=-1)


def cross_entropy(logits: jax.Array, labels: jax.Array, smoothing: float = 0.0) -> jax.Array:
    """Return the softmax cross entropy of each example, in nats.

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


def correct(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Return (batch,) of 1.0 where the largest logit is that of the label, else 0.0.

    Args:
      logits: (batch, classes).
      targets: (batch,) integers, or (batch, classes) probabilities, whose largest is the label.
    """
    labels = targets if targets.ndim == 1 else jnp.argmax(targets, axis=-1)
    return (jnp.argmax(logits, axis=-1) == labels).astype(jnp.float32)
