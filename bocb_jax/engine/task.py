"""What the outputs of a net mean: how it is trained, and what is kept of them in an evaluation.

`Steps` knows nothing of outputs and targets but this.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import jax
import jax.numpy as jnp

from bocb_jax.engine import losses
from bocb_jax.engine.state import Batch, Metrics

Size: TypeAlias = tuple[int, int]  # height and width of the images of a batch
Outputs: TypeAlias = Any  # of a net, float32
Targets: TypeAlias = Any  # a tree of arrays with a leading axis for the examples


class Task(Protocol):
    """What a net is trained for."""

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics of a training step, beside the loss; a line has their means."""

    def loss(self, outputs: Outputs, targets: Targets, size: Size) -> tuple[jax.Array, Metrics]:
        """Return the mean loss of a batch, and its `metrics`."""

    def sample(self, key: jax.Array, outputs: Outputs, targets: Targets, size: Size) -> Targets:
        """Return targets drawn from what the outputs predict, for curvature estimates."""

    def evaluate(
        self, forward: Callable[[jax.Array], Outputs], images: jax.Array, batch: Batch
    ) -> Metrics:
        """Return what the host needs to score a batch.

        Args:
          forward: the net in evaluation mode.
          images: normalized.
          batch: from the data, with "weight" (batch,), 0 for padding, else 1.
        """


@dataclasses.dataclass(frozen=True)
class Classification:
    """Images with one label each; outputs are logits (batch, classes)."""

    name: str = "cross_entropy"  # of the loss, as `losses.loss` knows it
    label_smoothing: float = 0.0
    metrics = ("accuracy",)

    def loss(self, outputs: jax.Array, targets: jax.Array, size: Size) -> tuple[jax.Array, Metrics]:
        """Return the mean loss, and the accuracy.

        Args:
          outputs: logits.
          targets: (batch,) labels or, if mixed, (batch, classes) probabilities.
          size: of the images.
        """
        loss = losses.loss(self.name, outputs, targets, self.label_smoothing).mean()
        return loss, {"accuracy": losses.correct(outputs, targets).mean()}

    def sample(
        self, key: jax.Array, outputs: jax.Array, targets: jax.Array, size: Size
    ) -> jax.Array:
        """Return labels (batch,) drawn from the softmax of the logits."""
        return jax.random.categorical(key, outputs)

    def evaluate(
        self, forward: Callable[[jax.Array], jax.Array], images: jax.Array, batch: Batch
    ) -> Metrics:
        """Return the sums of "loss", "correct" and "count" over a batch.

        The loss is the cross entropy, whatever loss is trained.
        """
        logits, weight = forward(images), batch["weight"]
        return {
            "loss": jnp.sum(weight * losses.cross_entropy(logits, batch["label"])),
            "correct": jnp.sum(weight * losses.correct(logits, batch["label"])),
            "count": jnp.sum(weight),
        }
