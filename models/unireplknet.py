"""UniRepLKNet (Ding et al., CVPR 2024, arXiv:2311.15599), with the authors' names."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, check_lengths, register_family, sizes_of

# Side of a large kernel -> (side, dilation) of the branches parallel to it.
BRANCHES = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
}
INIT = layers.trunc_normal(0.02)


@dataclasses.dataclass(frozen=True)
class UniRepLKNetConfig:
    """Architecture of a UniRepLKNet; the defaults are UniRepLKNet-T."""

    depths: tuple[int, ...] = (3, 3, 18, 3)
    widths: tuple[int, ...] = (80, 160, 320, 640)
    large_kernel: int = 13  # side in all blocks of stages 2 and 4, some of stage 3; 3 elsewhere
    period: int = 2  # every such block of stage 3 has the large kernel, from the first on
    stem_strides: tuple[int, int] = (2, 2)  # of the stem's two convolutions
    layer_scale: float = 1e-6
    drop_path: float = 0.0
    deploy: bool = False  # blocks of one depthwise convolution and no BatchNorm, as after `fuse()`

    def __post_init__(self) -> None:
        check_lengths(self, "depths", "widths")
        if len(self.depths) != 4:
            raise UserError(f"depths has {len(self.depths)} entries; UniRepLKNet has four stages.")
        if self.large_kernel not in BRANCHES:
            known = ", ".join(map(str, sorted(BRANCHES)))
            raise UserError(f"large_kernel is one of {known}, not {self.large_kernel}.")

    def kernel_sizes(self) -> list[list[int]]:
        """Return the side of each block's depthwise kernel, one list per stage."""
        periods = (None, 1, self.period, 1)
        return [
            [self.large_kernel if every and i % every == 0 else 3 for i in range(depth)]
            for depth, every in zip(self.depths, periods, strict=True)
        ]


_depthwise = functools.partial(layers.depthwise_conv, kernel_init=INIT)


