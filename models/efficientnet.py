"""EfficientNet (Tan & Le, ICML 2019, arXiv:1905.11946), named as timm names it."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family, sizes_of


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Settings of EfficientNet; the defaults are B0's.

    `variant="bocb"` pads as TensorFlow does and adds 1e-3 to the variances, as the net's first
    release in TensorFlow did; it has no dropout, and begins as PyTorch's layers do.
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
    taps: tuple[int, ...] = (1, 2, 4, 6)  # stages whose maps `features` gives
    width: float = 1.0  # multiplies every width
    depth: float = 1.0  # multiplies the number of blocks
    stem: int = 32  # channels of the stem, before `width`
    stem_strides: int = 2
    head: int = 1280  # channels before the classifier, before `width`
    same_padding: bool = False  # zeros more on the right and below at stride 2, as in TensorFlow
    epsilon: float = 1e-5  # added to the variances
    drop_path: float = 0.0
    dropout: float = 0.2  # before the classifier
    init: str = "he"  # of the convolutions | "torch": uniform within 1/sqrt(fan_in)

    def __post_init__(self):
        if not self.taps or max(self.taps) >= len(self.stages):
            raise UserError(f"taps {self.taps} name stages that are not among {len(self.stages)}.")
        if self.init not in ("he", "torch"):
            raise UserError(f"init is 'he' or 'torch', not '{self.init}'.")


def conv(config, in_features, out_features, kernel_size=1, *, groups=1, use_bias=False, **kwargs):
    """A convolution, padded and initialized as the variant wants it."""
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
    """Gates the channels by what their means say (Hu et al., 2018, arXiv:1709.01507)."""

    def __init__(self, features, reduced, config, **kwargs):
        self.conv_reduce = conv(config, features, reduced, use_bias=True, **kwargs)
        self.conv_expand = conv(config, reduced, features, use_bias=True, **kwargs)

    def __call__(self, x):
        gate = nnx.silu(self.conv_reduce(x.mean((1, 2), keepdims=True)))
        return x * nnx.sigmoid(self.conv_expand(gate))


class DepthwiseSeparable(nnx.Module):
    """Depthwise convolution, squeeze-and-excite, and a linear 1x1: a block without expansion."""

    def __init__(
        self, in_features, out_features, kernel_size, strides, config, drop_path, **kwargs
    ):
        norm = functools.partial(layers.BatchNorm, epsilon=config.epsilon, **kwargs)
        depthwise = {"strides": strides, "groups": in_features, **kwargs}
        self.conv_dw = conv(config, in_features, in_features, kernel_size, **depthwise)
        self.bn1 = norm(in_features)
        self.se = SqueezeExcite(in_features, in_features // 4, config, **kwargs)
        self.conv_pw = conv(config, in_features, out_features, **kwargs)
        self.bn2 = norm(out_features)
        self.shortcut = strides == 1 and in_features == out_features
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x, *, rngs=None):
        y = self.se(nnx.silu(self.bn1(self.conv_dw(x))))
        y = self.bn2(self.conv_pw(y))
        return x + self.drop_path(y, rngs=rngs) if self.shortcut else y


class InvertedResidual(nnx.Module):
    """1x1 out to six times the width, depthwise, squeeze-and-excite, and a linear 1x1 back."""

    def __init__(
        self,
        in_features,
        out_features,
        kernel_size,
        strides,
        config,
        drop_path,
        expansion,
        **kwargs,
    ):
        norm = functools.partial(layers.BatchNorm, epsilon=config.epsilon, **kwargs)
        hidden = expansion * in_features
        self.conv_pw = conv(config, in_features, hidden, **kwargs)
        self.bn1 = norm(hidden)
        depthwise = {"strides": strides, "groups": hidden, **kwargs}
        self.conv_dw = conv(config, hidden, hidden, kernel_size, **depthwise)
        self.bn2 = norm(hidden)
        self.se = SqueezeExcite(hidden, in_features // 4, config, **kwargs)
        self.conv_pwl = conv(config, hidden, out_features, **kwargs)
        self.bn3 = norm(out_features)
        self.shortcut = strides == 1 and in_features == out_features
        self.drop_path = layers.DropPath(drop_path)

    def __call__(self, x, *, rngs=None):
        y = nnx.silu(self.bn1(self.conv_pw(x)))
        y = self.se(nnx.silu(self.bn2(self.conv_dw(y))))
        y = self.bn3(self.conv_pwl(y))
        return x + self.drop_path(y, rngs=rngs) if self.shortcut else y


class EfficientNet(nnx.Module):
    """EfficientNet.

    Args:
      config: settings.
      num_classes: width of the logits.
      image_size: side of the images in pixels; any size will do.
      dtype: type of the computation.
      rngs: where the initial weights come from.
    """

    def __init__(self, config: EfficientNetConfig, *, num_classes, image_size, dtype=None, rngs):
        del image_size
        kwargs = {"dtype": dtype, "rngs": rngs}
        width = layers.make_divisible(config.stem * config.width)
        self.conv_stem = conv(config, 3, width, 3, strides=config.stem_strides, **kwargs)
        self.bn1 = layers.BatchNorm(width, epsilon=config.epsilon, **kwargs)
        self.taps = config.taps
        self.blocks = nnx.List()
        depths = [math.ceil(stage[-1] * config.depth) for stage in config.stages]
        # Unlike elsewhere the ramp ends one step short of the full rate.
        rates = layers.drop_path_rates(config.drop_path * (1 - 1 / sum(depths)), depths)
        for (kernel_size, channels, strides, expansion, _), stage_rates in zip(
            config.stages, rates, strict=True
        ):
            out = layers.make_divisible(channels * config.width)
            stage = nnx.List()
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
        """The last map at each of the strides 4, 8, 16 and 32."""
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


# What is published is the rate of every size; BOCB's code builds the layer and leaves it out.
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
        name: _size(name, parameters, top1, width=width, depth=depth, dropout=dropout)
        for name, parameters, top1, width, depth, dropout in (
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
