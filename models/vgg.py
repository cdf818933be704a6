"""VGG (Simonyan and Zisserman, 2015, arXiv:1409.1556), with or without batch normalization."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class VGGConfig:
    """Architecture of a VGG; the defaults are those of VGG-13 with batch normalization."""

    depths: tuple[int, ...] = (2, 2, 2, 2, 2)  # 3x3 convolutions before each 2x2 max-pool
    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    batch_norm: bool = True
    head_width: int = 4096
    head_kernel: int = 7  # side of the maps that the head wants; smaller maps are stretched to it
    dropout: float = 0.5  # within the head and before the classifier

    def __post_init__(self):
        check_lengths(self, "depths", "widths")


class ConvHead(nnx.Module):
    """VGG's first two dense layers as convolutions, so that any image size fits."""

    def __init__(self, in_features, out_features, kernel_size, dropout, *, dtype, rngs):
        self.kernel_size = kernel_size
        self.fc1 = layers.Conv(
            in_features, out_features, kernel_size, padding=0, dtype=dtype, rngs=rngs
        )
        self.drop = nnx.Dropout(dropout)
        self.fc2 = layers.Conv(out_features, out_features, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x, *, rngs=None):
        if min(x.shape[1:3]) < self.kernel_size:
            x = layers.adaptive_avg_pool(x, [max(self.kernel_size, n) for n in x.shape[1:3]])
        x = self.drop(jax.nn.relu(self.fc1(x)), rngs=rngs)
        return jax.nn.relu(self.fc2(x))


class Classifier(nnx.Module):
    """Global average, dropout, and the last dense layer."""

    def __init__(self, in_features, num_classes, dropout, *, dtype, rngs):
        self.drop = nnx.Dropout(dropout)
        init = nnx.initializers.normal(0.01)
        self.fc = layers.classifier(
            in_features, num_classes, kernel_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x, *, rngs=None):
        return self.fc(self.drop(layers.global_average_pool(x), rngs=rngs))


class VGG(nnx.Module):
    """VGG.

    Args:
      config: architecture.
      num_classes: width of the logits.
      image_size: side of the images; any works.
      dtype: type of the computation.
      rngs: where the initial weights come from.
    """

    def __init__(self, config: VGGConfig, *, num_classes, image_size, dtype=None, rngs):
        del image_size
        stack, width = [], 3
        for depth, out_width in zip(config.depths, config.widths, strict=True):
            for _ in range(depth):
                stack.append(layers.Conv(width, out_width, 3, dtype=dtype, rngs=rngs))
                if config.batch_norm:
                    stack.append(layers.BatchNorm(out_width, dtype=dtype, rngs=rngs))
                stack.append(jax.nn.relu)
                width = out_width
            stack.append(_halve)
        # PyTorch numbers activations and pools too, and the names of the weights follow.
        self.stack = nnx.List(stack)
        head = {"dropout": config.dropout, "dtype": dtype, "rngs": rngs}
        self.pre_logits = ConvHead(width, config.head_width, config.head_kernel, **head)
        self.head = Classifier(config.head_width, num_classes, **head)

    def features(self, x, *, rngs=None) -> list[jax.Array]:
        """The maps (batch, h, w, c) of the five stages, each before its max-pool."""
        return self._maps(x)[:-1]

    def _maps(self, x):
        maps = []
        for layer in self.stack:
            if layer is _halve:
                maps.append(x)
            x = layer(x)
        return [*maps, x]

    def __call__(self, x, *, rngs=None) -> jax.Array:
        x = self.pre_logits(self._maps(x)[-1], rngs=rngs)
        return self.head(x, rngs=rngs).astype(jnp.float32)


def _halve(x):
    return layers.max_pool(x, 2)


_DEPTHS = {
    "vgg11": (1, 1, 2, 2, 2),
    "vgg13": (2, 2, 2, 2, 2),
    "vgg16": (2, 2, 3, 3, 3),
    "vgg19": (2, 2, 4, 4, 4),
}
_PUBLISHED = {  # parameters at 1000 classes, torchvision's top-1
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
            parameters,
            top1,
            depths=_DEPTHS[name.removesuffix("_bn")],
            batch_norm=name.endswith("_bn"),
        )
        for name, (parameters, top1) in _PUBLISHED.items()
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
)
