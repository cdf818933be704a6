"""RetinaNet (Lin et al., 2017, arXiv:1708.02002) on any backbone, with MMDetection's names.

The net gives maps of logits and of encoded boxes; what they mean is in `bocb_jax.detection`.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.maps import Maps, batch_norms, freeze, inspect_maps, keep_only
from bocb_jax.models.pyramid import FPN, PyramidConfig, SimplePyramid, plan


@dataclasses.dataclass(frozen=True)
class RetinaNetConfig:
    """Architecture of a RetinaNet around its backbone; the defaults are MMDetection's.

    Args:
      pyramid: between backbone and head.
      depth: 3x3 convolutions of each of the two towers.
      tower_norm: "none", or "group", a GroupNorm of 32 groups after each convolution, which then
        has no bias.
      anchors: per cell.
      prior: probability of every class at the start.
      frozen_stages: first maps of the backbone whose parameters, the stem's included, are not
        trained.
      batch_norm: what of the backbone's BatchNorm is fixed: "statistics", "all" (gain and shift
        too) or "nothing".
    """

    pyramid: PyramidConfig = dataclasses.field(default_factory=PyramidConfig)
    depth: int = 4
    tower_norm: str = "none"
    anchors: int = 9
    prior: float = 0.01
    frozen_stages: int = 1
    batch_norm: str = "statistics"

    def __post_init__(self) -> None:
        if self.tower_norm not in ("none", "group"):
            raise UserError(f"tower_norm is 'none' or 'group', not {self.tower_norm!r}.")
        if self.batch_norm not in ("statistics", "all", "nothing"):
            raise UserError(
                f"batch_norm is 'statistics', 'all' or 'nothing', not {self.batch_norm!r}."
            )


_TORCHVISION = PyramidConfig(extra_from="output", extra_relu=True, init="lecun_uniform")
STYLES: Mapping[str, RetinaNetConfig] = MappingProxyType(
    {
        "mmdet": RetinaNetConfig(),
        "torchvision": RetinaNetConfig(pyramid=_TORCHVISION, batch_norm="all"),
        "torchvision_v2": RetinaNetConfig(
            pyramid=dataclasses.replace(_TORCHVISION, extra_from="input"),
            tower_norm="group",
            batch_norm="nothing",
        ),
    }
)


def style_of(
    name: str, *, channels: int, finest_stride: int | None, frozen_stages: int, batch_norm: str
) -> RetinaNetConfig:
    """Return the architecture of a style with another pyramid, and with what is frozen."""
    config = STYLES[name]
    pyramid = dataclasses.replace(config.pyramid, channels=channels, finest_stride=finest_stride)
    return dataclasses.replace(
        config,
        pyramid=pyramid,
        frozen_stages=frozen_stages,
        batch_norm=batch_norm,
    )


# (regular expression, replacement) from our names to those of torchvision's RetinaNet.
TORCHVISION_NAMES = (
    (r"^backbone\.", "backbone.body."),
    (r"^neck\.lateral_convs\.(\d)\.conv\.", r"backbone.fpn.inner_blocks.\1.0."),
    (r"^neck\.fpn_convs\.([012])\.conv\.", r"backbone.fpn.layer_blocks.\1.0."),
    (r"^neck\.fpn_convs\.3\.conv\.", "backbone.fpn.extra_blocks.p6."),
    (r"^neck\.fpn_convs\.4\.conv\.", "backbone.fpn.extra_blocks.p7."),
    (r"^bbox_head\.(cls|reg)_convs\.(\d)\.conv\.", r"bbox_head.\1_convs.\2.0."),
    (r"^bbox_head\.(cls|reg)_convs\.(\d)\.gn\.", r"bbox_head.\1_convs.\2.1."),
    (r"^bbox_head\.cls_convs\.", "head.classification_head.conv."),
    (r"^bbox_head\.reg_convs\.", "head.regression_head.conv."),
    (r"^bbox_head\.retina_cls\.", "head.classification_head.cls_logits."),
    (r"^bbox_head\.retina_reg\.", "head.regression_head.bbox_reg."),
)


def torchvision_name(name: str) -> str:
    """Return torchvision's name of a parameter of its RetinaNet, by MMDetection's."""
    for pattern, replacement in TORCHVISION_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


HeadMaps = tuple[list[jax.Array], list[jax.Array]]  # of classes and of boxes, by level


class RetinaHead(nnx.Module):
    """Two towers of convolutions, shared by all levels: one for classes, one for boxes.

    Args:
      config: of the net.
      num_classes: sigmoids per anchor; there is no background class.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        config: RetinaNetConfig,
        num_classes: int,
        *,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        width, init = config.pyramid.channels, nnx.initializers.normal(0.01)
        grouped = config.tower_norm == "group"

        def conv(features: int, **kwargs: Any) -> layers.Conv:
            return layers.Conv(
                width, features, 3, kernel_init=init, dtype=dtype, rngs=rngs, **kwargs
            )

        def step() -> nnx.Dict:
            if not grouped:
                return nnx.Dict(conv=conv(width))
            norm = nnx.GroupNorm(width, math.gcd(32, width), epsilon=1e-5, dtype=dtype, rngs=rngs)
            return nnx.Dict(conv=conv(width, use_bias=False), gn=norm)

        self.grouped = grouped
        self.cls_convs: Any = nnx.List([step() for _ in range(config.depth)])
        self.reg_convs: Any = nnx.List([step() for _ in range(config.depth)])
        start = nnx.initializers.constant(-math.log((1 - config.prior) / config.prior))
        self.retina_cls = conv(
            config.anchors * num_classes, bias_init=start, kernel_metadata={"kind": "head"}
        )
        self.retina_reg = conv(config.anchors * 4)

    def __call__(self, levels: Sequence[jax.Array]) -> HeadMaps:
        """Return float32 maps of each level: (B, H, W, anchors * classes), (B, H, W, anchors * 4).

        The last axis holds all classes, or the four numbers, of one anchor after the other.
        """
        classes = [self.retina_cls(self._tower(self.cls_convs, x)) for x in levels]
        boxes = [self.retina_reg(self._tower(self.reg_convs, x)) for x in levels]
        wide = [[x.astype(jnp.float32) for x in maps] for maps in (classes, boxes)]
        return wide[0], wide[1]

    def _tower(self, tower: Any, x: jax.Array) -> jax.Array:
        for step in tower:
            x = step.conv(x)
            x = jax.nn.relu(step.gn(x) if self.grouped else x)
        return x


