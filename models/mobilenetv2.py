"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381), with timm's names."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class MobileNetV2Config:
    """Architecture of a MobileNetV2; the defaults are width 1.0 for 224 pixels."""

    # (expansion, channels, blocks, strides) of each stage
    stages: tuple[tuple[int, int, int, int], ...] = (
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    )
    taps: tuple[int, ...] = (1, 2, 4, 6)  # stages whose maps `features` returns
    width: float = 1.0  # multiplies every width
    depth: float = 1.0  # multiplies the number of blocks of all but the first and last stage
    stem: int = 32  # channels of the stem, before `width`
    stem_strides: int = 2
    head: int = 1280  # channels before the classifier; multiplied by a `width` above 1
    scale_ends: bool = True  # whether `width` multiplies the stem and the head
    dropout: float = 0.0  # before the classifier

    def __post_init__(self) -> None:
        if not self.taps or max(self.taps) >= len(self.stages):
            raise UserError(f"taps is {self.taps}; there are stages 0 to {len(self.stages) - 1}.")


class DepthwiseSeparable(nnx.Module):
    """Depthwise 3x3 and a linear 1x1: an inverted bottleneck without expansion."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strides: int,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv_dw = layers.depthwise_conv(
            in_features, 3, strides=strides, use_bias=False, **kwargs
        )
        self.bn1 = layers.BatchNorm(in_features, **kwargs)
        self.conv_pw = layers.Conv(in_features, out_features, 1, use_bias=False, **kwargs)
        self.bn2 = layers.BatchNorm(out_features, **kwargs)
        self.shortcut = strides == 1 and in_features == out_features

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu6(self.bn1(self.conv_dw(x)))
        y = self.bn2(self.conv_pw(y))
        return x + y if self.shortcut else y


class InvertedResidual(nnx.Module):
    """1x1 to `expansion` times the width, depthwise 3x3, and a linear 1x1 back."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        expansion: int,
        strides: int,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        hidden = expansion * in_features
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv_pw = layers.Conv(in_features, hidden, 1, use_bias=False, **kwargs)
        self.bn1 = layers.BatchNorm(hidden, **kwargs)
        self.conv_dw = layers.depthwise_conv(hidden, 3, strides=strides, use_bias=False, **kwargs)
        self.bn2 = layers.BatchNorm(hidden, **kwargs)
        self.conv_pwl = layers.Conv(hidden, out_features, 1, use_bias=False, **kwargs)
        self.bn3 = layers.BatchNorm(out_features, **kwargs)
        self.shortcut = strides == 1 and in_features == out_features

    def __call__(self, x: jax.Array) -> jax.Array:
        y = nnx.relu6(self.bn1(self.conv_pw(x)))
        y = nnx.relu6(self.bn2(self.conv_dw(y)))
        y = self.bn3(self.conv_pwl(y))
        return x + y if self.shortcut else y


Block = DepthwiseSeparable | InvertedResidual


class MobileNetV2(nnx.Module):
    """MobileNetV2: inverted bottlenecks with linear outputs.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: unused; images of any size do.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: MobileNetV2Config,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        ends = config.width if config.scale_ends else 1.0
        width = layers.make_divisible(config.stem * ends)
        self.conv_stem = layers.Conv(
            3, width, 3, strides=config.stem_strides, use_bias=False, **kwargs
        )
        self.bn1 = layers.BatchNorm(width, **kwargs)
        self.taps = config.taps
        self.blocks: nnx.List[nnx.List[Block]] = nnx.List()
        for i, (expansion, channels, depth, strides) in enumerate(config.stages):
            if 0 < i < len(config.stages) - 1:
                depth = math.ceil(depth * config.depth)
            stage: nnx.List[Block] = nnx.List()
            out = layers.make_divisible(channels * config.width)
            for j in range(depth):
                step = strides if j == 0 else 1
                stage.append(
                    DepthwiseSeparable(width, out, strides=step, **kwargs)
                    if expansion == 1
                    else InvertedResidual(width, out, expansion=expansion, strides=step, **kwargs)
                )
                width = out
            self.blocks.append(stage)
        head = max(config.head, layers.make_divisible(config.head * ends))
        self.conv_head = layers.Conv(width, head, 1, use_bias=False, **kwargs)
        self.bn2 = layers.BatchNorm(head, **kwargs)
        self.dropout = nnx.Dropout(config.dropout)
        init = layers.symmetric_uniform(num_classes**-0.5)
        self.classifier = layers.classifier(head, num_classes, kernel_init=init, **kwargs)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the last map at each of the strides 4, 8, 16 and 32: the stages of `taps`."""
        del rngs  # dropout is in the head alone
        x = nnx.relu6(self.bn1(self.conv_stem(x)))
        maps = []
        for stage in self.blocks:
            for block in stage:
                x = block(x)
            maps.append(x)
        return [maps[i] for i in self.taps]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = nnx.relu6(self.bn2(self.conv_head(self.features(x)[-1])))
        x = self.dropout(layers.global_average_pool(x), rngs=rngs)
        return self.classifier(x).astype(jnp.float32)


_size = sizes_of("timm", "torchvision V1")

register_family(
    MobileNetV2,
    MobileNetV2Config,
    ModelCard(
        paper="Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, "
        "arXiv:1801.04381",
    ),
    {
        "mobilenetv2_035": _size("mobilenetv2_035", 1_677_128, width=0.35),
        "mobilenetv2_050": _size("mobilenetv2_050", 1_968_680, width=0.5),
        "mobilenetv2_075": _size("mobilenetv2_075", 2_636_424, width=0.75),
        "mobilenetv2": _size("mobilenetv2_100", 3_504_872, 71.88, aliases=("mobilenetv2_100",)),
        "mobilenetv2_110d": _size(
            "mobilenetv2_110d", 4_516_520, width=1.1, depth=1.2, scale_ends=False
        ),
        "mobilenetv2_120d": _size(
            "mobilenetv2_120d", 5_831_144, width=1.2, depth=1.4, scale_ends=False
        ),
        "mobilenetv2_140": _size("mobilenetv2_140", 6_108_776, width=1.4),
        "mobilenetv2_mini": Variant(
            config={
                "stages": ((1, 16, 1, 1), (6, 24, 2, 2), (6, 40, 2, 2), (6, 64, 2, 2)),
                "taps": (0, 1, 2, 3),
                "stem": 16,
                "stem_strides": 1,
                "head": 192,
            },
        ),
    },
)
