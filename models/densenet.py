"""DenseNet (Huang et al., CVPR 2017, arXiv:1608.06993), with the names of timm and torchvision."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class DenseNetConfig:
    """Architecture of a DenseNet; the defaults are DenseNet-121."""

    depths: tuple[int, ...] = (6, 12, 24, 16)  # dense layers per block
    growth: int = 32  # channels that each dense layer adds; the stem has twice as many
    bottleneck: int = 4  # width of the 1x1 convolution, in multiples of `growth`
    dropout: float = 0.0  # of the channels that each dense layer adds
    # "imagenet": 7x7/2, norm and max-pool | "cifar": 3x3 alone | "auto": by image size
    stem: str = "auto"


class DenseLayer(nnx.Module):
    """Norm, ReLU, 1x1, norm, ReLU, 3x3: `growth` new channels from all earlier ones."""

    def __init__(
        self, in_features: int, config: DenseNetConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs
    ):
        width = config.bottleneck * config.growth
        kwargs: dict[str, Any] = {"use_bias": False, "kernel_init": layers.he_normal_fan_in}
        kwargs |= {"dtype": dtype, "rngs": rngs}
        self.norm1 = layers.BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.conv1 = layers.Conv(in_features, width, 1, **kwargs)
        self.norm2 = layers.BatchNorm(width, dtype=dtype, rngs=rngs)
        self.conv2 = layers.Conv(width, config.growth, 3, **kwargs)
        self.dropout = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.conv1(nnx.relu(self.norm1(x)))  # (B, H, W, bottleneck * growth)
        x = self.conv2(nnx.relu(self.norm2(x)))  # (B, H, W, growth)
        return self.dropout(x, rngs=rngs)


class Transition(nnx.Module):
    """Norm, ReLU, 1x1 to half the channels, and average pooling to half the side."""

    def __init__(self, in_features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.norm = layers.BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.conv = layers.Conv(
            in_features,
            in_features // 2,
            1,
            use_bias=False,
            dtype=dtype,
            kernel_init=layers.he_normal_fan_in,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.avg_pool(self.conv(nnx.relu(self.norm(x))), 2)


class DenseNet(nnx.Module):
    """DenseNet: every layer of a dense block reads the outputs of all layers before it.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels; selects the stem if `config.stem` is "auto".
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: DenseNetConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        width = 2 * config.growth
        self.stem = layers.resolve_stem(config.stem, image_size)
        kernel_size, strides = (3, 1) if self.stem == "cifar" else (7, 2)
        self.conv0 = layers.Conv(
            3,
            width,
            kernel_size,
            strides=strides,
            use_bias=False,
            dtype=dtype,
            kernel_init=layers.he_normal_fan_in,
            rngs=rngs,
        )
        if self.stem == "imagenet":
            self.norm0 = layers.BatchNorm(width, dtype=dtype, rngs=rngs)
        self.depths = config.depths
        for stage, depth in enumerate(config.depths, start=1):
            if stage > 1:
                setattr(self, f"transition{stage - 1}", Transition(width, dtype=dtype, rngs=rngs))
                width //= 2
            block = {}
            for i in range(1, depth + 1):
                block[f"denselayer{i}"] = DenseLayer(width, config, dtype=dtype, rngs=rngs)
                width += config.growth
            setattr(self, f"denseblock{stage}", nnx.Dict(block))
        self.norm5 = layers.BatchNorm(width, dtype=dtype, rngs=rngs)
        self.classifier = layers.classifier(
            width, num_classes, kernel_init=layers.torch_uniform, dtype=dtype, rngs=rngs
        )

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each dense block, the last after its norm and ReLU."""
        x = self.conv0(x)
        if self.stem == "imagenet":
            x = layers.max_pool(nnx.relu(self.norm0(x)), 3, 2, padding=1)
        maps = []
        for stage, depth in enumerate(self.depths, start=1):
            if stage > 1:
                x = getattr(self, f"transition{stage - 1}")(x)
            block = getattr(self, f"denseblock{stage}")
            for i in range(1, depth + 1):
                x = jnp.concatenate([x, block[f"denselayer{i}"](x, rngs=rngs)], axis=-1)
            maps.append(x)
        maps[-1] = nnx.relu(self.norm5(x))
        return maps

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = layers.global_average_pool(self.features(x, rngs=rngs)[-1])
        return self.classifier(x).astype(jnp.float32)


_size = sizes_of("timm", "torchvision V1")

register_family(
    DenseNet,
    DenseNetConfig,
    ModelCard(
        paper="Huang et al., Densely Connected Convolutional Networks, CVPR 2017, arXiv:1608.06993",
    ),
    {
        "densenet121": _size("densenet121", 7_978_856, 74.43),
        "densenet161": _size("densenet161", 28_681_000, 77.14, depths=(6, 12, 36, 24), growth=48),
        "densenet169": _size("densenet169", 14_149_480, 75.60, depths=(6, 12, 32, 32)),
        "densenet201": _size("densenet201", 20_013_928, 76.90, depths=(6, 12, 48, 32)),
        "densenet_mini": Variant(config={"depths": (2, 3, 4, 3), "growth": 8}),
    },
    torch_names=[(r"^(?!classifier\.)", "features.")],
    torch_sources=["timm", "torchvision"],
)
