"""Swin Transformer: attention in windows, shifted by half in every other block; timm's names."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers, position_tables
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of

INIT = layers.trunc_normal(0.02)


@dataclasses.dataclass(frozen=True)
class SwinConfig:
    """Architecture of a Swin Transformer; the defaults are Swin-T.

    Args:
      patch_size: side in pixels of a patch.
      width: channels of the first stage; each next stage has twice as many.
      depths: blocks of each stage.
      heads: attention heads of each stage.
      window: side of a window; a map that is not larger is a single window.
      mlp_ratio: hidden width of a block's MLP over its width.
      qkv_bias: whether the projection to queries, keys and values has a bias.
      dropout: after the patch embedding, and in and after each branch.
      attention_dropout: of the attention weights.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 in the first.
    """

    patch_size: int = 4
    width: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "heads")
        for i, heads in enumerate(self.heads):
            if self.width * 2**i % heads:
                raise UserError(
                    f"heads {heads} do not divide the width {self.width * 2**i} of stage {i + 1}."
                )


def relative_position_index(window: int) -> np.ndarray:
    """Return the row of the bias table for each pair of positions, (window**2, window**2)."""
    rows, columns = np.divmod(np.arange(window**2), window)
    down = rows[:, None] - rows[None, :] + window - 1
    right = columns[:, None] - columns[None, :] + window - 1
    return down * (2 * window - 1) + right


def shift_mask(height: int, width: int, window: int, shift: int) -> np.ndarray:
    """Return the mask (windows, window**2, window**2) that is added to the attention scores.

    A cyclic shift brings opposite borders of the map into one window. Pairs of positions from
    different borders get -100, as in the reference, others 0.
    """

    def region(size: int) -> np.ndarray:
        index = np.arange(size)
        return (index >= size - window).astype(int) + (index >= size - shift)

    regions = 3 * region(height)[:, None] + region(width)[None, :]
    regions = regions.reshape(height // window, window, width // window, window)
    regions = regions.transpose(0, 2, 1, 3).reshape(-1, window**2)
    return np.where(regions[:, :, None] == regions[:, None, :], 0.0, -100.0).astype(np.float32)


class WindowAttention(nnx.Module):
    """Self-attention within windows, with a learned bias per relative position and head."""

    def __init__(
        self,
        config: SwinConfig,
        width: int,
        heads: int,
        window: int,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        dense = functools.partial(layers.Linear, kernel_init=INIT, dtype=dtype, rngs=rngs)
        self.heads = heads
        self.window = window
        self.relative_position_bias_table = nnx.Param(
            INIT(rngs.params(), ((2 * window - 1) ** 2, heads)), kind="embedding"
        )
        self.qkv = dense(width, 3 * width, use_bias=config.qkv_bias)
        self.attn_drop = nnx.Dropout(config.attention_dropout)
        self.proj = dense(width, width)
        self.proj_drop = nnx.Dropout(config.dropout)

    def __call__(
        self, x: jax.Array, mask: np.ndarray | None = None, *, rngs: nnx.Rngs | None = None
    ) -> jax.Array:
        """Map (B, windows, window**2, C) to the same shape.

        Args:
          x: windows as tokens.
          mask: (windows, window**2, window**2), added to the scores.
          rngs: random streams of dropout.
        """
        # (B, windows, window**2, 3, heads, C / heads)
        qkv = self.qkv(x).reshape(*x.shape[:3], 3, self.heads, -1)
        bias = self.relative_position_bias_table[...][relative_position_index(self.window)]
        bias = bias.transpose(2, 0, 1)[None, None]  # (1, 1, heads, window**2, window**2)
        if mask is not None:
            bias = bias + mask[None, :, None]
        y = layers.attention(
            *(qkv[:, :, :, i] for i in range(3)),
            bias=bias,
            dropout=functools.partial(self.attn_drop, rngs=rngs),
        )
        return self.proj_drop(self.proj(y), rngs=rngs)


class Block(nnx.Module):
    """Window attention, shifted where `shift` > 0, and MLP, each with a norm and a shortcut."""

    def __init__(
        self,
        config: SwinConfig,
        width: int,
        heads: int,
        window: int,
        shift: int,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.window = window
        self.shift = shift
        self.norm1 = _layer_norm(width, **kwargs)
        self.attn = WindowAttention(config, width, heads, window, **kwargs)
        self.norm2 = _layer_norm(width, **kwargs)
        self.mlp = layers.Mlp(
            width,
            int(config.mlp_ratio * width),
            dropout=config.dropout,
            kernel_init=INIT,
            **kwargs,
        )
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x + self.drop_path(self._attend(self.norm1(x), rngs), rngs=rngs)
        return x + self.drop_path(self.mlp(self.norm2(x), rngs=rngs), rngs=rngs)

    def _attend(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Return attention within the (shifted) windows of a map (B, H, W, C)."""
        batch, height, width, channels = x.shape
        window, shift = self.window, self.shift
        # Shift, and pad to whole windows.
        x = jnp.roll(x, (-shift, -shift), (1, 2)) if shift else x
        x = jnp.pad(x, ((0, 0), (0, -height % window), (0, -width % window), (0, 0)))
        rows, columns = x.shape[1] // window, x.shape[2] // window
        mask = shift_mask(rows * window, columns * window, window, shift) if shift else None
        x = x.reshape(batch, rows, window, columns, window, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * columns, window**2, channels)  # (B, windows, tokens, C)
        x = self.attn(x, mask, rngs=rngs)
        x = x.reshape(batch, rows, columns, window, window, channels).swapaxes(2, 3)
        x = x.reshape(batch, rows * window, columns * window, channels)[:, :height, :width]
        return jnp.roll(x, (shift, shift), (1, 2)) if shift else x


