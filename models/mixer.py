"""MLP-Mixer: one MLP across the patches, one across the channels, with timm's names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of

MLP_BIAS = nnx.initializers.normal(1e-6)


@dataclasses.dataclass(frozen=True)
class MixerConfig:
    """Architecture of an MLP-Mixer; the defaults are Mixer-S/16.

    Args:
      patch_size: side in pixels of a patch; divides the image size.
      width: channels of a patch.
      depth: number of blocks.
      token_ratio: hidden width of the MLP across patches over `width`.
      channel_ratio: hidden width of the MLP across channels over `width`.
      norm_epsilon: of every LayerNorm.
      dropout: in and after both MLPs.
      drop_path: stochastic depth rate of the last block; rises linearly from 0 in the first.
    """

    patch_size: int = 16
    width: int = 512
    depth: int = 8
    token_ratio: float = 0.5
    channel_ratio: float = 4.0
    norm_epsilon: float = 1e-6
    dropout: float = 0.0
    drop_path: float = 0.0


class Block(nnx.Module):
    """An MLP across the patches, then one across the channels, each with its own shortcut."""

    def __init__(
        self,
        config: MixerConfig,
        patches: int,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        width = config.width

        def norm() -> nnx.LayerNorm:
            return nnx.LayerNorm(width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)

        def mlp(features: int, hidden: float) -> layers.Mlp:
            return layers.Mlp(
                features,
                int(hidden),
                dropout=config.dropout,
                bias_init=MLP_BIAS,
                dtype=dtype,
                rngs=rngs,
            )

        self.norm1 = norm()
        self.mlp_tokens = mlp(patches, config.token_ratio * width)
        self.norm2 = norm()
        self.mlp_channels = mlp(width, config.channel_ratio * width)
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        # The first MLP acts on (B, C, tokens), the second on (B, tokens, C).
        across = self.mlp_tokens(self.norm1(x).swapaxes(1, 2), rngs=rngs).swapaxes(1, 2)
        x = x + self.drop_path(across, rngs=rngs)
        return x + self.drop_path(self.mlp_channels(self.norm2(x), rngs=rngs), rngs=rngs)


class Mixer(nnx.Module):
    """MLP-Mixer (Tolstikhin et al., 2021, arXiv:2105.01601).

    The MLP across patches has a fixed number of inputs, so the image size is fixed too.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: side of the images in pixels.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.

    Raises:
      UserError: `patch_size` does not divide the image size.
    """

    def __init__(
        self,
        config: MixerConfig,
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
        self.image_size = image_size
        self.stem: Any = nnx.Dict(
            proj=layers.patch_conv(
                3,
                config.width,
                config.patch_size,
                kernel_init=nnx.initializers.lecun_normal(),
                bias_init=nnx.initializers.zeros,
                dtype=dtype,
                rngs=rngs,
            )
        )
        patches = (image_size // config.patch_size) ** 2
        [rates] = layers.drop_path_rates(config.drop_path, [config.depth])
        self.blocks = nnx.List(
            [Block(config, patches, rate, dtype=dtype, rngs=rngs) for rate in rates]
        )
        self.norm = nnx.LayerNorm(config.width, epsilon=config.norm_epsilon, dtype=dtype, rngs=rngs)
        # The paper's zero initialization would pass no gradient to the rest of the model in the
        # first step.
        self.head = layers.classifier(
            config.width, num_classes, kernel_init=layers.trunc_normal(0.02), dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return logits (B, num_classes) of images (B, image_size, image_size, 3)."""
        [x] = self.features(x, rngs=rngs)
        return self.head(layers.global_average_pool(x)).astype(jnp.float32)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the normalized patches as one map (B, H / patch_size, W / patch_size, C)."""
        if x.shape[1:3] != (self.image_size, self.image_size):
            raise UserError(
                f"This MLP-Mixer was created for images of {self.image_size}x{self.image_size} "
                f"pixels and got {x.shape[1]}x{x.shape[2]}: pass image_size when you create it."
            )
        x = self.stem.proj(x)
        grid = x.shape
        x = x.reshape(grid[0], grid[1] * grid[2], grid[3])  # (B, tokens, C)
        for block in self.blocks:
            x = block(x, rngs=rngs)
        return [self.norm(x).reshape(grid)]


_BOCB = {"norm_epsilon": 1e-5, "dropout": 0.1}
_size = sizes_of("timm", "MLP-Mixer, section 3.2: ImageNet-1k alone", bocb=_BOCB)

register_family(
    Mixer,
    MixerConfig,
    ModelCard(
        paper="Tolstikhin et al., MLP-Mixer: An all-MLP Architecture for Vision, NeurIPS 2021, "
        "arXiv:2105.01601",
    ),
    {
        "mixer_s": _size("mixer_s16_224", 18_528_264, drop_path=0.0),
        "mixer_s32": _size("mixer_s32_224", 19_104_624, patch_size=32),
        "mixer_b": _size("mixer_b16_224", 59_880_472, 76.44, width=768, depth=12),
        "mixer_b32": _size("mixer_b32_224", 60_293_428, patch_size=32, width=768, depth=12),
        "mixer_l": _size("mixer_l16_224", 208_196_168, width=1024, depth=24),
        "mixer_l32": _size("mixer_l32_224", 206_939_264, patch_size=32, width=1024, depth=24),
        "mixer_mini": Variant(
            {"patch_size": 4, "width": 64, "depth": 4},
            bocb=_BOCB,
        ),
    },
)
