"""MogaNet (Li et al., ICLR 2024, arXiv:2211.03295), with the names of the authors' repository."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class MogaNetConfig:
    """Architecture of a MogaNet; the defaults are MogaNet-S."""

    depths: tuple[int, ...] = (2, 3, 12, 2)
    widths: tuple[int, ...] = (64, 128, 320, 512)  # multiples of 8
    mlp_ratios: tuple[int, ...] = (8, 8, 4, 4)
    drop_path: float = 0.0
    dropout: float = 0.0  # inside the channel block
    layer_scale: float = 1e-5  # initial value of the layer scales and of `sigma`
    gate_activations: int = 1  # SiLUs on gate and value; 2 in BOCB's code
    stem: str = "auto"  # "imagenet": two 3x3/2 | "cifar": two 3x3/1 | "auto": by image size

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths", "mlp_ratios")
        if any(width % 8 for width in self.widths):
            raise UserError(f"widths are {self.widths}; 8 must divide every one.")


def _scale(features: int, value: float) -> nnx.Param:
    return nnx.Param(jnp.full((1, features, 1, 1), value, jnp.float32), kind="scale")


def _times(x: jax.Array, scale: nnx.Param) -> jax.Array:
    """Return x (B, H, W, C) times a gain (1, C, 1, 1), the shape that PyTorch's weights have."""
    return x * scale[...].astype(x.dtype).reshape(1, 1, 1, -1)


