"""Feature pyramids: from the maps of a backbone to maps of equal width at strides that double.

`FPN` joins the maps of hierarchical backbones (Lin et al., 2017, arXiv:1612.03144), with the rules
and names of MMDetection's neck; `SimplePyramid` makes one map into several, for isotropic backbones
(ViTDet, Li et al., 2022, arXiv:2203.16527), with detectron2's rules and names.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.maps import Maps
from bocb_jax.models.transposed import ConvTranspose

_TAKEN = 3  # maps of a backbone that a pyramid starts from


@dataclasses.dataclass(frozen=True)
class PyramidConfig:
    """A pyramid; the defaults are MMDetection's RetinaNet.

    Args:
      channels: of every level.
      levels: number of levels. Those beyond the backbone's maps are made by 3x3 convolutions of
        stride 2, each from the one before it.
      finest_stride: of the first level, in pixels; None: the third map from the end, as stride 8
        of a backbone that ends at 32.
      extra_from: what the first of those convolutions takes: "input", the backbone's coarsest map,
        or "output", the level made from it.
      extra_relu: whether a ReLU lies between those convolutions.
      init: of the kernels: "xavier_uniform" or "lecun_uniform" (torchvision's).
    """

    channels: int = 256
    levels: int = 5
    finest_stride: int | None = None
    extra_from: str = "input"
    extra_relu: bool = False
    init: str = "xavier_uniform"

    def __post_init__(self) -> None:
        if self.extra_from not in ("input", "output"):
            raise UserError(f"extra_from is 'input' or 'output', not {self.extra_from!r}.")
        if self.init not in _INITS:
            raise UserError(f"init is {' or '.join(map(repr, _INITS))}, not {self.init!r}.")


_INITS = {
    "xavier_uniform": layers.xavier_uniform,
    "lecun_uniform": nnx.initializers.lecun_uniform(),
}


class FPN(nnx.Module):
    """Feature pyramid network with MMDetection's order of operations and names.

    Args:
      config: of the pyramid.
      in_features: channels of the maps, the finest first.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: PyramidConfig,
        in_features: Sequence[int],
        *,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, extra = config.channels, config.levels - len(in_features)

        def conv(features: int, side: int, stride: int = 1) -> nnx.Dict:
            return nnx.Dict(
                conv=layers.Conv(
                    features,
                    width,
                    side,
                    strides=stride,
                    kernel_init=_INITS[config.init],
                    dtype=dtype,
                    rngs=rngs,
                )
            )

        self.lateral_convs: Any = nnx.List([conv(features, 1) for features in in_features])
        first = in_features[-1] if config.extra_from == "input" else width
        self.fpn_convs: Any = nnx.List(
            [conv(width, 3) for _ in in_features]
            + [conv(width if i else first, 3, stride=2) for i in range(extra)]
        )

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the levels (B, H, W, channels) of maps (B, H, W, C), the finest first."""
        joined = [layer.conv(x) for layer, x in zip(self.lateral_convs, maps, strict=True)]
        for i in reversed(range(len(joined) - 1)):
            joined[i] = joined[i] + layers.resize_nearest(joined[i + 1], joined[i].shape[1:3])
        convs = list(self.fpn_convs)
        levels = [layer.conv(x) for layer, x in zip(convs, joined, strict=False)]
        x = maps[-1] if self.config.extra_from == "input" else levels[-1]
        return levels + _coarser(convs[len(levels) :], x, self.config)


def _coarser(convs: Sequence[Any], x: jax.Array, config: PyramidConfig) -> list[jax.Array]:
    """Return the levels beyond the backbone's maps, by convolutions of stride 2."""
    levels: list[jax.Array] = []
    for layer in convs:
        if levels and config.extra_relu:
            x = jax.nn.relu(x)
        x = layer.conv(x)
        levels.append(x)
    return levels


def _doubling(
    in_features: int, out_features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs
) -> ConvTranspose:
    """Return a transposed convolution that makes 2x2 pixels of each, initialized as in PyTorch."""
    # PyTorch counts the fan-in on the output axis.
    init = layers.symmetric_uniform((4 * out_features) ** -0.5)
    return ConvTranspose(
        in_features,
        out_features,
        2,
        strides=2,
        kernel_init=init,
        bias_init=init,
        dtype=dtype,
        rngs=rngs,
    )


class ConvNorm(layers.Conv):
    """Convolution without bias, then a LayerNorm over the channels."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int,
        *,
        dtype: layers.Dtype,
        rngs: nnx.Rngs,
    ):
        super().__init__(
            in_features,
            out_features,
            kernel_size,
            use_bias=False,
            kernel_init=layers.torch_uniform,
            dtype=dtype,
            rngs=rngs,
        )
        self.norm = _layer_norm(out_features, dtype=dtype, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.norm(super().__call__(x))


class SimplePyramid(nnx.Module):
    """ViTDet's pyramid: from one map, without lateral or top-down paths.

    Args:
      config: of the pyramid; the first coarser level comes from the coarsest one made here.
      in_features: channels of the map.
      stride: of the map, in pixels.
      strides: of the levels made from the map: powers of two times its stride, from 1/4 to 4.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: PyramidConfig,
        in_features: int,
        *,
        stride: int,
        strides: Sequence[int],
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        self.config = config
        width, kwargs = config.channels, {"dtype": dtype, "rngs": rngs}
        self.branches = tuple(f"simfp_{int(math.log2(s))}" for s in strides)
        for name, wanted in zip(self.branches, strides, strict=True):
            resized, features = _resizing(stride / wanted, in_features, kwargs)
            out = [ConvNorm(features, width, 1, **kwargs), ConvNorm(width, width, 3, **kwargs)]
            setattr(self, name, nnx.List([*resized, *out]))
        self.extra_convs: Any = nnx.List(
            [
                nnx.Dict(
                    conv=layers.Conv(
                        width, width, 3, strides=2, kernel_init=_INITS[config.init], **kwargs
                    )
                )
                for _ in range(config.levels - len(strides))
            ]
        )

    def __call__(self, maps: Sequence[jax.Array]) -> list[jax.Array]:
        """Return the levels (B, H, W, channels) of the last of the maps (B, H, W, C)."""
        levels = []
        for name in self.branches:
            x = maps[-1]
            for layer in getattr(self, name):
                x = layer(x)
            levels.append(x)
        return levels + _coarser(list(self.extra_convs), levels[-1], self.config)


def _resizing(
    scale: float, features: int, kwargs: dict[str, Any]
) -> tuple[list[layers.Layer], int]:
    """Return the layers that resize a map by `scale`, and the channels of their output."""
    if scale == 4:
        half, quarter = features // 2, features // 4
        up: list[layers.Layer] = [
            _doubling(features, half, **kwargs),
            _layer_norm(half, **kwargs),
            layers.gelu,
        ]
        return [*up, _doubling(half, quarter, **kwargs)], quarter
    if scale == 2:
        return [_doubling(features, features // 2, **kwargs)], features // 2
    if scale == 1:
        return [], features
    if scale in (0.5, 0.25):
        return [_halve] * round(1 / scale / 2), features
    raise UserError(
        f"A map cannot be resized by {scale} for a pyramid; the factors are 4, 2, 1, 0.5 and 0.25. "
        "Choose another finest_stride."
    )


def _halve(x: jax.Array) -> jax.Array:
    return layers.max_pool(x, 2)


def _layer_norm(features: int, *, dtype: layers.Dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class Plan:
    """How the maps of a backbone become the levels of a pyramid.

    Attributes:
      taken: which maps of `features` it starts from.
      pooled: how often each of them is halved by a 2x2 max-pool first.
      strides: of all levels, in pixels.
      simple: whether ViTDet's pyramid is made from a single map.
    """

    taken: tuple[int, ...]
    pooled: tuple[int, ...]
    strides: tuple[int, ...]
    simple: bool


def plan(maps: Maps, config: PyramidConfig, pyramid_input: str = "map") -> Plan:
    """Return how a backbone's maps fit a pyramid.

    A backbone with one map gets ViTDet's pyramid, from half its stride on. Of the others the maps
    of the three first levels' strides are taken, the last one where several have the same stride.

    Args:
      maps: of the backbone.
      config: of the pyramid.
      pyramid_input: as in `models.factory.register_family`.

    Raises:
      UserError: the maps do not fit; the message says which strides there are.
    """
    pool = int(pyramid_input == "pool")
    have = [stride * 2**pool for stride in maps.strides]
    if len(have) == 1:
        finest = config.finest_stride or max(have[0] // 2, 1)
        strides = tuple(finest * 2**i for i in range(config.levels))
        return Plan((0,), (0,), strides, simple=True)
    finest = config.finest_stride or have[-min(_TAKEN, len(have))]
    taken, wanted = [], finest
    while wanted in have:
        taken.append(len(have) - 1 - have[::-1].index(wanted))
        wanted *= 2
    if not taken or taken[-1] != len(have) - 1:
        raise UserError(
            f"The maps of the backbone have strides {', '.join(map(str, have))}; a pyramid from "
            f"stride {finest} on needs one of each stride {finest}, {2 * finest}, ... up to the "
            "coarsest."
        )
    taken = taken[: config.levels]
    strides = tuple(finest * 2**i for i in range(config.levels))
    return Plan(tuple(taken), (pool,) * len(taken), strides, simple=False)
