"""ResNet v1.5 (He et al., 2016, arXiv:1512.03385), with the names of timm and torchvision.

In v1.5 the 3x3 convolution of a bottleneck has the stride, not the first 1x1.
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class ResNetConfig:
    """Architecture of a ResNet; the defaults are ResNet-50."""

    block: str = "bottleneck"  # or "basic"
    depths: tuple[int, ...] = (3, 4, 6, 3)
    widths: tuple[int, ...] = (64, 128, 256, 512)  # channels of the 3x3 convolutions
    stem: str = "auto"  # "imagenet": 7x7/2 and max-pool | "cifar": 3x3/1 | "auto": by image size
    dropout: float = 0.0  # before the classifier
    drop_path: float = 0.0
    norm: str = "batch"  # or "layer", "group", "none", as in `layers.norm`

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths")
        if self.block not in ("basic", "bottleneck"):
            raise UserError(f"block is 'basic' or 'bottleneck', not '{self.block}'.")


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions with a shortcut."""

    expansion = 1

    def __init__(
        self,
        config: ResNetConfig,
        in_features: int,
        width: int,
        stride: int,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(layers.Conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(layers.norm, config.norm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_features, width, 3, strides=stride)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3)
        self.bn2 = norm(width, scale_init=nnx.initializers.zeros)
        self.drop_path = layers.DropPath(drop_path)
        self.downsample = _downsample(conv, norm, in_features, width, stride)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return jax.nn.relu(self.drop_path(y, rngs=rngs) + _shortcut(self.downsample, x))


class Bottleneck(nnx.Module):
    """1x1, 3x3 and 1x1 convolution with a shortcut; the last has four times the channels."""

    expansion = 4

    def __init__(
        self,
        config: ResNetConfig,
        in_features: int,
        width: int,
        stride: int,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        conv = functools.partial(layers.Conv, use_bias=False, dtype=dtype, rngs=rngs)
        norm = functools.partial(layers.norm, config.norm, dtype=dtype, rngs=rngs)
        out_features = width * self.expansion
        self.conv1 = conv(in_features, width, 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, strides=stride)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_features, 1)
        self.bn3 = norm(out_features, scale_init=nnx.initializers.zeros)
        self.drop_path = layers.DropPath(drop_path)
        self.downsample = _downsample(conv, norm, in_features, out_features, stride)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = jax.nn.relu(self.bn1(self.conv1(x)))
        y = jax.nn.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return jax.nn.relu(self.drop_path(y, rngs=rngs) + _shortcut(self.downsample, x))


def _downsample(
    conv: Callable[..., layers.Conv],
    norm: Callable[..., layers.Layer],
    in_features: int,
    out_features: int,
    stride: int,
) -> nnx.List | None:
    """Return the projection of a shortcut, or None where the identity fits."""
    if stride == 1 and in_features == out_features:
        return None
    return nnx.List([conv(in_features, out_features, 1, strides=stride), norm(out_features)])


def _shortcut(downsample: nnx.List | None, x: jax.Array) -> jax.Array:
    for layer in downsample or ():
        x = layer(x)
    return x


class ResNet(nnx.Module):
    """ResNet: a stem, stages of residual blocks, global average pooling and a dense layer.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels; selects the stem if `config.stem` is "auto".
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: ResNetConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        block = BasicBlock if config.block == "basic" else Bottleneck
        self.stem = layers.resolve_stem(config.stem, image_size)
        width = config.widths[0]
        kernel, stride = {"cifar": (3, 1), "imagenet": (7, 2)}[self.stem]
        self.conv1 = layers.Conv(
            3, width, kernel, strides=stride, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.bn1 = layers.norm(config.norm, width, dtype=dtype, rngs=rngs)
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        for i, (out_width, stage_rates) in enumerate(zip(config.widths, rates, strict=True)):
            blocks = []
            for j, rate in enumerate(stage_rates):
                stride = 2 if i > 0 and j == 0 else 1
                blocks.append(block(config, width, out_width, stride, rate, dtype=dtype, rngs=rngs))
                width = out_width * block.expansion
            setattr(self, f"layer{i + 1}", nnx.List(blocks))
        self.dropout = nnx.Dropout(config.dropout)
        self.fc = layers.classifier(
            width,
            num_classes,
            kernel_init=layers.torch_uniform,
            bias_init=layers.symmetric_uniform(width**-0.5),
            dtype=dtype,
            rngs=rngs,
        )

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each stage, at strides 4, 8, 16, 32 (CIFAR stem: 1, 2, 4, 8)."""
        x = jax.nn.relu(self.bn1(self.conv1(x)))
        if self.stem == "imagenet":
            x = layers.max_pool(x, 3, 2, padding=1)
        maps = []
        for i in range(len(self.config.depths)):
            for block in getattr(self, f"layer{i + 1}"):
                x = block(x, rngs=rngs)
            maps.append(x)
        return maps

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = layers.global_average_pool(self.features(x, rngs=rngs)[-1])
        return self.fc(self.dropout(x, rngs=rngs)).astype(jnp.float32)


_size = sizes_of("timm", "torchvision IMAGENET1K_V1")

register_family(
    ResNet,
    ResNetConfig,
    ModelCard(
        paper="He, Zhang, Ren and Sun, Deep Residual Learning for Image Recognition, CVPR 2016, "
        "arXiv:1512.03385",
    ),
    {
        "resnet18": _size("resnet18", 11_689_512, 69.76, block="basic", depths=(2, 2, 2, 2)),
        "resnet34": _size("resnet34", 21_797_672, 73.31, block="basic"),
        "resnet50": _size("resnet50", 25_557_032, 76.13),
        "resnet101": _size("resnet101", 44_549_160, 77.37, depths=(3, 4, 23, 3)),
        "resnet152": _size("resnet152", 60_192_808, 78.31, depths=(3, 8, 36, 3)),
        "resnet_mini": Variant({"depths": (2, 2, 2, 2), "widths": (8, 16, 32, 64)}),
    },
    torch_sources=["timm", "torchvision"],
)
