"""AlexNet in its one-tower form (Krizhevsky, 2014, arXiv:1404.5997), as torchvision builds it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class AlexNetConfig:
    """Architecture of an AlexNet; the defaults are the original for 224 pixels."""

    widths: tuple[int, ...] = (64, 192, 384, 256, 256)  # channels of the five convolutions
    hidden: int = 4096  # width of the two dense layers
    stem_kernel: int = 11
    stem_strides: int = 4
    stem_padding: int = 2
    grid: int = 6  # side to which the last map is average-pooled before the dense layers
    dropout: float = 0.5  # before each of the two hidden dense layers
    init: str = (
        "torch"  # PyTorch's default, uniform within 1/sqrt(fan_in) | "he": He normal by fan_in
    )

    def __post_init__(self) -> None:
        if self.init not in ("he", "torch"):
            raise UserError(f"init is 'he' or 'torch', not '{self.init}'.")
        if len(self.widths) != 5:
            raise UserError(f"widths has {len(self.widths)} entries; AlexNet has 5 convolutions.")


class AlexNet(nnx.Module):
    """AlexNet: five convolutions, three max-pools and three dense layers.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels; checked against the poolings.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.

    Raises:
      UserError: the images are too small for three max-pools.
    """

    def __init__(
        self,
        config: AlexNetConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        size = (
            image_size + 2 * config.stem_padding - config.stem_kernel
        ) // config.stem_strides + 1
        for _ in range(3):
            size = (size - 3) // 2 + 1
        if size < 1:
            raise UserError(
                f"Images of {image_size} pixels are too small: nothing is left of them after "
                "AlexNet's three poolings. AlexNet takes 63 pixels and more; alexnet_mini is made "
                "for 32."
            )

        def init(fan_in: int) -> dict[str, Any]:
            if config.init == "he":
                return {"kernel_init": layers.he_normal_fan_in}
            uniform = layers.symmetric_uniform(fan_in**-0.5)
            return {"kernel_init": uniform, "bias_init": uniform}

        def conv(
            in_features: int, out_features: int, kernel_size: int, **kwargs: Any
        ) -> layers.Layer:
            kwargs |= init(in_features * kernel_size**2)
            return layers.Conv(
                in_features, out_features, kernel_size, dtype=dtype, rngs=rngs, **kwargs
            )

        def dense(in_features: int, out_features: int, **kwargs: Any) -> layers.Layer:
            kwargs |= init(in_features)
            return layers.Linear(in_features, out_features, dtype=dtype, rngs=rngs, **kwargs)

        w = config.widths
        self.conv1 = conv(
            3, w[0], config.stem_kernel, strides=config.stem_strides, padding=config.stem_padding
        )
        self.conv2 = conv(w[0], w[1], 5)
        self.conv3 = conv(w[1], w[2], 3)
        self.conv4 = conv(w[2], w[3], 3)
        self.conv5 = conv(w[3], w[4], 3)
        self.grid = config.grid
        self.dropout = nnx.Dropout(config.dropout)
        self.fc6 = dense(w[4] * config.grid**2, config.hidden)
        self.fc7 = dense(config.hidden, config.hidden)
        self.fc8 = dense(config.hidden, num_classes, kernel_metadata={"kind": "head"})

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the maps (B, H, W, C) after the three max-pools, at strides of 8, 16 and 32."""
        del rngs  # dropout is in the head alone
        first = layers.max_pool(nnx.relu(self.conv1(x)), 3, 2)
        second = layers.max_pool(nnx.relu(self.conv2(first)), 3, 2)
        x = nnx.relu(self.conv3(second))
        x = nnx.relu(self.conv4(x))
        x = nnx.relu(self.conv5(x))
        return [first, second, layers.max_pool(x, 3, 2)]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = layers.adaptive_avg_pool(self.features(x)[-1], self.grid)
        # Flattened channels first, (B, C * grid * grid), the order of the published weights.
        x = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        x = nnx.relu(self.fc6(self.dropout(x, rngs=rngs)))
        x = nnx.relu(self.fc7(self.dropout(x, rngs=rngs)))
        return self.fc8(x).astype(jnp.float32)


register_family(
    AlexNet,
    AlexNetConfig,
    ModelCard(
        paper="Krizhevsky, One weird trick for parallelizing CNNs, arXiv:1404.5997",
    ),
    {
        "alexnet": sizes_of("torchvision", "torchvision V1", bocb={"init": "he"})(
            "alexnet", 61_100_840, 56.52
        ),
        "alexnet_mini": Variant(
            config={
                "widths": (16, 48, 64, 48, 48),
                "hidden": 128,
                "stem_kernel": 5,
                "stem_strides": 1,
                "grid": 3,
            },
            bocb={"init": "he"},
        ),
    },
    torch_names=[
        (r"^conv1\.", "features.0."),
        (r"^conv2\.", "features.3."),
        (r"^conv3\.", "features.6."),
        (r"^conv4\.", "features.8."),
        (r"^conv5\.", "features.10."),
        (r"^fc6\.", "classifier.1."),
        (r"^fc7\.", "classifier.4."),
        (r"^fc8\.", "classifier.6."),
    ],
    torch_sources=["torchvision"],
)
