"""RepVGG (Ding et al., CVPR 2021, arXiv:2101.03697), with timm's names."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class RepVGGConfig:
    """Architecture of a RepVGG; the defaults are RepVGG-A1."""

    depths: tuple[int, ...] = (2, 4, 14, 1)
    widths: tuple[int, ...] = (64, 128, 256, 1280)
    stem: int = 64  # channels of the stem
    stem_strides: int = 2
    groups: int = 1  # of every second block of a stage
    deploy: bool = False  # one convolution per block, the result of `fuse()`

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths")
        if any(width % self.groups for width in self.widths):
            raise UserError(f"groups is {self.groups}; it must divide the widths {self.widths}.")


class ConvNorm(nnx.Module):
    """Convolution without bias, and BatchNorm."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        strides: int,
        groups: int,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = layers.Conv(
            in_features,
            out_features,
            kernel_size,
            strides=strides,
            groups=groups,
            use_bias=False,
            # He initialization by fan_out / groups
            kernel_init=nnx.initializers.variance_scaling(2.0 * groups, "fan_out", "normal"),
            dtype=dtype,
            rngs=rngs,
        )
        self.bn = layers.BatchNorm(out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.bn(self.conv(x))


class Block(nnx.Module):
    """ReLU of the sum of a 3x3, a 1x1 and, if shapes agree, an identity branch with BatchNorms."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strides: int,
        groups: int,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs = {"strides": strides, "groups": groups, "dtype": dtype, "rngs": rngs}
        same = strides == 1 and in_features == out_features
        self.identity = layers.BatchNorm(out_features, dtype=dtype, rngs=rngs) if same else None
        self.conv_kxk = ConvNorm(in_features, out_features, 3, **kwargs)
        self.conv_1x1 = ConvNorm(in_features, out_features, 1, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.conv_kxk(x) + self.conv_1x1(x)
        return nnx.relu(y if self.identity is None else y + self.identity(x))

    def fuse(self) -> "DeployBlock":
        """Return the single convolution that equals the block in evaluation mode."""
        conv = self.conv_kxk.conv
        gain, bias = self.conv_kxk.bn.affine()
        kernel = conv.kernel[...] * layers.per_channel(gain, conv.kernel[...])
        gain, shift = self.conv_1x1.bn.affine()
        center = self.conv_1x1.conv.kernel[0, 0] * gain[None]
        bias += shift
        if self.identity is not None:
            gain, shift = self.identity.affine()
            center += jnp.tile(jnp.eye(kernel.shape[2]), conv.groups) * gain[None]
            bias += shift
        strides, _ = conv.strides
        block = nnx.eval_shape(  # no weights are drawn: both are set below
            lambda: DeployBlock(
                kernel.shape[2] * conv.groups,
                kernel.shape[3],
                strides=strides,
                groups=conv.groups,
                dtype=conv.dtype,
                rngs=nnx.Rngs(0),
            )
        )
        fused = block.reparam_conv
        assert fused.bias is not None
        fused.kernel.set_value(kernel.at[1, 1].add(center))
        fused.bias.set_value(bias)
        return block


class DeployBlock(nnx.Module):
    """A block after re-parameterization: 3x3 convolution with bias, and ReLU."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        strides: int,
        groups: int,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.reparam_conv = layers.Conv(
            in_features, out_features, 3, strides=strides, groups=groups, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return nnx.relu(self.reparam_conv(x))

    def fuse(self) -> "DeployBlock":
        """Return the block itself: there is nothing left to fuse."""
        return self


class Head(nnx.Module):
    """Global average pooling and classifier, nested as in timm."""

    def __init__(self, in_features: int, num_classes: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        init = nnx.initializers.normal(0.01)
        self.fc = layers.classifier(
            in_features, num_classes, kernel_init=init, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.fc(layers.global_average_pool(x))


class RepVGG(nnx.Module):
    """RepVGG: three branches per block in training, a stack of 3x3 convolutions after `fuse()`.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: unused; images of any size do.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: RepVGGConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        block: type[Block | DeployBlock] = DeployBlock if config.deploy else Block
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.stem = block(3, config.stem, strides=config.stem_strides, groups=1, **kwargs)
        self.stages: nnx.List[nnx.List[Block | DeployBlock]] = nnx.List()
        width = config.stem
        for depth, out in zip(config.depths, config.widths, strict=True):
            stage: nnx.List[Block | DeployBlock] = nnx.List()
            for i in range(depth):
                groups = config.groups if i % 2 else 1
                strides = 2 if i == 0 else 1
                stage.append(block(width, out, strides=strides, groups=groups, **kwargs))
                width = out
            self.stages.append(stage)
        self.head = Head(width, num_classes, **kwargs)

    def fuse(self) -> "RepVGG":
        """Return a model whose blocks are single convolutions, without BatchNorm.

        Its logits are those of this model in evaluation mode.
        """
        fused = nnx.clone(self)
        fused.stem = fused.stem.fuse()
        fused.stages = nnx.List([nnx.List([block.fuse() for block in s]) for s in fused.stages])
        return fused

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each stage, at strides 4, 8, 16 and 32."""
        del rngs  # nothing is random
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            for block in stage:
                x = block(x)
            maps.append(x)
        return maps

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        return self.head(self.features(x)[-1]).astype(jnp.float32)


_size = sizes_of("timm", "timm results-imagenet.csv")

A = (2, 4, 14, 1)
B = (4, 6, 16, 1)
B1 = {"depths": B, "widths": (128, 256, 512, 2048)}
B2 = {"depths": B, "widths": (160, 320, 640, 2560)}
B3 = {"depths": B, "widths": (192, 384, 768, 2560)}

register_family(
    RepVGG,
    RepVGGConfig,
    ModelCard(
        paper="Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, "
        "arXiv:2101.03697",
    ),
    {
        "repvgg_a0": _size(
            "repvgg_a0", 9_108_968, None, depths=A, widths=(48, 96, 192, 1280), stem=48
        ),
        "repvgg_a1": _size("repvgg_a1", 14_092_264, 74.47),
        "repvgg_a2": _size("repvgg_a2", 28_210_600, None, depths=A, widths=(96, 192, 384, 1408)),
        "repvgg_b0": _size("repvgg_b0", 15_817_960, None, depths=B),
        "repvgg_b1": _size("repvgg_b1", 57_415_016, None, **B1),
        "repvgg_b1g4": _size("repvgg_b1g4", 39_966_056, None, **B1, groups=4),
        "repvgg_b2": _size("repvgg_b2", 89_022_376, None, **B2),
        "repvgg_b2g4": _size("repvgg_b2g4", 61_758_376, None, **B2, groups=4),
        "repvgg_b3": _size("repvgg_b3", 123_085_288, None, **B3),
        "repvgg_b3g4": _size("repvgg_b3g4", 83_825_128, None, **B3, groups=4),
        "repvgg_mini": Variant(
            config={
                "depths": (1, 2, 3, 1),
                "widths": (16, 32, 64, 128),
                "stem": 16,
                "stem_strides": 1,
            },
        ),
    },
)
