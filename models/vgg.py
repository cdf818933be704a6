"""VGG (Simonyan and Zisserman, 2015, arXiv:1409.1556), with or without BatchNorm, timm's names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """Architecture of a VGG; the defaults are VGG-13 with BatchNorm."""

    depths: tuple[int, ...] = (2, 2, 2, 2, 2)  # 3x3 convolutions before each 2x2 max-pool
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    batch_norm: bool = True
    head_width: int = 4096
    head_kernel: int = 7  # kernel side of the head's first layer; smaller maps are enlarged to it
    dropout: float = 0.5  # inside the head and before the classifier

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths")


class ConvHead(nnx.Module):
    """VGG's first two dense layers as convolutions, to accept any image size."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        dropout: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.kernel_size = kernel_size
        self.fc1 = layers.Conv(
            in_features, out_features, kernel_size, padding=0, dtype=dtype, rngs=rngs
        )
        self.drop = nnx.Dropout(dropout)
        self.fc2 = layers.Conv(out_features, out_features, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        if min(x.shape[1:3]) < self.kernel_size:
            x = layers.adaptive_avg_pool(x, [max(self.kernel_size, n) for n in x.shape[1:3]])
        x = self.drop(jax.nn.relu(self.fc1(x)), rngs=rngs)
        return jax.nn.relu(self.fc2(x))


class Classifier(nnx.Module):
    """Global average pooling, dropout and the last dense layer."""

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        dropout: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.drop = nnx.Dropout(dropout)
        init = nnx.initializers.normal(0.01)
        self.fc = layers.classifier(
            in_features, num_classes, kernel_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.fc(self.drop(layers.global_average_pool(x), rngs=rngs))


class VGG(nnx.Module):
    """VGG: 3x3 convolutions and 2x2 max-pools, then three dense layers.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: unused; images of any size do.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: VGGConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        stack: list[layers.Layer] = []
        width = 3
        for depth, out_width in zip(config.depths, config.widths, strict=True):
            for _ in range(depth):
                stack.append(layers.Conv(width, out_width, 3, dtype=dtype, rngs=rngs))
                if config.batch_norm:
                    stack.append(layers.BatchNorm(out_width, dtype=dtype, rngs=rngs))
                stack.append(jax.nn.relu)
                width = out_width
            stack.append(_halve)
        # Activations and pools are entries too: the names of PyTorch's weights count them.
        self.stack = nnx.List(stack)
        head: dict[str, Any] = {"dropout": config.dropout, "dtype": dtype, "rngs": rngs}
        self.pre_logits = ConvHead(width, config.head_width, config.head_kernel, **head)
        self.head = Classifier(config.head_width, num_classes, **head)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map (B, H, W, C) of each stage, before its max-pool."""
        return self._maps(x)[:-1]

    def _maps(self, x: jax.Array) -> list[jax.Array]:
        """Return the map of each stage before its max-pool, and the output of the last pool."""
        maps = []
        for layer in self.stack:
            if layer is _halve:
                maps.append(x)
            x = layer(x)
        return [*maps, x]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.pre_logits(self._maps(x)[-1], rngs=rngs)
        return self.head(x, rngs=rngs).astype(jnp.float32)


def _halve(x: jax.Array) -> jax.Array:
    return layers.max_pool(x, 2)


_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_PUBLISHED = {  # parameter count at 1000 classes, torchvision's top-1
    "vgg11": (132_863_336, 69.02),
    "vgg11_bn": (132_868_840, 70.37),
    "vgg13": (133_047_848, 69.93),
    "vgg13_bn": (133_053_736, 71.59),
    "vgg16": (138_357_544, 71.59),
    "vgg16_bn": (138_365_992, 73.36),
    "vgg19": (143_667_240, 72.38),
    "vgg19_bn": (143_678_248, 74.22),
}

_size = sizes_of("timm", "torchvision IMAGENET1K_V1")

register_family(
    VGG,
    VGGConfig,
    ModelCard(
        paper="Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image "
        "Recognition, ICLR 2015, arXiv:1409.1556",
    ),
    {
        name: _size(
            name,
            num_params,
            top1,
            depths=_DEPTHS[name.removesuffix("_bn")],
            batch_norm=name.endswith("_bn"),
        )
        for name, (num_params, top1) in _PUBLISHED.items()
    }
    | {
        "vgg_mini": Variant(
            {
                "widths": (16, 32, 48, 64, 96),
                "depths": (1, 1, 2, 2, 2),
                "head_width": 128,
                "head_kernel": 1,
                "dropout": 0.2,
            }
        )
    },
    torch_names=[(r"^stack\.", "features.")],
    pyramid_input="pool",
)
