"""ConvNeXt and ConvNeXt V2: depthwise 7x7 convolution, LayerNorm and an inverted bottleneck.

Modules and parameters are named as in timm.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of

INIT = layers.trunc_normal(0.02)


@dataclasses.dataclass(frozen=True)
class ConvNeXtConfig:
    """Architecture of a ConvNeXt; the defaults are ConvNeXt-T.

    Args:
      depths: blocks of each stage.
      widths: channels of each stage.
      kernel_size: side of the depthwise convolutions.
      layer_scale: initial value of each branch's layer scale; None: no layer scale (V2).
      response_norm: global response normalization inside the MLP (V2).
      conv_mlp: store the MLP's kernels as 1x1 convolutions, as timm does for the smallest V2 sizes.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 in the first.
      dropout: before the classifier.
      stem: "imagenet" (4x4 patches), "cifar" (3x3 convolution, stride 1), or "auto" ("cifar" for
        images of at most 32 pixels).
      norm: "layer"; "batch", "group" and "none" as in `layers.norm`.
    """

    depths: tuple[int, ...] = (3, 3, 9, 3)
    widths: tuple[int, ...] = (96, 192, 384, 768)
    kernel_size: int = 7
    layer_scale: float | None = 1e-6
    response_norm: bool = False
    conv_mlp: bool = False
    drop_path: float = 0.0
    dropout: float = 0.0
    stem: str = "auto"
    norm: str = "layer"

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths")


class GlobalResponseNorm(nnx.Module):
    """Global response normalization of ConvNeXt V2; starts as the identity."""

    def __init__(self, num_features: int):
        self.scale = nnx.Param(jnp.zeros((num_features,), jnp.float32), kind="scale")
        self.bias = nnx.Param(jnp.zeros((num_features,), jnp.float32), kind="bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.response_norm(x, self.scale[...], self.bias[...])


class Mlp(nnx.Module):
    """Inverted bottleneck, four times as wide inside; V2 normalizes the responses there."""

    def __init__(self, config: ConvNeXtConfig, width: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        pointwise = functools.partial(layers.Conv, kernel_size=1)
        kind: Any = pointwise if config.conv_mlp else layers.Linear
        dense = functools.partial(kind, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.fc1 = dense(width, 4 * width)
        self.grn = GlobalResponseNorm(4 * width) if config.response_norm else jax.nn.identity
        self.fc2 = dense(4 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc2(self.grn(layers.gelu(self.fc1(x))))  # (B, H, W, C) -> 4C -> C


class Block(nnx.Module):
    """Depthwise convolution, norm, MLP and layer scale on a residual branch, with stochastic depth.

    The layer scale is called `gamma`, as in timm; ConvNeXt V2 has none.
    """

    def __init__(
        self,
        config: ConvNeXtConfig,
        width: int,
        drop_rate: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.conv_dw = layers.depthwise_conv(
            width, config.kernel_size, kernel_init=INIT, dtype=dtype, rngs=rngs
        )
        self.norm = layers.norm(config.norm, width, dtype=dtype, rngs=rngs)
        self.mlp = Mlp(config, width, dtype=dtype, rngs=rngs)
        self.gamma = (
            None
            if config.layer_scale is None
            else nnx.Param(jnp.full((width,), config.layer_scale, jnp.float32), kind="scale")
        )
        self.drop_path = layers.DropPath(drop_rate)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.mlp(self.norm(self.conv_dw(x)))
        if self.gamma is not None:
            y = y * layers.per_channel(self.gamma[...].astype(y.dtype), y)
        return x + self.drop_path(y, rngs=rngs)


class Stage(nnx.Module):
    """Norm and 2x2 convolution of stride 2 (except in the first stage), then the blocks."""

    def __init__(
        self,
        config: ConvNeXtConfig,
        index: int,
        rates: list[float],
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        width = config.widths[index]
        self.downsample: nnx.List[layers.Layer] = nnx.List([])
        if index > 0:
            before = config.widths[index - 1]
            self.downsample.append(layers.norm(config.norm, before, dtype=dtype, rngs=rngs))
            self.downsample.append(_patch_conv(before, width, 2, dtype=dtype, rngs=rngs))
        self.blocks = nnx.List(
            [Block(config, width, rate, dtype=dtype, rngs=rngs) for rate in rates]
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        for layer in self.downsample:
            x = layer(x)
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return x


class ConvNeXt(nnx.Module):
    """ConvNeXt (Liu et al., 2022, arXiv:2201.03545) and V2 (Woo et al., 2023, arXiv:2301.00808).

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels; selects the stem if `config.stem` is "auto".
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: ConvNeXtConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.stem: nnx.List[layers.Layer] = nnx.List(
            [
                _stem_conv(config, image_size, dtype=dtype, rngs=rngs),
                layers.norm(config.norm, config.widths[0], dtype=dtype, rngs=rngs),
            ]
        )
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        self.stages = nnx.List(
            [Stage(config, i, rates[i], dtype=dtype, rngs=rngs) for i in range(len(config.depths))]
        )
        width = config.widths[-1]
        self.head: Any = nnx.Dict(
            norm=layers.norm(config.norm, width, dtype=dtype, rngs=rngs),
            drop=nnx.Dropout(config.dropout),
            fc=layers.classifier(width, num_classes, kernel_init=INIT, dtype=dtype, rngs=rngs),
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits (B, num_classes) of images (B, H, W, 3)."""
        x = layers.global_average_pool(self.features(x, rngs=rngs)[-1])
        x = self.head.drop(self.head.norm(x), rngs=rngs)
        return self.head.fc(x).astype(jnp.float32)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each stage, at strides 4, 8, 16, 32 (CIFAR stem: 1, 2, 4, 8)."""
        for layer in self.stem:
            x = layer(x)
        maps = []
        for stage in self.stages:
            x = stage(x, rngs=rngs)
            maps.append(x)
        return maps


def _patch_conv(
    in_features: int, width: int, side: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
) -> layers.Conv:
    zeros = nnx.initializers.zeros
    return layers.patch_conv(
        in_features, width, side, kernel_init=INIT, bias_init=zeros, dtype=dtype, rngs=rngs
    )


def _stem_conv(
    config: ConvNeXtConfig, image_size: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
) -> layers.Conv:
    width = config.widths[0]
    if layers.resolve_stem(config.stem, image_size) == "imagenet":
        return _patch_conv(3, width, 4, dtype=dtype, rngs=rngs)
    return layers.Conv(3, width, 3, kernel_init=INIT, dtype=dtype, rngs=rngs)


_size = sizes_of("timm", "ConvNeXt, official README")
_size_v2 = sizes_of("timm", "ConvNeXt V2, official README: fine-tuned after masked pre-training")
_CARD = ModelCard(paper="Liu et al., A ConvNet for the 2020s, CVPR 2022, arXiv:2201.03545")
_DEEP = {"depths": (3, 3, 27, 3)}
_B, _L = {"widths": (128, 256, 512, 1024)}, {"widths": (192, 384, 768, 1536)}

register_family(
    ConvNeXt,
    ConvNeXtConfig,
    _CARD,
    {
        "convnext_t": _size("convnext_tiny", 28_589_128, 82.1, drop_path=0.1, cifar_drop_path=0.3),
        "convnext_s": _size(
            "convnext_small", 50_223_688, 83.1, **_DEEP, drop_path=0.4, cifar_drop_path=0.5
        ),
        "convnext_b": _size("convnext_base", 88_591_464, 83.8, **_DEEP, **_B, drop_path=0.5),
        "convnext_l": _size("convnext_large", 197_767_336, 84.3, **_DEEP, **_L, drop_path=0.5),
        "convnext_xl": _size(
            "convnext_xlarge", 350_196_968, **_DEEP, widths=(256, 512, 1024, 2048)
        ),
        "convnext_mini": Variant({"depths": (1, 1, 3, 1), "widths": (16, 32, 64, 128)}),
    },
    pyramid_input="norm",
)

_V2 = {"layer_scale": None, "response_norm": True}
_SMALLEST = {**_V2, "depths": (2, 2, 6, 2), "conv_mlp": True}
_NANO = {**_SMALLEST, "depths": (2, 2, 8, 2), "widths": (80, 160, 320, 640)}
_HUGE = {"widths": (352, 704, 1408, 2816)}

register_family(
    ConvNeXt,
    ConvNeXtConfig,
    dataclasses.replace(
        _CARD,
        paper="Woo et al., ConvNeXt V2: Co-designing and Scaling ConvNets with Masked "
        "Autoencoders, CVPR 2023, arXiv:2301.00808",
    ),
    {
        "convnextv2_atto": _size_v2(
            "convnextv2_atto",
            3_708_400,
            76.7,
            widths=(40, 80, 160, 320),
            **_SMALLEST,
            drop_path=0.1,
        ),
        "convnextv2_femto": _size_v2(
            "convnextv2_femto", 5_233_240, 78.5, widths=(48, 96, 192, 384), **_SMALLEST
        ),
        "convnextv2_pico": _size_v2(
            "convnextv2_pico", 9_066_280, 80.3, widths=(64, 128, 256, 512), **_SMALLEST
        ),
        "convnextv2_nano": _size_v2("convnextv2_nano", 15_623_800, 81.9, **_NANO),
        "convnextv2_t": _size_v2("convnextv2_tiny", 28_635_496, 83.0, **_V2, drop_path=0.2),
        "convnextv2_b": _size_v2(
            "convnextv2_base", 88_717_800, 84.9, **_DEEP, **_B, **_V2, drop_path=0.1
        ),
        "convnextv2_l": _size_v2("convnextv2_large", 197_956_840, 85.8, **_DEEP, **_L, **_V2),
        "convnextv2_h": _size_v2("convnextv2_huge", 660_289_640, 86.3, **_DEEP, **_HUGE, **_V2),
        "convnextv2_mini": Variant({"depths": (1, 1, 3, 1), "widths": (16, 32, 64, 128), **_V2}),
    },
    pyramid_input="norm",
)
