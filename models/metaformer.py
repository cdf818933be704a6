"""MetaFormer baselines: one architecture with five token mixers, with the official names."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of

INIT = layers.trunc_normal(0.02)
NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class MetaFormerConfig:
    """Architecture of a MetaFormer; the defaults are ConvFormer-S12.

    Args:
      depths: blocks of each stage.
      widths: channels of each stage.
      mixers: token mixer of each stage: "identity", "pool", "conv" or "attention".
      block_norm: axes that the norms of the blocks normalize over: "channel", or "map" (height,
        width and channels).
      head: classifier, "mlp" (one hidden layer, four times as wide as the last stage) or "linear".
      head_channels: channels of an attention head.
      mlp_ratio: hidden width of a block's MLP over its width.
      scaled_shortcuts: first stage, from 0, whose shortcuts have a learned gain per channel.
      stem: kernel size, stride and padding of the first convolution.
      dropout: inside the MLP head.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 in the first.
    """

    depths: tuple[int, ...] = (2, 2, 6, 2)
    widths: tuple[int, ...] = (64, 128, 320, 512)
    mixers: tuple[str, ...] = ("conv", "conv", "conv", "conv")
    block_norm: str = "channel"
    head: str = "mlp"
    head_channels: int = 32
    mlp_ratio: float = 4.0
    scaled_shortcuts: int = 2
    stem: tuple[int, int, int] = (7, 4, 2)
    dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths")
        if len(self.mixers) < len(self.depths):
            raise UserError(f"mixers has {len(self.mixers)} entries for {len(self.depths)} stages.")
        if not all(self.stem[:2]):
            raise UserError(f"stem is {self.stem}; kernel size and stride must be positive.")


class StarReLU(nnx.Module):
    """`scale * relu(x) ** 2 + bias`, with two learned scalars."""

    def __init__(self):
        self.scale = nnx.Param(jnp.ones((1,), jnp.float32), kind="scale")
        self.bias = nnx.Param(jnp.zeros((1,), jnp.float32), kind="bias")

    def __call__(self, x: jax.Array) -> jax.Array:
        scale, bias = (
            layers.per_channel(v[...].astype(x.dtype), x) for v in (self.scale, self.bias)
        )
        return scale * jnp.square(jax.nn.relu(x)) + bias


class Pooling(nnx.Module):
    """3x3 average pooling minus the input, which the shortcut adds again."""

    def __call__(self, x: jax.Array) -> jax.Array:
        return layers.avg_pool(x, 3, 1, 1, count_include_pad=False) - x


class SepConv(nnx.Module):
    """Inverted separable convolution of MobileNetV2, without norms."""

    def __init__(self, width: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        dense = functools.partial(_dense, dtype=dtype, rngs=rngs)
        self.pwconv1 = dense(width, 2 * width)
        self.act1 = StarReLU()
        self.dwconv = layers.depthwise_conv(
            2 * width, 7, use_bias=False, kernel_init=INIT, dtype=dtype, rngs=rngs
        )
        self.pwconv2 = dense(2 * width, width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.pwconv2(self.dwconv(self.act1(self.pwconv1(x))))


class Attention(nnx.Module):
    """Self-attention over all pixels of the map."""

    def __init__(self, width: int, head_channels: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.heads = max(width // head_channels, 1)
        inner = self.heads * head_channels
        self.qkv = _dense(width, 3 * inner, dtype=dtype, rngs=rngs)
        self.proj = _dense(inner, width, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, _ = x.shape
        qkv = self.qkv(x).reshape(batch, height * width, 3, self.heads, -1)
        y = layers.attention(*(qkv[:, :, i] for i in range(3)))  # (B, H * W, inner)
        return self.proj(y).reshape(x.shape)


class Block(nnx.Module):
    """Token mixer and MLP, each with a norm before and a shortcut, scaled in the later stages."""

    def __init__(
        self,
        config: MetaFormerConfig,
        stage: int,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        width = config.widths[stage]
        scaled = stage >= config.scaled_shortcuts
        self.norm1 = _block_norm(config, width, **kwargs)
        self.token_mixer = _mixer(config, stage, **kwargs)
        self.res_scale1 = layers.LayerScale(width, 1.0) if scaled else jax.nn.identity
        self.norm2 = _block_norm(config, width, **kwargs)
        self.mlp = layers.Mlp(
            width,
            int(config.mlp_ratio * width),
            activation=StarReLU(),
            use_bias=False,
            kernel_init=INIT,
            **kwargs,
        )
        self.res_scale2 = layers.LayerScale(width, 1.0) if scaled else jax.nn.identity
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.drop_path(self.token_mixer(self.norm1(x)), rngs=rngs)
        x = self.res_scale1(x) + y
        y = self.drop_path(self.mlp(self.norm2(x)), rngs=rngs)
        return self.res_scale2(x) + y


class Downsampling(nnx.Module):
    """Stem: convolution and norm. Before the other stages: norm and 3x3 convolution of stride 2."""

    def __init__(
        self, config: MetaFormerConfig, stage: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
    ):
        width = config.widths[stage]
        before = config.widths[stage - 1] if stage else 3
        side, stride, padding = (3, 2, 1) if stage else config.stem
        norm = functools.partial(
            nnx.LayerNorm, epsilon=NORM_EPSILON, use_bias=False, dtype=dtype, rngs=rngs
        )
        self.pre_norm = norm(before) if stage else jax.nn.identity
        self.conv = layers.Conv(
            before,
            width,
            side,
            strides=stride,
            padding=padding,
            kernel_init=INIT,
            dtype=dtype,
            rngs=rngs,
        )
        self.post_norm = jax.nn.identity if stage else norm(width)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.post_norm(self.conv(self.pre_norm(x)))


class MlpHead(nnx.Module):
    """Classifier with one hidden layer: squared ReLU, LayerNorm, dropout."""

    def __init__(
        self, width: int, num_classes: int, dropout: float, *, dtype: layers.Dtype, rngs: nnx.Rngs
    ):
        dense = functools.partial(layers.Linear, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.fc1 = dense(width, 4 * width)
        self.norm = nnx.LayerNorm(4 * width, epsilon=1e-5, dtype=dtype, rngs=rngs)
        self.drop = nnx.Dropout(dropout)
        self.fc2 = dense(4 * width, num_classes, kernel_metadata={"kind": "head"})

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.norm(jnp.square(jax.nn.relu(self.fc1(x))))
        return self.fc2(self.drop(x, rngs=rngs))


class LinearHead(layers.Linear):
    """Classifier without hidden layer."""

    def __call__(  # type: ignore[override]  # in the place of an MlpHead
        self, x: jax.Array, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        del rngs
        return super().__call__(x)


class MetaFormer(nnx.Module):
    """MetaFormer (Yu et al., 2022, arXiv:2210.13452).

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: unused; images of any size do.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: MetaFormerConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        stages = range(len(config.depths))
        self.downsample_layers = nnx.List(
            [Downsampling(config, stage, **kwargs) for stage in stages]
        )
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        self.stages = nnx.List(
            [nnx.List([Block(config, i, rate, **kwargs) for rate in rates[i]]) for i in stages]
        )
        width = config.widths[-1]
        self.norm = nnx.LayerNorm(width, epsilon=NORM_EPSILON, **kwargs)
        self.head = _head(config, num_classes, **kwargs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits (B, num_classes) of images (B, H, W, 3)."""
        x = self.norm(layers.global_average_pool(self.features(x, rngs=rngs)[-1]))
        return self.head(x, rngs=rngs).astype(jnp.float32)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each stage, with the default stem at strides 4, 8, 16 and 32."""
        stages = zip(self.downsample_layers, self.stages, strict=True)
        return layers.stage_maps(x, stages, rngs)


def _dense(in_features: int, out_features: int, **kwargs: Any) -> layers.Linear:
    return layers.Linear(in_features, out_features, use_bias=False, kernel_init=INIT, **kwargs)


def _block_norm(config: MetaFormerConfig, width: int, **kwargs: Any) -> nnx.LayerNorm:
    axes: dict[str, int | tuple[int, ...]] = {"channel": -1, "map": (-3, -2, -1)}
    if config.block_norm not in axes:
        raise UserError(f"block_norm is 'channel' or 'map', not '{config.block_norm}'.")
    return nnx.LayerNorm(
        width,
        epsilon=NORM_EPSILON,
        use_bias=False,
        reduction_axes=axes[config.block_norm],
        **kwargs,
    )


def _mixer(config: MetaFormerConfig, stage: int, **kwargs: Any) -> layers.Layer:
    width = config.widths[stage]
    match config.mixers[stage]:
        case "identity":
            return jax.nn.identity
        case "pool":
            return Pooling()
        case "conv":
            return SepConv(width, **kwargs)
        case "attention":
            return Attention(width, config.head_channels, **kwargs)
        case unknown:
            raise UserError(
                f"A token mixer is 'identity', 'pool', 'conv' or 'attention', not '{unknown}'."
            )


def _head(config: MetaFormerConfig, num_classes: int, **kwargs: Any) -> MlpHead | LinearHead:
    width = config.widths[-1]
    match config.head:
        case "mlp":
            return MlpHead(width, num_classes, config.dropout, **kwargs)
        case "linear":
            return LinearHead(
                width, num_classes, kernel_init=INIT, kernel_metadata={"kind": "head"}, **kwargs
            )
    raise UserError(f"head is 'mlp' or 'linear', not '{config.head}'.")


_BOCB = {"block_norm": "channel", "head": "mlp"}
_size = sizes_of("sail-sg/metaformer", "MetaFormer baselines, official README")
_size_bocb = sizes_of("sail-sg/metaformer", "MetaFormer baselines, official README", bocb=_BOCB)

_BASIC = {"block_norm": "map", "head": "linear"}
_identity = functools.partial(_size_bocb, mixers=("identity",) * 4, **_BASIC)
_pool = functools.partial(_size_bocb, mixers=("pool",) * 4, **_BASIC)
_conv = functools.partial(_size, mixers=("conv",) * 4)
_attention = functools.partial(_size, mixers=("attention",) * 4)
_conv_attention = functools.partial(_size, mixers=("conv", "conv", "attention", "attention"))


def _mini(size: Callable[..., Variant]) -> Variant:
    variant = size(
        "",
        None,
        depths=(1, 1, 3, 1),
        widths=(16, 32, 64, 96),
        head_channels=16,
        stem=(3, 2, 1),
    )
    return dataclasses.replace(variant, card={})


_M = (96, 192, 384, 768)
_S12 = {"drop_path": 0.1}
_S24 = {"depths": (4, 4, 12, 4), "drop_path": 0.1}
_S36 = {"depths": (6, 6, 18, 6), "drop_path": 0.2}
_M36 = {"depths": (6, 6, 18, 6), "widths": _M, "drop_path": 0.3}
_M48 = {"depths": (8, 8, 24, 8), "widths": _M, "drop_path": 0.4}
_S18 = {"depths": (3, 3, 9, 3)}
_C36 = {"depths": (3, 12, 18, 3), "drop_path": 0.3}
_CM36 = {"depths": (3, 12, 18, 3), "widths": (96, 192, 384, 576), "drop_path": 0.4}
_CB36 = {"depths": (3, 12, 18, 3), "widths": (128, 256, 512, 768), "drop_path": 0.6}

register_family(
    MetaFormer,
    MetaFormerConfig,
    ModelCard(
        paper="Yu et al., MetaFormer Baselines for Vision, TPAMI 2024, arXiv:2210.13452",
    ),
    {
        "identityformer_s12": _identity("identityformer_s12", 11_891_712, 74.6, **_S12),
        "identityformer_s24": _identity("identityformer_s24", 21_341_464, 78.2, **_S24),
        "identityformer_s36": _identity("identityformer_s36", 30_791_216, 79.3, **_S36),
        "identityformer_m36": _identity("identityformer_m36", 56_077_168, 80.0, **_M36),
        "identityformer_m48": _identity("identityformer_m48", 73_346_056, 80.4, **_M48),
        "poolformerv2_s12": _pool("poolformerv2_s12", 11_891_712, 78.0, **_S12),
        "poolformerv2_s24": _pool("poolformerv2_s24", 21_341_464, 80.7, **_S24),
        "poolformerv2_s36": _pool("poolformerv2_s36", 30_791_216, 81.6, **_S36),
        "poolformerv2_m36": _pool("poolformerv2_m36", 56_077_168, 82.2, **_M36),
        "poolformerv2_m48": _pool("poolformerv2_m48", 73_346_056, 82.6, **_M48),
        # The S12 of ConvFormer, AttentionFormer and CAFormer are BOCB's; officially S18 is the
        # smallest.
        "convformer_s12": _conv("MetaFormer", 19_527_192, **_S12),
        "convformer_s18": _conv("convformer_s18", 26_774_448, 83.0, **_S18, drop_path=0.2),
        "convformer_s36": _conv("convformer_s36", 40_012_152, 84.1, **_C36),
        "convformer_m36": _conv("convformer_m36", 57_051_640, 84.5, **_CM36),
        "convformer_b36": _conv("convformer_b36", 99_882_616, 84.8, **_CB36),
        "attentionformer_s12": _attention("MetaFormer", 19_201_024, **_S12),
        "caformer_s12": _conv_attention("MetaFormer", 19_238_664, **_S12),
        "caformer_s18": _conv_attention("caformer_s18", 26_341_656, 83.6, **_S18, drop_path=0.15),
        "caformer_s36": _conv_attention("caformer_s36", 39_297_102, 84.5, **_C36),
        "caformer_m36": _conv_attention("caformer_m36", 56_204_878, 85.2, **_CM36),
        "caformer_b36": _conv_attention("caformer_b36", 98_753_614, 85.5, **_CB36),
        "identityformer_mini": _mini(_identity),
        "poolformerv2_mini": _mini(_pool),
        "convformer_mini": _mini(_conv),
        "attentionformer_mini": _mini(_attention),
        "caformer_mini": _mini(_conv_attention),
    },
    torch_names=[(r"\b(act1?)\.weight$", r"\1.scale"), (r"\b(res_scale[12])\.gamma$", r"\1.scale")],
    torch_sources=["official"],
    pyramid_input="norm",
)
