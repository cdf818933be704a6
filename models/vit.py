"""Vision Transformer in the sizes and with the initialization of DeiT; timm's names."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers, position_tables
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of

LAYER_NORM_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Architecture of a ViT; the defaults are DeiT-S.

    Args:
      patch_size: side in pixels of a patch; divides the image size.
      width: channels of a token.
      depth: number of blocks.
      heads: attention heads; they divide the width.
      mlp_ratio: hidden width of a block's MLP over `width`.
      qkv_bias: whether the projection to queries, keys and values has a bias.
      layer_scale: initial value of each branch's layer scale; None: no layer scale.
      dropout: after the position embedding, and in and after each branch.
      attention_dropout: of the attention weights.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 in the first.
    """

    patch_size: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    layer_scale: float | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    drop_path: float = 0.0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise UserError(f"heads {self.heads} do not divide the width {self.width}.")


class Attention(nnx.Module):
    """Multi-head self-attention over (B, tokens, width), with one product for q, k and v."""

    def __init__(self, config: ViTConfig, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.heads = config.heads
        width = config.width
        self.qkv = _linear(width, 3 * width, use_bias=config.qkv_bias, dtype=dtype, rngs=rngs)
        self.attn_drop = nnx.Dropout(config.attention_dropout)
        self.proj = _linear(width, width, dtype=dtype, rngs=rngs)
        self.proj_drop = nnx.Dropout(config.dropout)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        qkv = self.qkv(x).reshape(*x.shape[:2], 3, self.heads, -1)  # (B, tokens, 3, heads, C)
        dropout = functools.partial(self.attn_drop, rngs=rngs) if self.attn_drop.rate else None
        y = layers.attention(*(qkv[:, :, i] for i in range(3)), dropout=dropout)
        return self.proj_drop(self.proj(y), rngs=rngs)


class Block(nnx.Module):
    """Attention and MLP, each with a norm before and a shortcut."""

    def __init__(self, config: ViTConfig, drop_path: float, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        width = config.width
        self.norm1 = _layer_norm(width, dtype=dtype, rngs=rngs)
        self.attn = Attention(config, dtype=dtype, rngs=rngs)
        self.ls1 = _layer_scale(config)
        self.norm2 = _layer_norm(width, dtype=dtype, rngs=rngs)
        self.mlp = layers.Mlp(
            width,
            int(config.mlp_ratio * width),
            dropout=config.dropout,
            kernel_init=layers.trunc_normal(0.02),
            dtype=dtype,
            rngs=rngs,
        )
        self.ls2 = _layer_scale(config)
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = x + self.drop_path(self.ls1(self.attn(self.norm1(x), rngs=rngs)), rngs=rngs)
        return x + self.drop_path(self.ls2(self.mlp(self.norm2(x), rngs=rngs)), rngs=rngs)


class ViT(nnx.Module):
    """Vision Transformer with a class token and learned position embeddings.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels, for which the position embeddings are made. They
        are resized for images of other sizes.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.

    Raises:
      UserError: `patch_size` does not divide the image size.
    """

    def __init__(
        self,
        config: ViTConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        if image_size % config.patch_size:
            raise UserError(
                f"Images of {image_size} pixels cannot be cut into patches of {config.patch_size}: "
                "choose an image_size that patch_size divides."
            )
        width, patch = config.width, config.patch_size
        self.patch_size = patch
        self.grid = image_size // patch
        init = layers.trunc_normal(0.02)
        self.patch_embed: Any = nnx.Dict(
            proj=layers.patch_conv(3, width, patch, dtype=dtype, rngs=rngs)
        )
        self.cls_token = nnx.Param(init(rngs.params(), (1, 1, width)), kind="token")
        self.pos_embed = nnx.Param(
            init(rngs.params(), (1, 1 + self.grid**2, width)), kind="embedding"
        )
        self.pos_drop = nnx.Dropout(config.dropout)
        [rates] = layers.drop_path_rates(config.drop_path, [config.depth])
        self.blocks = nnx.List([Block(config, rate, dtype=dtype, rngs=rngs) for rate in rates])
        self.norm = _layer_norm(width, dtype=dtype, rngs=rngs)
        self.head = _linear(
            width, num_classes, dtype=dtype, kernel_metadata={"kind": "head"}, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits (B, num_classes) of images (B, H, W, 3)."""
        return self.head(self._tokens(x, rngs)[:, 0]).astype(jnp.float32)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the normalized patch tokens as one map (B, H / patch_size, W / patch_size, C)."""
        tokens = self._tokens(x, rngs)[:, 1:]
        rows, columns = (side // self.patch_size for side in x.shape[1:3])
        return [tokens.reshape(len(x), rows, columns, -1)]

    def _tokens(self, x: jax.Array, rngs: nnx.Rngs | None) -> jax.Array:
        """Return the normalized tokens (B, 1 + patches, C), the class token first."""
        if x.shape[1] % self.patch_size or x.shape[2] % self.patch_size:
            raise UserError(
                f"Images of {x.shape[1]}x{x.shape[2]} pixels cannot be cut into patches of "
                f"{self.patch_size}."
            )
        x = self.patch_embed.proj(x)  # (B, rows, columns, C)
        batch, rows, columns, width = x.shape
        position = self.pos_embed[...]
        if (rows, columns) != (self.grid, self.grid):
            position = layers.resize_position_embedding(position, (rows, columns), prefix_tokens=1)
        token = jnp.broadcast_to(self.cls_token[...].astype(x.dtype), (batch, 1, width))
        x = jnp.concatenate([token, x.reshape(batch, rows * columns, width)], axis=1)
        x = self.pos_drop(x + position.astype(x.dtype), rngs=rngs)
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return self.norm(x)


def _linear(in_features: int, out_features: int, **kwargs: Any) -> layers.Linear:
    init = layers.trunc_normal(0.02)
    return layers.Linear(in_features, out_features, kernel_init=init, **kwargs)


def _layer_norm(width: int, *, dtype: layers.Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(width, epsilon=LAYER_NORM_EPSILON, dtype=dtype, rngs=rngs)


def _layer_scale(config: ViTConfig) -> layers.Layer:
    if config.layer_scale is None:
        return jax.nn.identity
    return layers.LayerScale(config.width, config.layer_scale)


_size = sizes_of("timm", "DeiT, official README")

register_family(
    ViT,
    ViTConfig,
    ModelCard(
        paper="Dosovitskiy et al., An Image is Worth 16x16 Words, ICLR 2021, arXiv:2010.11929; "
        "Touvron et al., Training Data-efficient Image Transformers, ICML 2021, arXiv:2012.12877",
    ),
    {
        "vit_ti": _size(
            "deit_tiny_patch16_224", 5_717_416, 72.2, aliases=("deit_ti",), width=192, heads=3,
            drop_path=0.1,
        ),
        "vit_s": _size(
            "deit_small_patch16_224", 22_050_664, 79.9, aliases=("deit_s",), drop_path=0.1
        ),
        "vit_b": _size(
            "deit_base_patch16_224", 86_567_656, 81.8, aliases=("deit_b",), width=768, heads=12,
            drop_path=0.1,
        ),
        "vit_l": _size("vit_large_patch16_224", 304_326_632, width=1024, depth=24, heads=16),
        "vit_h": _size(
            "vit_huge_patch14_224", 632_045_800, patch_size=14, width=1280, depth=32, heads=16
        ),
        "vit_mini": Variant(
            {"patch_size": 4, "width": 64, "depth": 4, "heads": 4}
        ),
    },
    position_tables={"pos_embed": position_tables.resize_absolute},
)  # fmt: skip
