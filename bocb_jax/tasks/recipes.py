"""Training settings of detection and pose estimation: what a run uses where its config is silent.

Sources: MMDetection 2.26 (`retinanet_r50_fpn_1x_coco.py`, `retinanet_r50_fpn_mstrain_640-800_3x`,
`retinanet_r50_fpn_rsb-pretrain_1x_coco.py`, `retinanet_swin-t-p4-w7_fpn_1x_coco.py`), MMPose 1.3
(`td-hm_res50_8xb64-210e_coco-256x192.py`, `td-hm_swin-t-p4-w7_8xb32-210e_coco-256x192.py`,
`td-hm_ViTPose-base-simple_8xb64-210e_coco-256x192.py`), ViTDet (Li et al., 2022, arXiv 2203.16527).
The recipes `small` are ours.
"""

import dataclasses
from collections.abc import Mapping

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class TransferRecipe:
    """Every setting of a recipe.

    Attributes:
      epochs: passes over the training images.
      batch_size: images, or persons.
      boundaries: where the learning rate falls to a tenth, as fractions of the run.
      rates: optimizer -> its learning rate and weight decay.
      rate_factor: factor on the usual learning rate of the others.
      scaled_batch: batch size that the rates of SGD are for; they grow with it. None: they do not.
      warmup_steps: of the linear warm-up, at most a tenth of the run.
      warmup_start: where it begins, as a fraction of the peak.
      clip_norm: largest norm of the gradient.
      width: channels of what is put around the backbone.
      style: of a detector.
      short: range of the shorter side; of a detector.
      long: of a detector.
      shapes: number of padded shapes; of a detector.
      finest_stride: of its pyramid; None: a quarter of the backbone's coarsest.
      input_size: (width, height) of crops; of a pose net.
      sigma: of Gaussians on heat maps; of a pose net.
      layer_decay: family of a backbone -> factor on the learning rate from each layer to the one
        below, where the backbone is pre-trained.
      drop_path: likewise -> largest rate of stochastic depth.
      frozen_stages: likewise -> number of first stages that are not trained; of a detector.
    """

    epochs: int
    batch_size: int
    boundaries: tuple[float, ...]
    rates: Mapping[str, tuple[float, float]]
    rate_factor: float
    scaled_batch: int | None = None
    warmup_steps: int = 500
    warmup_start: float = 1e-3
    clip_norm: float | None = None
    width: int = 256
    style: str = "mmdet"
    short: tuple[int, int] = (800, 800)
    long: int = 1333
    shapes: int = 2
    finest_stride: int | None = None
    input_size: tuple[int, int] = (192, 256)
    sigma: int = 2
    layer_decay: Mapping[str, float] = dataclasses.field(default_factory=dict)
    drop_path: Mapping[str, float] = dataclasses.field(default_factory=dict)
    frozen_stages: Mapping[str, int] = dataclasses.field(default_factory=dict)


_DETECTOR = TransferRecipe(
    epochs=12,
    batch_size=16,
    boundaries=(8 / 12, 11 / 12),
    rates={"sgd": (0.01, 1e-4), "adamw": (1e-4, 0.05)},
    rate_factor=0.2,
    scaled_batch=16,
    layer_decay={"vit": 0.7},
    drop_path={"swin": 0.2, "vit": 0.1},
    frozen_stages={"resnet": 1},
)
_POSE = TransferRecipe(
    epochs=210,
    batch_size=512,
    boundaries=(170 / 210, 200 / 210),
    rates={"adam": (5e-4, 0.0)},
    rate_factor=1.0,
    layer_decay={"vit": 0.75},
    drop_path={"swin": 0.2, "vit": 0.1},
)
# Nets of a few 100,000 parameters from random weights.
_SMALL = TransferRecipe(
    epochs=12,
    batch_size=32,
    boundaries=(0.75, 0.92),
    rates={"sgd": (0.02, 1e-4)},
    rate_factor=4.0,
    warmup_steps=100,
    width=64,
    short=(128, 128),
    long=128,
    shapes=1,
    finest_stride=4,
    input_size=(96, 128),
)
RECIPES: dict[str, dict[str, TransferRecipe]] = {
    "detection": {
        "1x": _DETECTOR,
        "3x": dataclasses.replace(
            _DETECTOR, epochs=36, boundaries=(27 / 36, 33 / 36), short=(640, 800)
        ),
        "small": dataclasses.replace(_SMALL, batch_size=16, clip_norm=10.0),
    },
    "pose": {
        "210e": _POSE,
        "384x288": dataclasses.replace(_POSE, input_size=(288, 384), sigma=3),
        "small": _SMALL,
    },
}


def recipe_of(task: str, name: str, dataset: str) -> tuple[str, TransferRecipe]:
    """Return a recipe, and its name.

    Args:
      task: "detection" or "pose".
      name: of the recipe; "auto" for `small` on the drawn data, else the first.
      dataset: name of the data set.

    Raises:
      UserError: there is no such recipe.
    """
    table = RECIPES[task]
    if name == "auto":
        name = "small" if dataset == "shapes" else next(iter(table))
    if name not in table:
        raise UserError(f"There is no recipe '{name}' for {task}. There are: {', '.join(table)}.")
    return name, table[name]
