"""EfficientNet (Tan and Le, ICML 2019, arXiv:1905.11946), with timm's names."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Architecture of an EfficientNet; the defaults are B0.

    `variant="bocb"` pads as TensorFlow does and adds 1e-3 to the variances, like the first release
    in TensorFlow; it has no dropout, and PyTorch's default initialization.
    """

    # (kernel, channels, strides, expansion, blocks) of each stage
    stages: tuple[tuple[int, int, int, int, int], ...] = (
        (3, 16, 1, 1, 1),
        (3, 24, 2, 6, 2),
        (5, 40, 2, 6, 2),
        (3, 80, 2, 6, 3),
        (5, 112, 1, 6, 3),
        (5, 192, 2, 6, 4),
        (3, 320, 1, 6, 1),
    )
    taps: tuple[int, ...] = (1, 2, 4, 6)  # stages whose maps `features` returns
    width: float = 1.0  # multiplies every width
    depth: float = 1.0  # multiplies the number of blocks
    stem: int = 32  # channels of the stem, before `width`
    stem_strides: int = 2
    head: int = 1280  # channels before the classifier, before `width`
    same_padding: bool = False  # as TensorFlow: at stride 2, more zeros on the right and below
    epsilon: float = 1e-5  # added to the variances
    drop_path: float = 0.0
    dropout: float = 0.2  # before the classifier
    init: str = "he"  # of the convolutions | "torch": PyTorch's default

    def __post_init__(self) -> None:
        if not self.taps or max(self.taps) >= len(self.stages):
            raise UserError(f"taps is {self.taps}; there are stages 0 to {len(self.stages) - 1}.")
        if self.init not in ("he", "torch"):
            raise UserError(f"init is 'he' or 'torch', not '{self.init}'.")


def conv(
    config: EfficientNetConfig,
    in_features: int,
    out_features: int,
    kernel_size: int = 1,
    *,
    groups: int = 1,
    use_bias: bool = False,
    **kwargs: Any,
) -> layers.Conv:
    """Return a convolution with the padding and initialization that `config` selects."""
    kwargs["kernel_init"] = layers.he_normal_fan_out if groups == 1 else layers.he_normal_fan_in
    if config.init == "torch":
        kwargs["kernel_init"] = layers.torch_uniform
        fan_in = in_features // groups * kernel_size**2
        kwargs["bias_init"] = layers.symmetric_uniform(fan_in**-0.5)
    return layers.Conv(
        in_features,
        out_features,
        kernel_size,
        padding="SAME" if config.same_padding else None,
        groups=groups,
        use_bias=use_bias,
        **kwargs,
    )


