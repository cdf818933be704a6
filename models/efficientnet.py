"""EfficientNet (Tan & Le, ICML 2019, arXiv:1905.11946), named as timm names it."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.models import layers
from bocb_jax.models.factory import ModelCard, Variant, register_family

# He's variance by fan_out / groups: for a depthwise kernel that is its fan_in.
depthwise_init = nnx.initializers.variance_scaling(2.0, "fan_in", "normal")


@dataclasses.dataclass(frozen=True)
class EfficientNetConfig:
    """Settings of EfficientNet; the defaults are B0's.

    `variant="bocb"` pads as TensorFlow does and adds 1e-3 to the variances, as the net's first
    release in TensorFlow did, and has neither dropout nor stochastic depth.
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
    drop_path: float = 0.2
    dropout: float = 0.2  # before the classifier


def round_width(channels: float) -> int:
    """The multiple of 8 next to `channels`, at most a tenth below them."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


class SqueezeExcite(nnx.Module):
    """Gates the channels by what their means say (Hu et al., 2018, arXiv:1709.01507)."""

    def __init__(self, features, reduced, *, dtype, rngs):
        self.conv_reduce = layers.Conv(features, reduced, 1, dtype=dtype, rngs=rngs)
        self.conv_expand = layers.Conv(reduced, features, 1, dtype=dtype, rngs=rngs)

    def __call__(self, x):
        gate = nnx.silu(self.conv_reduce(x.mean((1, 2), keepdims=True)))
        return x * nnx.sigmoid(self.conv_expand(gate))


def depthwise(features, kernel_size, strides, config, **kwargs):
    """The depthwise convolution of a block, padded as the variant wants it."""
    return layers.Conv(
        features,
        features,
        kernel_size,
        strides=strides,
        padding="SAME" if config.same_padding else None,
        groups=features,
        use_bias=False,
        kernel_init=depthwise_init,
        **kwargs,
    )


class DepthwiseSeparable(nnx.Module):
    """Depthwise convolution, squeeze-and-excite, and a linear 1x1: a block without expansion."""

    def __init__(
        self, in_features, out_features, kernel_size, strides, config, drop_path, **kwargs
    ):
        norm = functools.partial(layers.BatchNorm, epsilon=config.epsilon, **kwargs)
        self.conv_dw = depthwise(in_features, kernel_size, strides, config, **kwargs)
        self.bn1 = norm(in_features)
        self.se = SqueezeExcite(in_features, in_features // 4, **kwargs)
        self.conv_pw = layers.Conv(in_features, out_features, 1, use_bias=False, **kwargs)
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
        expansion,
        config,
        drop_path,
        **kwargs,
    ):
        norm = functools.partial(layers.BatchNorm, epsilon=config.epsilon, **kwargs)
        hidden = expansion * in_features
        self.conv_pw = layers.Conv(in_features, hidden, 1, use_bias=False, **kwargs)
        self.bn1 = norm(hidden)
        self.conv_dw = depthwise(hidden, kernel_size, strides, config, **kwargs)
        self.bn2 = norm(hidden)
        self.se = SqueezeExcite(hidden, in_features // 4, **kwargs)
        self.conv_pwl = layers.Conv(hidden, out_features, 1, use_bias=False, **kwargs)
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
        width = round_width(config.stem * config.width)
        self.conv_stem = layers.Conv(
            3,
            width,
            3,
            strides=config.stem_strides,
            padding="SAME" if config.same_padding else None,
            use_bias=False,
            **kwargs,
        )
        self.bn1 = layers.BatchNorm(width, epsilon=config.epsilon, **kwargs)
        self.taps = config.taps
        self.blocks = nnx.List()
        depths = [math.ceil(stage[-1] * config.depth) for stage in config.stages]
        # Unlike elsewhere the ramp ends one step short of the full rate.
        rates = layers.drop_path_rates(config.drop_path * (1 - 1 / sum(depths)), depths)
        for (kernel_size, channels, strides, expansion, _), stage_rates in zip(
            config.stages, rates, strict=True
        ):
            out = round_width(channels * config.width)
            stage = nnx.List()
            for i, rate in enumerate(stage_rates):
                shape = (width, out, kernel_size, strides if i == 0 else 1)
                stage.append(
                    DepthwiseSeparable(*shape, config, rate, **kwargs)
                    if expansion == 1
                    else InvertedResidual(*shape, expansion, config, rate, **kwargs)
                )
                width = out
            self.blocks.append(stage)
        head = round_width(config.head * config.width)
        self.conv_head = layers.Conv(width, head, 1, use_bias=False, **kwargs)
        self.bn2 = layers.BatchNorm(head, epsilon=config.epsilon, **kwargs)
        self.dropout = nnx.Dropout(config.dropout)
        self.classifier = nnx.Linear(
            head,
            num_classes,
            kernel_init=layers.symmetric_uniform(num_classes**-0.5),
            kernel_metadata={"kind": "head"},
            **kwargs,
        )

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


BOCB = {"same_padding": True, "epsilon": 1e-3, "drop_path": 0.0, "dropout": 0.0}


def _scaled(name, width, depth, dropout, parameters, top1=None, source=""):
    return Variant(
        config={"width": width, "depth": depth, "dropout": dropout},
        card={
            "reference": f"timm {name}",
            "parameters": parameters,
            "top1": top1,
            "top1_source": source,
        },
        bocb=BOCB,
    )


register_family(
    EfficientNet,
    EfficientNetConfig,
    ModelCard(
        paper="Tan & Le, EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks, "
        "ICML 2019, arXiv:1905.11946",
        category="classical CNN",
        stage_design="hierarchical",
        block_design="inverted bottleneck",
        operator="depthwise-separable convolution with squeeze-and-excite",
        residual="addition",
        recipe="rsb_a2",
    ),
    {
        "efficientnet_b0": _scaled(
            "efficientnet_b0", 1.0, 1.0, 0.2, 5_288_548, 77.69, "torchvision V1"
        ),
        "efficientnet_b1": _scaled("efficientnet_b1", 1.0, 1.1, 0.2, 7_794_184),
        "efficientnet_b2": _scaled("efficientnet_b2", 1.1, 1.2, 0.3, 9_109_994),
        "efficientnet_b3": _scaled("efficientnet_b3", 1.2, 1.4, 0.3, 12_233_232),
        "efficientnet_b4": _scaled("efficientnet_b4", 1.4, 1.8, 0.4, 19_341_616),
        "efficientnet_b5": _scaled("efficientnet_b5", 1.6, 2.2, 0.4, 30_389_784),
        "efficientnet_b6": _scaled("efficientnet_b6", 1.8, 2.6, 0.5, 43_040_704),
        "efficientnet_b7": _scaled("efficientnet_b7", 2.0, 3.1, 0.5, 66_347_960),
        "efficientnet_b8": _scaled("efficientnet_b8", 2.2, 3.6, 0.5, 87_413_142),
        "efficientnet_l2": _scaled("efficientnet_l2", 4.3, 5.3, 0.5, 480_309_308),
        "efficientnet_mini": Variant(
            config={
                "stages": ((3, 16, 1, 1, 1), (3, 24, 2, 6, 2), (5, 40, 2, 6, 2), (3, 64, 2, 6, 2)),
                "taps": (0, 1, 2, 3),
                "stem": 16,
                "stem_strides": 1,
                "head": 192,
            },
            card={"input_size": 32},
            bocb=BOCB,
        ),
    },
)