class DilatedReparam(nnx.Module):
    """Sum of a large depthwise kernel and parallel small dilated ones, each with BatchNorm."""

    def __init__(self, features: int, kernel_size: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.lk_origin = _depthwise(features, kernel_size, use_bias=False, **kwargs)
        self.origin_bn = layers.BatchNorm(features, **kwargs)
        self.branches = BRANCHES[kernel_size]
        for k, d in self.branches:
            conv = _depthwise(features, k, dilation=d, use_bias=False, **kwargs)
            setattr(self, f"dil_conv_k{k}_{d}", conv)
            setattr(self, f"dil_bn_k{k}_{d}", layers.BatchNorm(features, **kwargs))

    def __call__(self, x: jax.Array) -> jax.Array:
        y = self.origin_bn(self.lk_origin(x))
        for k, d in self.branches:
            y += getattr(self, f"dil_bn_k{k}_{d}")(getattr(self, f"dil_conv_k{k}_{d}")(x))
        return y

    def merged(self) -> tuple[jax.Array, jax.Array]:
        """Return kernel (side, side, 1, C) and bias (C,) of the equal single convolution.

        Equal in evaluation mode; a dilated kernel is a large one with zeros between its taps.
        """
        gain, bias = self.origin_bn.affine()
        kernel = self.lk_origin.kernel[...] * gain[None, None, None]
        side = kernel.shape[0]
        for k, d in self.branches:
            gain, shift = getattr(self, f"dil_bn_k{k}_{d}").affine()
            branch = getattr(self, f"dil_conv_k{k}_{d}").kernel[...] * gain[None, None, None]
            start = (side - (d * (k - 1) + 1)) // 2
            taps = slice(start, side - start, d)
            kernel = kernel.at[taps, taps].add(branch)
            bias += shift
        return kernel, bias


class LargeKernel(nnx.Module):
    """A fused `DilatedReparam`: one large depthwise convolution with bias."""

    def __init__(self, features: int, kernel_size: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.lk_origin = _depthwise(features, kernel_size, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.lk_origin(x)


class SqueezeExcite(nnx.Module):
    """Gates computed from the means of all channels (Hu et al., 2018, arXiv:1709.01507)."""

    def __init__(self, features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"kernel_init": INIT, "dtype": dtype, "rngs": rngs}
        self.down = layers.Conv(features, features // 4, 1, **kwargs)
        self.up = layers.Conv(features // 4, features, 1, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nnx.relu(self.down(x.mean((1, 2), keepdims=True)))  # (B, 1, 1, C / 4)
        return x * nnx.sigmoid(self.up(gate))


class ResponseNorm(nnx.Module):
    """Global response normalization (Woo et al., 2023, arXiv:2301.00808)."""

    def __init__(self, features: int, *, use_bias: bool = True):
        shape = (1, 1, 1, features)
        self.gamma = nnx.Param(jnp.zeros(shape, jnp.float32), kind="scale")
        self.beta = nnx.Param(jnp.zeros(shape, jnp.float32), kind="bias") if use_bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        bias = None if self.beta is None else self.beta[0, 0, 0]
        return layers.response_norm(x, self.gamma[0, 0, 0], bias)


class Block(nnx.Module):
    """Depthwise convolution, squeeze-and-excite, MLP with response norm, on a residual branch."""

    def __init__(
        self,
        features: int,
        kernel_size: int,
        config: UniRepLKNetConfig,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.dwconv = (
            _depthwise(features, 3, use_bias=False, **kwargs)
            if kernel_size == 3
            else DilatedReparam(features, kernel_size, **kwargs)
        )
        self.norm = layers.BatchNorm(features, **kwargs)
        self.se = SqueezeExcite(features, **kwargs)
        self.pwconv1 = layers.Linear(features, 4 * features, kernel_init=INIT, **kwargs)
        self.grn = ResponseNorm(4 * features)
        self.pwconv2 = layers.Linear(
            4 * features, features, use_bias=False, kernel_init=INIT, **kwargs
        )
        self.pwconv2_bn = layers.BatchNorm(features, **kwargs)
        self.gamma = nnx.Param(jnp.full((features,), config.layer_scale, jnp.float32), kind="scale")
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.se(self.norm(self.dwconv(x)))
        y = self.grn(layers.gelu(self.pwconv1(y)))  # (B, H, W, 4C)
        y = self.pwconv2_bn(self.pwconv2(y))  # (B, H, W, C)
        y *= layers.per_channel(self.gamma[...].astype(y.dtype), y)
        return x + self.drop_path(y, rngs=rngs)

    def fuse(self) -> "DeployBlock":
        """Return the block without BatchNorm and layer scale that is equal in evaluation mode."""
        if isinstance(self.dwconv, DilatedReparam):
            kernel, bias = self.dwconv.merged()
        else:
            kernel, bias = self.dwconv.kernel[...], jnp.zeros(())
        gain, shift = self.norm.affine()
        features, side, dtype = kernel.shape[-1], kernel.shape[0], self.pwconv1.dtype
        block = nnx.eval_shape(  # no weights are drawn: all are set below
            lambda: DeployBlock(features, side, dtype=dtype, rngs=nnx.Rngs(0))
        )
        conv = block.dwconv.lk_origin if isinstance(block.dwconv, LargeKernel) else block.dwconv
        assert conv.bias is not None
        assert block.pwconv2.bias is not None
        assert self.grn.beta is not None
        conv.kernel.set_value(kernel * gain[None, None, None])
        conv.bias.set_value(bias * gain + shift)
        block.se, block.pwconv1 = self.se, self.pwconv1
        block.grn.gamma.set_value(self.grn.gamma[...])
        gain, shift = self.pwconv2_bn.affine()
        gain, shift = gain * self.gamma[...], shift * self.gamma[...]
        kernel = self.pwconv2.kernel[...] * gain[None]
        block.pwconv2.kernel.set_value(kernel)
        # The response norm's bias passes through the second product.
        block.pwconv2.bias.set_value(shift + self.grn.beta[0, 0, 0] @ kernel)
        return block


class DeployBlock(nnx.Module):
    """A block after re-parameterization."""

    def __init__(self, features: int, kernel_size: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        self.dwconv: layers.Conv | LargeKernel = (
            _depthwise(features, 3, use_bias=True, **kwargs)
            if kernel_size == 3
            else LargeKernel(features, kernel_size, **kwargs)
        )
        self.se = SqueezeExcite(features, **kwargs)
        self.pwconv1 = layers.Linear(features, 4 * features, kernel_init=INIT, **kwargs)
        self.grn = ResponseNorm(4 * features, use_bias=False)
        self.pwconv2 = layers.Linear(4 * features, features, kernel_init=INIT, **kwargs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        del rngs
        y = self.se(self.dwconv(x))
        return x + self.pwconv2(self.grn(layers.gelu(self.pwconv1(y))))

    def fuse(self) -> "DeployBlock":
        """Return the block itself: there is nothing left to fuse."""
        return self


class Stem(nnx.Module):
    """Two 3x3 convolutions with LayerNorm, GELU between them."""

    def __init__(
        self, features: int, strides: tuple[int, int], *, dtype: layers.Dtype, rngs: nnx.Rngs
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        half = features // 2
        self.conv1 = layers.Conv(3, half, 3, strides=strides[0], kernel_init=INIT, **kwargs)
        self.norm1 = nnx.LayerNorm(half, epsilon=1e-6, **kwargs)
        self.conv2 = layers.Conv(half, features, 3, strides=strides[1], kernel_init=INIT, **kwargs)
        self.norm2 = nnx.LayerNorm(features, epsilon=1e-6, **kwargs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = layers.gelu(self.norm1(self.conv1(x)))
        return self.norm2(self.conv2(x))


class Downsample(nnx.Module):
    """A 3x3 convolution of stride 2 with LayerNorm."""

    def __init__(self, in_features: int, features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs):
        self.conv = layers.Conv(
            in_features, features, 3, strides=2, kernel_init=INIT, dtype=dtype, rngs=rngs
        )
        self.norm = nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(self.conv(x))


class UniRepLKNet(nnx.Module):
    """UniRepLKNet: a large kernel with parallel dilated ones in training, fused by `fuse()`.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: unused; images of any size do.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: UniRepLKNetConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        rates = layers.drop_path_rates(config.drop_path, config.depths)
        self.downsample_layers: nnx.List[layers.Layer] = nnx.List()
        self.stages: nnx.List[nnx.List[Block | DeployBlock]] = nnx.List()
        for i, (features, kernel_sizes) in enumerate(
            zip(config.widths, config.kernel_sizes(), strict=True)
        ):
            self.downsample_layers.append(
                Downsample(config.widths[i - 1], features, **kwargs)
                if i
                else Stem(features, config.stem_strides, **kwargs)
            )
            self.stages.append(
                nnx.List(
                    DeployBlock(features, kernel_size, **kwargs)
                    if config.deploy
                    else Block(features, kernel_size, config, rate, **kwargs)
                    for kernel_size, rate in zip(kernel_sizes, rates[i], strict=True)
                )
            )
        self.norm = nnx.LayerNorm(config.widths[-1], epsilon=1e-6, **kwargs)
        self.head = layers.classifier(config.widths[-1], num_classes, kernel_init=INIT, **kwargs)

    def fuse(self) -> "UniRepLKNet":
        """Return a model with all branches, BatchNorms and layer scales folded into the weights.

        Its logits are those of this model in evaluation mode.
        """
        fused = nnx.clone(self)
        fused.stages = nnx.List(nnx.List(block.fuse() for block in s) for s in fused.stages)
        return fused

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the map of each stage, at strides 4, 8, 16 and 32."""
        stages = zip(self.downsample_layers, self.stages, strict=True)
        return layers.stage_maps(x, stages, rngs)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = layers.global_average_pool(self.features(x, rngs=rngs)[-1])
        return self.head(self.norm(x)).astype(jnp.float32)


_size = sizes_of("AILab-CVC/UniRepLKNet", "UniRepLKNet, official README")

_SMALL = {"depths": (2, 2, 6, 2), "period": 1}
_LARGE = {"depths": (3, 3, 27, 3), "period": 3}

register_family(
    UniRepLKNet,
    UniRepLKNetConfig,
    ModelCard(
        paper="Ding et al., UniRepLKNet: A Universal Perception Large-Kernel ConvNet, CVPR 2024, "
        "arXiv:2311.15599",
    ),
    {
        "unireplknet_a": _size(
            "unireplknet_a", 4_649_060, 77.0, **_SMALL, widths=(40, 80, 160, 320), drop_path=0.0
        ),
        "unireplknet_f": _size(
            "unireplknet_f", 6_489_328, 78.6, **_SMALL, widths=(48, 96, 192, 384), drop_path=0.0
        ),
        "unireplknet_p": _size(
            "unireplknet_p", 11_080_520, 80.2, **_SMALL, widths=(64, 128, 256, 512), drop_path=0.1
        ),
        "unireplknet_n": _size(
            "unireplknet_n", 18_818_880, 81.6, depths=(2, 2, 8, 2), period=1, drop_path=0.1
        ),
        "unireplknet_t": _size("unireplknet_t", 31_693_420, 83.2, drop_path=0.2),
        "unireplknet_s": _size(
            "unireplknet_s", 56_456_704, 83.9, **_LARGE, widths=(96, 192, 384, 768), drop_path=0.4
        ),
        "unireplknet_b": _size(
            "unireplknet_b", 99_089_416, **_LARGE, widths=(128, 256, 512, 1024), drop_path=0.1
        ),
        "unireplknet_l": _size(
            "unireplknet_l", 220_076_056, **_LARGE, widths=(192, 384, 768, 1536), drop_path=0.1
        ),
        "unireplknet_xl": _size(
            "unireplknet_xl", 388_690_984, **_LARGE, widths=(256, 512, 1024, 2048)
        ),
        "unireplknet_mini": Variant(
            config={
                "depths": (1, 1, 2, 1),
                "widths": (16, 32, 64, 96),
                "large_kernel": 7,
                "stem_strides": (2, 1),
                "layer_scale": 1e-2,
            },
        ),
    },
    torch_names=[
        (r"^(downsample_layers\.\d)\.conv1?\.", r"\1.0."),
        (r"^(downsample_layers\.\d)\.norm1?\.", r"\1.1."),
        (r"^(downsample_layers\.0)\.conv2\.", r"\1.3."),
        (r"^(downsample_layers\.0)\.norm2\.", r"\1.4."),
        (r"\.pwconv1\.", ".pwconv1.1."),
        (r"\.grn\.", ".act.1."),
        (r"\.pwconv2\.", ".pwconv2.0."),
        (r"\.pwconv2_bn\.", ".pwconv2.2."),
    ],
    torch_sources=["official"],
    pyramid_input="norm",
)