class SqueezeExcite(nnx.Module):
    """Gates computed from the means of all channels (Hu et al., 2018, arXiv:1709.01507)."""

    def __init__(
        self,
        features: int,
        reduced: int,
        config: EfficientNetConfig,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        self.conv_reduce = conv(config, features, reduced, use_bias=True, dtype=dtype, rngs=rngs)
        self.conv_expand = conv(config, reduced, features, use_bias=True, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        gate = nnx.silu(self.conv_reduce(x.mean((1, 2), keepdims=True)))  # (B, 1, 1, reduced)
        return x * nnx.sigmoid(self.conv_expand(gate))


class DepthwiseSeparable(nnx.Module):
    """Depthwise convolution, squeeze-and-excite and a linear 1x1: a block without expansion."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int,
        config: EfficientNetConfig,
        drop_path: float,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        norm = functools.partial(layers.BatchNorm, epsilon=config.epsilon, dtype=dtype, rngs=rngs)
        depthwise: dict[str, Any] = {"strides": strides, "groups": in_features, **kwargs}
        self.conv_dw = conv(config, in_features, in_features, kernel_size, **depthwise)
        self.bn1 = norm(in_features)
        self.se = SqueezeExcite(in_features, in_features // 4, config, **kwargs)
        self.conv_pw = conv(config, in_features, out_features, **kwargs)
        self.bn2 = norm(out_features)
        self.shortcut = strides == 1 and in_features == out_features
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = self.se(nnx.silu(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + self.drop_path(y, rngs=rngs) if self.shortcut else y


class InvertedResidual(nnx.Module):
    """1x1 to `expansion` times the width, depthwise, squeeze-and-excite, and a linear 1x1 back."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        strides: int,
        config: EfficientNetConfig,
        drop_path: float,
        expansion: int,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        norm = functools.partial(layers.BatchNorm, epsilon=config.epsilon, dtype=dtype, rngs=rngs)
        hidden = expansion * in_features
        self.conv_pw = conv(config, in_features, hidden, **kwargs)
        self.bn1 = norm(hidden)
        depthwise: dict[str, Any] = {"strides": strides, "groups": hidden, **kwargs}
        self.conv_dw = conv(config, hidden, hidden, kernel_size, **depthwise)
        self.bn2 = norm(hidden)
        self.se = SqueezeExcite(hidden, in_features // 4, config, **kwargs)
        self.conv_pwl = conv(config, hidden, out_features, **kwargs)
        self.bn3 = norm(out_features)
        self.shortcut = strides == 1 and in_features == out_features
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        y = nnx.silu(self.bn1(self.conv_pw(x)))
        y = self.se(nnx.silu(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + self.drop_path(y, rngs=rngs) if self.shortcut else y


Block = DepthwiseSeparable | InvertedResidual


class EfficientNet(nnx.Module):
    """EfficientNet: inverted bottlenecks with squeeze-and-excite, scaled in width and depth.

    Args:
      config: the architecture.
      num_classes: width of the logits.
      image_size: unused; images of any size do.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: EfficientNetConfig,
        *,
        num_classes: int,
        image_size: int,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        del image_size
        kwargs: dict[str, Any] = {"dtype": dtype, "rngs": rngs}
        width = layers.make_divisible(config.stem * config.width)
        self.conv_stem = conv(config, 3, width, 3, strides=config.stem_strides, **kwargs)
        self.bn1 = layers.BatchNorm(width, epsilon=config.epsilon, **kwargs)
        self.taps = config.taps
        self.blocks: nnx.List[nnx.List[Block]] = nnx.List()
        depths = [math.ceil(stage[-1] * config.depth) for stage in config.stages]
        # As in the reference, the last block stays one step short of the full rate.
        rates = layers.drop_path_rates(config.drop_path * (1 - 1 / sum(depths)), depths)
        for (kernel_size, channels, strides, expansion, _), stage_rates in zip(
            config.stages, rates, strict=True
        ):
            out = layers.make_divisible(channels * config.width)
            stage: nnx.List[Block] = nnx.List()
            for i, rate in enumerate(stage_rates):
                shape = (width, out, kernel_size, strides if i == 0 else 1)
                stage.append(
                    DepthwiseSeparable(*shape, config, rate, **kwargs)
                    if expansion == 1
                    else InvertedResidual(*shape, config, rate, expansion, **kwargs)
                )
                width = out
            self.blocks.append(stage)
        head = layers.make_divisible(config.head * config.width)
        self.conv_head = conv(config, width, head, **kwargs)
        self.bn2 = layers.BatchNorm(head, epsilon=config.epsilon, **kwargs)
        self.dropout = nnx.Dropout(config.dropout)
        init = layers.symmetric_uniform(num_classes**-0.5)
        if config.init == "torch":
            init = nnx.initializers.normal(0.01)
        self.classifier = layers.classifier(head, num_classes, kernel_init=init, **kwargs)

    def features(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the last map at each of the strides 4, 8, 16 and 32: the stages of `taps`."""
        x = nnx.silu(self.bn1(self.conv_stem(x)))
        maps = []
        for stage in self.blocks:
            for block in stage:
                x = block(x, rngs=rngs)
            maps.append(x)
        return [maps[i] for i in self.taps]

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        x = nnx.silu(self.bn2(self.conv_head(self.features(x, rngs=rngs)[-1])))
        x = self.dropout(layers.global_average_pool(x), rngs=rngs)
        return self.classifier(x).astype(jnp.float32)


# All sizes were published with a rate of 0.2. BOCB's code builds stochastic depth but never applies
# it.
_BOCB = {"same_padding": True, "epsilon": 1e-3, "dropout": 0.0, "init": "torch"}
_size = functools.partial(
    sizes_of("timm", "torchvision V1", bocb=_BOCB), drop_path=0.2, cifar_drop_path=0.0
)


register_family(
    EfficientNet,
    EfficientNetConfig,
    ModelCard(
        paper="Tan & Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, "
        "ICML 2019, arXiv:1905.11946",
    ),
    {
        name: _size(name, num_params, top1, width=width, depth=depth, dropout=dropout)
        for name, num_params, top1, width, depth, dropout in (
            ("efficientnet_b0", 5_288_548, 77.69, 1.0, 1.0, 0.2),
            ("efficientnet_b1", 7_794_184, None, 1.0, 1.1, 0.2),
            ("efficientnet_b2", 9_109_994, None, 1.1, 1.2, 0.3),
            ("efficientnet_b3", 12_233_232, None, 1.2, 1.4, 0.3),
            ("efficientnet_b4", 19_341_616, None, 1.4, 1.8, 0.4),
            ("efficientnet_b5", 30_389_784, None, 1.6, 2.2, 0.4),
            ("efficientnet_b6", 43_040_704, None, 1.8, 2.6, 0.5),
            ("efficientnet_b7", 66_347_960, None, 2.0, 3.1, 0.5),
            ("efficientnet_b8", 87_413_142, None, 2.2, 3.6, 0.5),
            ("efficientnet_l2", 480_309_308, None, 4.3, 5.3, 0.5),
        )
    }
    | {
        "efficientnet_mini": Variant(
            config={
                "stages": ((3, 16, 1, 1, 1), (3, 24, 2, 6, 2), (5, 40, 2, 6, 2), (3, 64, 2, 6, 2)),
                "taps": (0, 1, 2, 3),
                "stem": 16,
                "stem_strides": 1,
                "head": 192,
            },
            bocb=_BOCB,
        ),
    },
)
