"""Top-down pose estimation with heat maps: any backbone with a few transposed convolutions.

SimpleBaseline (Xiao, Wu and Wei, ECCV 2018, arXiv 1804.06208), with the names of MMPose.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.models import layers
from bocb_jax.models.maps import inspect_maps, keep_only
from bocb_jax.models.transposed import ConvTranspose

LAST_MAPS = ("map", "norm", "pool")
HEATMAP_STRIDE = 4  # pixels of the input for one of the heat maps
_init = nnx.initializers.normal(0.001)


class HeatmapHead(nnx.Module):
    """Transposed convolutions, each of which doubles the map, and one map for each joint.

    Args:
      in_features: channels of the backbone's last map.
      num_joints: number of maps.
      doublings: number of transposed convolutions of 4x4 pixels.
      width: their channels.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.
    """

    def __init__(
        self,
        in_features: int,
        num_joints: int,
        *,
        doublings: int = 3,
        width: int = 256,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        # Activations are entries too: the names of PyTorch's weights count them.
        stack: list[layers.Layer] = []
        for _ in range(doublings):
            stack += [
                ConvTranspose(
                    in_features,
                    width,
                    4,
                    strides=2,
                    use_bias=False,
                    kernel_init=_init,
                    dtype=dtype,
                    rngs=rngs,
                ),
                layers.BatchNorm(width, dtype=dtype, rngs=rngs),
                jax.nn.relu,
            ]
            in_features = width
        self.deconv_layers = nnx.List(stack)
        self.final_layer = layers.Conv(
            in_features,
            num_joints,
            1,
            kernel_init=_init,
            kernel_metadata={"kind": "head"},
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        for layer in self.deconv_layers:
            x = layer(x)
        return self.final_layer(x)


class PoseNet(nnx.Module):
    """A backbone's last map, enlarged to a quarter of the input's size, as heat maps of joints.

    Args:
      backbone: model with a method `features`; its classifier is deleted.
      num_joints: number of heat maps.
      input_size: (width, height) of the images in pixels.
      last_map: what is taken of the backbone's last map: "map", as it is; "norm", after a LayerNorm
        of its own, as MMPose does for Swin and ConvNeXt, which end with a sum of branches that
        nothing has normalized; "pool", after a 2x2 max-pool, as for VGG, whose `features` end
        before the last pool that MMPose counts as a part of it. None: what its family's pyramids
        take.
      width: channels of the transposed convolutions.
      dtype: type of the computation.
      rngs: random streams; `params` draws the initial weights.

    Attributes:
      heatmap_size: (width, height) of the heat maps: a quarter of the input where the last map
        divides it, else as near as doubling gets, as for AlexNet.

    Raises:
      UserError: the backbone has no `features`, its last map is larger than the heat maps, or
        there is no such `last_map`.
    """

    def __init__(
        self,
        backbone: nnx.Module,
        *,
        num_joints: int = 17,
        input_size: tuple[int, int] = (192, 256),
        last_map: str | None = None,
        width: int = 256,
        dtype: layers.Dtype = None,
        rngs: nnx.Rngs,
    ):
        last_map = last_map or getattr(type(backbone), "pyramid_input", "map")
        if last_map not in LAST_MAPS:
            raise UserError(f"last_map is {', '.join(map(repr, LAST_MAPS))}, not {last_map!r}.")
        columns, rows = input_size
        maps = inspect_maps(backbone, rows, columns)
        keep_only(backbone, frozenset().union(*maps.used))
        features, (height, breadth) = maps.channels[-1], maps.sizes[-1]
        if last_map == "pool":
            height, breadth = height // 2, breadth // 2
        doublings = _doublings(rows, height)
        self.heatmap_size = breadth * 2**doublings, height * 2**doublings
        self.backbone: Any = backbone  # not every module has `features`
        self.last_map = last_map
        self.norm = (
            nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, rngs=rngs)
            if last_map == "norm"
            else None
        )
        self.head = HeatmapHead(
            features,
            num_joints,
            doublings=doublings,
            width=width,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(self, x: jax.Array, *, rngs: nnx.Rngs | None = None) -> jax.Array:
        """Return heat maps (B, H / 4, W / 4, K) float32 of images (B, H, W, 3)."""
        x = self.backbone.features(x, rngs=rngs)[-1]
        if self.last_map == "pool":
            x = layers.max_pool(x, 2)
        if self.norm is not None:
            x = self.norm(x)
        return self.head(x).astype(jnp.float32)


def _doublings(rows: int, height: int) -> int:
    """Return how often a map of this height is doubled to about a quarter of an image's rows."""
    doublings = round(math.log2(rows / HEATMAP_STRIDE / height))
    if doublings < 0:
        raise UserError(
            f"The last map of the backbone has {height} rows for an image of {rows}, more than the "
            f"{rows // HEATMAP_STRIDE} of the heat maps; take a backbone of stride 4 or more."
        )
    return doublings