class MultiOrderConv(nnx.Module):
    """Depthwise 5x5 on all channels, then dilated 5x5 on 3/8 and dilated 7x7 on 4/8 of them."""

    def __init__(self, features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.splits = (features - features // 2 - features * 3 // 8, features // 2)
        _, wide = self.splits
        middle = features * 3 // 8
        self.DW_conv0 = layers.depthwise_conv(features, 5, dtype=dtype, rngs=rngs)
        self.DW_conv1 = layers.depthwise_conv(middle, 5, dilation=2, dtype=dtype, rngs=rngs)
        self.DW_conv2 = layers.depthwise_conv(wide, 7, dilation=3, dtype=dtype, rngs=rngs)
        self.PW_conv = layers.Conv(features, features, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        narrow, wide = self.splits
        x = self.DW_conv0(x)
        parts = [  # 1/8, 3/8 and 4/8 of the channels
            x[..., :narrow],
            self.DW_conv1(x[..., narrow:-wide]),
            self.DW_conv2(x[..., -wide:]),
        ]
        return self.PW_conv(jnp.concatenate(parts, axis=-1))


class GatedAggregation(nnx.Module):
    """Spatial block: amplifies the difference from the mean, then gates by multi-order context."""

    def __init__(
        self, features: int, config: MogaNetConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.proj_1 = layers.Conv(features, features, 1, **kwargs)
        self.gate = layers.Conv(features, features, 1, **kwargs)
        self.value = MultiOrderConv(features, **kwargs)
        self.proj_2 = layers.Conv(features, features, 1, **kwargs)
        self.sigma = _scale(features, config.layer_scale)
        self.gate_activations = config.gate_activations

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.proj_1(x)
        y = nnx.silu(y + _times(y - y.mean((1, 2), keepdims=True), self.sigma))
        gate, value = self.gate(y), self.value(y)
        for _ in range(self.gate_activations):
            gate, value = nnx.silu(gate), nnx.silu(value)
        return x + self.proj_2(gate * value)


class ChannelAggregation(nnx.Module):
    """Channel block: MLP with a depthwise 3x3; amplifies the difference from one shared map."""

    def __init__(
        self,
        features: int,
        hidden: int,
        config: MogaNetConfig,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.fc1 = layers.Conv(features, hidden, 1, **kwargs)
        self.dwconv = layers.depthwise_conv(hidden, 3, **kwargs)
        self.decompose = layers.Conv(hidden, 1, 1, **kwargs)
        self.sigma = _scale(hidden, config.layer_scale)
        self.fc2 = layers.Conv(hidden, features, 1, **kwargs)
        self.drop = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.drop(layers.gelu(self.dwconv(self.fc1(x))), rngs=rngs)  # (B, H, W, hidden)
        shared = layers.gelu(self.decompose(x))  # (B, H, W, 1)
        x = x + _times(x - shared, self.sigma)
        return self.drop(self.fc2(x), rngs=rngs)


class MogaBlock(nnx.Module):
    """Spatial and channel block, each with BatchNorm before, and layer scale and DropPath after."""

    def __init__(
        self,
        features: int,
        mlp_ratio: int,
        config: MogaNetConfig,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.norm1 = layers.BatchNorm(features, **kwargs)
        self.attn = GatedAggregation(features, config, **kwargs)
        self.norm2 = layers.BatchNorm(features, **kwargs)
        self.mlp = ChannelAggregation(features, mlp_ratio * features, config, **kwargs)
        self.layer_scale_1 = _scale(features, config.layer_scale)
        self.layer_scale_2 = _scale(features, config.layer_scale)
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = _times(self.attn(self.norm1(x)), self.layer_scale_1)
        x = x + self.drop_path(y, rngs=rngs)
        y = _times(self.mlp(self.norm2(x), rngs=rngs), self.layer_scale_2)
        return x + self.drop_path(y, rngs=rngs)


class Stem(nnx.Module):
    """Two 3x3 convolutions with BatchNorm, GELU between them."""

    def __init__(self, features: int, strides: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.conv1 = layers.Conv(3, features // 2, 3, strides=strides, **kwargs)
        self.norm1 = layers.BatchNorm(features // 2, **kwargs)
        self.conv2 = layers.Conv(features // 2, features, 3, strides=strides, **kwargs)
        self.norm2 = layers.BatchNorm(features, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.gelu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2 with BatchNorm."""

    def __init__(self, in_features: int, features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.projection = layers.Conv(in_features, features, 3, strides=2, dtype=dtype, rngs=rngs)
        self.norm = layers.BatchNorm(features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.projection(x))


class MogaNet(nnx.Module):
    """MogaNet: convolutions with gated aggregation over space and channels.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels; selects the stem if `config.stem` is "auto".
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: MogaNetConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        strides = 1 if layers.resolve_stem(config.stem, image_size) == "cifar" else 2
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        self.num_stages = len(config.depths)
        for i, (features, ratio) in enumerate(zip(config.widths, config.mlp_ratios, strict=True)):
            embed: layers.Layer = (
                Downsample(config.widths[i - 1], features, **kwargs)
                if i
                else Stem(features, strides, **kwargs)
            )
            blocks = [MogaBlock(features, ratio, config, rate, **kwargs) for rate in rates[i]]
            setattr(self, f"patch_embed{i + 1}", embed)
            setattr(self, f"blocks{i + 1}", nnx.List(blocks))
            setattr(self, f"norm{i + 1}", layers.BatchNorm(features, **kwargs))
        init = layers.trunc_normal(0.02)
        self.head = layers.classifier(config.widths[-1], num_classes, kernel_init=init, **kwargs)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the normalized map of each stage."""
        parts = ("patch_embed", "blocks", "norm")
        stages = [[getattr(self, f"{p}{i + 1}") for p in parts] for i in range(self.num_stages)]
        return layers.stage_maps(x, stages, rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = layers.global_average_pool(self.features(x, rngs=rngs)[-1])
        return self.head(x).astype(jnp.float32)


_BOCB = {"gate_activations": 2}
_size = sizes_of("Westlake-AI/MogaNet", "MogaNet, official README", bocb=_BOCB)


register_family(
    MogaNet,
    MogaNetConfig,
    ModelCard(
        paper="Li et al., MogaNet: Multi-order Gated Aggregation Network, ICLR 2024, "
        "arXiv:2211.03295",
    ),
    {
        "moganet_xt": _size(
            "moganet_xtiny", 2_956_066, 76.5, drop_path=0.05,
            depths=(3, 3, 10, 2), widths=(32, 64, 96, 192),
        ),
        "moganet_t": _size(
            "moganet_tiny", 5_197_332, 79.0, drop_path=0.1,
            depths=(3, 3, 12, 2), widths=(32, 64, 128, 256),
        ),
        "moganet_s": _size("moganet_small", 25_335_675, 83.4, drop_path=0.1),
        "moganet_b": _size(
            "moganet_base", 43_720_475, 84.3, drop_path=0.2,
            depths=(4, 6, 22, 3), widths=(64, 160, 320, 512),
        ),
        "moganet_l": _size(
            "moganet_large", 82_480_978, 84.7, drop_path=0.3,
            depths=(4, 6, 44, 4), widths=(64, 160, 320, 640),
        ),
        "moganet_xl": _size(
            "moganet_xlarge", 180_991_924, 85.1, drop_path=0.4,
            depths=(6, 6, 44, 4), widths=(96, 192, 480, 960),
        ),
        "moganet_mini": Variant(
            config={"depths": (1, 1, 2, 1), "widths": (16, 24, 48, 96), "mlp_ratios": (3, 3, 3, 3)},
            bocb=_BOCB,
        ),
    },
    torch_names=[
        (r"^patch_embed1\.conv1\.", "patch_embed1.projection.0."),
        (r"^patch_embed1\.norm1\.", "patch_embed1.projection.1."),
        (r"^patch_embed1\.conv2\.", "patch_embed1.projection.3."),
        (r"^patch_embed1\.norm2\.", "patch_embed1.projection.4."),
        (r"\.sigma$", ".sigma.scale"),
    ],
    torch_sources=["official"],
)  # fmt: skip