class PatchMerging(nnx.Module):
    """Joins 2x2 patches into one of twice the width."""

    def __init__(self, width: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.norm = _layer_norm(4 * width, dtype=dtype, rngs=rngs)
        self.reduction = layers.Linear(
            4 * width, 2 * width, use_bias=False, kernel_init=INIT, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # The channels of the four neighbors, column by column as in the reference.
        x = x.transpose(0, 1, 3, 4, 2, 5).reshape(batch, height // 2, width // 2, 4 * channels)
        return self.reduction(self.norm(x))


class Stage(nnx.Module):
    """Patch merging (except in the first stage), then the blocks."""

    def __init__(
        self,
        config: SwinConfig,
        index: int,
        side: int,
        rates: list[float],
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        width, heads = config.width * 2**index, config.heads[index]
        self.downsample: layers.Layer = (
            PatchMerging(width // 2, dtype=dtype, rngs=rngs) if index else jax.nn.identity
        )
        # A map that fits into a window is a single window, without a shift.
        window = min(config.window, side)
        shift = config.window // 2 if side > config.window else 0
        self.blocks = nnx.List(
            [
                Block(config, width, heads, window, shift * (i % 2), rate, dtype=dtype, rngs=rngs)
                for i, rate in enumerate(rates)
            ]
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return x


class Swin(nnx.Module):
    """Swin Transformer (Liu et al., 2021, arXiv:2103.14030).

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels, for which the windows are chosen; images of other
        sizes work with the same windows.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: SwinConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        patch = config.patch_size
        self.patch_embed: Any = nnx.Dict(
            proj=layers.patch_conv(3, config.width, patch, **kwargs),
            norm=_layer_norm(config.width, **kwargs),
        )
        self.patch_size = patch
        self.pos_drop = nnx.Dropout(config.dropout)
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        side, stages = -(-image_size // patch), []
        for i in range(len(config.depths)):
            stages.append(Stage(config, i, side, rates[i], **kwargs))
            side = -(-side // 2)
        self.layers = nnx.List(stages)
        width = config.width * 2 ** (len(stages) - 1)
        self.norm = _layer_norm(width, **kwargs)
        fc = layers.classifier(width, num_classes, kernel_init=INIT, **kwargs)
        self.head: Any = nnx.Dict(fc=fc)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits (B, num_classes) of images (B, H, W, 3)."""
        x = self.norm(self.features(x, rngs=rngs)[-1])
        return self.head.fc(layers.global_average_pool(x)).astype(jnp.float32)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each stage, for patches of 4 pixels at strides 4, 8, 16 and 32."""
        patch = self.patch_size
        x = jnp.pad(x, ((0, 0), (0, -x.shape[1] % patch), (0, -x.shape[2] % patch), (0, 0)))
        x = self.patch_embed.norm(self.patch_embed.proj(x))
        x = self.pos_drop(x, rngs=rngs)
        maps = []
        for stage in self.layers:
            x = stage(x, rngs=rngs)
            maps.append(x)
        return maps


def _layer_norm(width: int, **kwargs: Any) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=1e-5, **kwargs)


_size = sizes_of("timm", "Swin Transformer, official README")
_DEEP = {"depths": (2, 2, 18, 2)}

register_family(
    Swin,
    SwinConfig,
    ModelCard(
        paper="Liu et al., Swin Transformer: Hierarchical Vision Transformer using Shifted "
        "Windows, ICCV 2021, arXiv:2103.14030",
    ),
    {
        "swin_t": _size("swin_tiny_patch4_window7_224", 28_288_354, 81.2, drop_path=0.2),
        "swin_s": _size("swin_small_patch4_window7_224", 49_606_258, 83.2, **_DEEP, drop_path=0.3),
        "swin_b": _size(
            "swin_base_patch4_window7_224", 87_768_224, 83.5, **_DEEP, width=128,
            heads=(4, 8, 16, 32), drop_path=0.5,
        ),
        "swin_l": _size(
            "swin_large_patch4_window7_224", 196_532_476, **_DEEP, width=192,
            heads=(6, 12, 24, 48), drop_path=0.2,
        ),
        "swin_mini": Variant(
            {"patch_size": 2, "width": 24, "depths": (2, 2, 2), "heads": (2, 4, 8), "window": 4},
        ),
    },
    position_tables={"relative_position_bias_table": position_tables.resize_relative},
    pyramid_input="norm",
)  # fmt: skip