class RetinaNet(nnx.Module):
    """RetinaNet: a backbone, a feature pyramid and a head.

    The classifier of the backbone is removed, and its first stages are frozen, in place.

    Args:
      backbone: any model with `features`.
      config: of what surrounds it.
      num_classes: of the boxes.
      image_size: (height, width) in pixels at which the strides of the backbone's maps are found;
        images of other sizes work where the backbone takes them.
      dtype: type of the computation of pyramid and head.
      rngs: random streams; `params` draws the initial weights.

    Attributes:
      strides: of the levels, in pixels.

    Raises:
      UserError: the backbone's maps do not fit a pyramid.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        config: RetinaNetConfig = STYLES["mmdet"],
        *,
        num_classes: int,
        image_size: tuple[int, int],
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        maps = inspect_maps(backbone, *image_size)
        kind = getattr(type(backbone), "pyramid_input", "map")
        fit = plan(maps, config.pyramid, kind)
        self.plan = fit
        self.strides = fit.strides
        _prepare(backbone, maps, fit.taken, config)
        self.backbone: Any = backbone
        channels = [maps.channels[i] for i in fit.taken]
        # Where maps are sums of branches, each gets a norm, as MMDetection's Swin and ConvNeXt do.
        self.norms: Any = nnx.List(
            [nnx.LayerNorm(c, epsilon=1e-6, dtype=dtype, rngs=rngs) for c in channels]
            if kind == "norm"
            else []
        )
        self.neck: Any = (
            SimplePyramid(
                config.pyramid,
                channels[0],
                stride=maps.strides[0],
                strides=fit.strides[: min(3, config.pyramid.levels)],
                dtype=dtype,
                rngs=rngs,
            )
            if fit.simple
            else FPN(config.pyramid, channels, dtype=dtype, rngs=rngs)
        )
        self.bbox_head = RetinaHead(config, num_classes, dtype=dtype, rngs=rngs)

    def levels(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> list[jax.Array]:
        """Return the levels (B, H, W, channels) of the pyramid of images (B, H, W, 3)."""
        found = self.backbone.features(x, rngs=rngs)
        maps = []
        for i, times in zip(self.plan.taken, self.plan.pooled, strict=True):
            y = found[i]
            for _ in range(times):
                y = layers.max_pool(y, 2)
            maps.append(y)
        if self.norms:
            maps = [norm(y) for norm, y in zip(self.norms, maps, strict=True)]
        return self.neck(maps)

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> HeadMaps:
        """Return maps of logits and of encoded boxes of images (B, H, W, 3), as `RetinaHead`."""
        return self.bbox_head(self.levels(x, rngs=rngs))


def _prepare(
    backbone: nnx.Module, maps: Maps, taken: Sequence[int], config: RetinaNetConfig
) -> None:
    """Remove what the taken maps do not need; freeze the first stages and BatchNorm."""
    used = frozenset().union(*(maps.used[i] for i in taken))
    keep_only(backbone, used)
    # An isotropic backbone has no stage to freeze: its only map needs all of it.
    if config.frozen_stages and len(maps.used) > 1:
        frozen = frozenset().union(*maps.used[: config.frozen_stages])
        freeze(backbone, frozen & used)
    for path, norm in batch_norms(backbone):
        norm.fixed_statistics |= config.batch_norm != "nothing"
        if config.batch_norm == "all":
            freeze(backbone, [(*path, "scale"), (*path, "bias")])
