"""Writes rand_augment.npz beside this file: what timm 1.0.31 makes of sample photographs.

Run by hand, with timm, torch, torchvision, scikit-learn and Pillow < 12 (timm's posterize fails
with later ones), from the root of the repository: `python tests/golden/augment/make.py`.
"""

import random
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image

# A torchvision without its compiled operators misses two that it registers on import.
library = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

from timm.data import auto_augment, create_transform  # noqa: E402
from timm.data.mixup import mixup_target  # noqa: E402

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parents[1]))
from helpers.sample_crops import photographs, sample_crops  # noqa: E402

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
crops = sample_crops(4, 32)
made = {"crops_crc": np.uint32(zlib.crc32(crops.tobytes()))}
for text in ("rand-m9-p1-inc1", "rand-m6-p1", "rand-m7-p1-inc1"):
    hparams = {
        "img_mean": tuple(min(255, round(255 * x)) for x in MEAN),
        "interpolation": Image.Resampling.BICUBIC,
    }
    operations = auto_augment.rand_augment_transform(text, hparams).ops
    for sign in (-1, 1):
        # timm negates where a random number is above one half.
        random.random = lambda sign=sign: 0.25 if sign > 0 else 0.75
        made[f"{text}{sign:+d}"] = np.stack([
            [np.asarray(operation(Image.fromarray(crop))) for crop in crops]
            for operation in operations
        ])  # fmt: skip

for size, ratio in ((48, 0.875), (40, 1.0)):
    transform = create_transform(
        size, interpolation="bicubic", crop_pct=ratio, mean=MEAN, std=STD, normalize=True
    )
    image = photographs()[0, :120, :90]
    made[f"evaluate_{size}_{ratio}"] = transform(Image.fromarray(image)).numpy().transpose(1, 2, 0)
made["targets"] = mixup_target(torch.tensor([0, 2, 1]), 3, 0.7, 0.1).numpy()
np.savez_compressed(HERE / "rand_augment.npz", **made)
