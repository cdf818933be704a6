"""The paper's training settings as data: what a run uses where its config says nothing.

A recipe has an entry for small images (CIFAR) and one for ImageNet. `PAPER` holds what the paper
and its released code state, entered independently. `REASONS` explains every difference between the
two, and `bocb recipes --check` prints all three side by side. Standard library only.

Sources: BOCB (arXiv 2410.06373), Table A3 and section B, and the configurations of OpenMixup that
its authors released; DeiT (arXiv 2012.12877), ConvNeXt (arXiv 2201.03545), ResNet strikes back
(arXiv 2110.00476).
"""

import dataclasses
import types
from collections.abc import Mapping
from typing import Any

from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Every setting of a recipe, under the names of `TrainConfig`.

    Learning rate and weight decay are for the recipe's own optimizer; a run with another optimizer
    uses that optimizer's, unless `rates` or `rate_factor` says otherwise.
    """

    epochs: int
    batch_size: int
    image_size: int | None = None  # pixels; None: what the paper gives the backbone
    test_size: int | None = None  # pixels; None: as in training
    opt: str = "sgd"
    lr: float = 0.1
    weight_decay: float = 1e-4
    decay_mask: str = "matrices"  # "all": an optimizer with coupled (L2) decay decays everything
    schedule: str = "cosine"
    cosine_from: str = "start"  # the cosine begins at the "start" or at the end of the "warmup"
    schedule_by: str = "step"  # the learning rate changes every "step" or every "epoch"
    warmup_epochs: float = 0.0
    warmup_start: float | None = None  # where the warm-up begins, as a fraction of the peak
    end_fraction: float = 0.0  # where the cosine ends, as a fraction of the peak
    loss: str = "cross_entropy"  # or "bce", "bce_sum"
    label_smoothing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    repeats: int = 1
    drop_path: float = 0.0
    clip_norm: float | None = None
    ema: float | None = None
    crop_ratio: float = 1.0  # share of the shorter side of a test image that is kept
    train: str = "all"  # or "classifier"
    keeps_size: bool = False  # of the images that pre-trained weights are for
    # Optimizer -> its learning rate, weight decay, and factor on the rate from each layer of a ViT
    # to the one below (None: all layers have the same).
    rates: Mapping[str, tuple[float, float, float | None]] = dataclasses.field(default_factory=dict)
    rate_factor: float = 1.0  # on the usual learning rate of an optimizer that is not in `rates`
    augmentation: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_SMALL_CROP: dict[str, Any] = {"pad": 4, "pad_mode": "reflect", "flip": True}  # up to 64 pixels
_LARGE_CROP: dict[str, Any] = {"resized_crop": (0.8, 1.0), "flip": True}  # resized small images
_IMAGENET_CROP: dict[str, Any] = {"resized_crop": (0.08, 1.0), "flip": True}
_STRONG: dict[str, Any] = {"rand_augment": "rand-m9-mstd0.5-inc1", "erase": 0.25}
_MIXED: dict[str, Any] = {"label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0}
_WARM: dict[str, Any] = {"warmup_epochs": 5, "warmup_start": 1e-5}
_ADAMW: dict[str, Any] = {"opt": "adamw", "lr": 1e-3, "weight_decay": 0.05}
_LAMB: dict[str, Any] = {"opt": "lamb", "lr": 5e-3, "weight_decay": 0.02}
_FROM_WEIGHTS: dict[str, Any] = {
    "epochs": 30, "batch_size": 128, "warmup_epochs": 2, "cosine_from": "warmup",
    "keeps_size": True,
}  # fmt: skip
# For weights that were trained before: ours, after Kornblith et al. (2019, arXiv 1805.08974) and
# Dosovitskiy et al. (2021, arXiv 2010.11929) for SGD, after BEiT (arXiv 2106.08254), MAE (arXiv
# 2111.06377) and ConvNeXt's fine-tuning for AdamW.
_FINE_TUNED: dict[str, Any] = _FROM_WEIGHTS | {
    "lr": 0.01, "weight_decay": 1e-4, "rate_factor": 0.1,
    "rates": {"sgd": (0.01, 1e-4, None), "adamw": (5e-5, 0.05, 0.75)},
}  # fmt: skip
# Linear probing: features stay as they are, so nothing is decayed, mixed or dropped.
_PROBED: dict[str, Any] = _FROM_WEIGHTS | {
    "lr": 0.1, "weight_decay": 0.0, "train": "classifier",
    "rates": {"sgd": (0.1, 0.0, None), "adamw": (1e-3, 0.0, None)},
}  # fmt: skip
_CIFAR: dict[str, Any] = {"epochs": 200, "batch_size": 100}

_RECIPES: dict[str, dict[str, Recipe]] = {
    "digits": {
        # Ours. Digits must not be mirrored, and 1,258 of them are memorized without augmentation.
        "digits": Recipe(
            epochs=20, batch_size=64, image_size=32, warmup_epochs=2, cosine_from="warmup",
            augmentation={"shift": 0.125, "rotate": 12.0, "scale": 0.1},
        ),
    },
    "pytorch": {
        "cifar100": Recipe(**_CIFAR, decay_mask="all", schedule_by="epoch"),
        "imagenet": Recipe(
            epochs=100, batch_size=256, decay_mask="all", schedule_by="epoch", image_size=224,
            crop_ratio=0.875, augmentation=_IMAGENET_CROP,
        ),
    },
    "deit": {
        "cifar100": Recipe(
            **_CIFAR, **_ADAMW, **_WARM, **_MIXED, end_fraction=1e-3, repeats=3, drop_path=0.1,
            clip_norm=5.0, augmentation=_STRONG,
        ),
        "imagenet": Recipe(
            epochs=300, batch_size=1024, image_size=224, **_ADAMW, **_MIXED,
            warmup_epochs=5, warmup_start=1e-6, end_fraction=1e-2, repeats=3, drop_path=0.1,
            clip_norm=5.0, crop_ratio=0.875, augmentation=_IMAGENET_CROP | _STRONG,
        ),
    },
    "convnext": {
        "cifar100": Recipe(
            **_CIFAR, **_ADAMW, **_MIXED, warmup_epochs=20, warmup_start=1e-5,
            end_fraction=1e-3, drop_path=0.1, augmentation=_STRONG,
        ),
        "imagenet": Recipe(
            epochs=300, batch_size=4096, image_size=224, opt="adamw", lr=4e-3, weight_decay=0.05,
            **_MIXED, warmup_epochs=20, warmup_start=1e-6, end_fraction=2.5e-4, drop_path=0.1,
            ema=0.9999, crop_ratio=0.875, augmentation=_IMAGENET_CROP | _STRONG,
        ),
    },
    "rsb_a1": {
        "cifar100": Recipe(
            **_CIFAR, opt="lamb", lr=5e-3, weight_decay=0.01, **_WARM, end_fraction=2e-4,
            label_smoothing=0.1, mixup=0.2, cutmix=1.0, repeats=3, drop_path=0.05,
            augmentation={"rand_augment": "rand-m7-mstd0.5-inc1"},
        ),
        "imagenet": Recipe(
            epochs=600, batch_size=2048, image_size=224, opt="lamb", lr=5e-3, weight_decay=0.01,
            **_WARM, end_fraction=2e-4, label_smoothing=0.1, mixup=0.2, cutmix=1.0, repeats=3,
            drop_path=0.05, crop_ratio=0.95, schedule_by="epoch",
            augmentation=_IMAGENET_CROP | {"rand_augment": "rand-m7-mstd0.5-inc1"},
        ),
    },
    "rsb_a2": {
        "cifar100": Recipe(
            **_CIFAR, **_LAMB, **_WARM, end_fraction=2e-4, loss="bce_sum", mixup=0.1, cutmix=1.0,
            repeats=3, drop_path=0.05, augmentation={"rand_augment": "rand-m7-mstd0.5-inc1"},
        ),
        "imagenet": Recipe(
            epochs=300, batch_size=2048, image_size=224, **_LAMB, **_WARM, end_fraction=2e-4,
            loss="bce_sum", mixup=0.1, cutmix=1.0, repeats=3, drop_path=0.05, crop_ratio=0.95,
            schedule_by="epoch",
            augmentation=_IMAGENET_CROP | {"rand_augment": "rand-m7-mstd0.5-inc1"},
        ),
    },
    "rsb_a3": {
        "cifar100": Recipe(
            **_CIFAR, opt="lamb", lr=8e-3, weight_decay=0.02, **_WARM, loss="bce_sum",
            mixup=0.1, cutmix=1.0, augmentation={"rand_augment": "rand-m6-mstd0.5-inc1"},
        ),
        "imagenet": Recipe(
            epochs=100, batch_size=2048, image_size=160, test_size=224, opt="lamb", lr=8e-3,
            weight_decay=0.02, **_WARM, loss="bce_sum", mixup=0.1, cutmix=1.0, crop_ratio=0.95,
            schedule_by="epoch",
            augmentation=_IMAGENET_CROP | {"rand_augment": "rand-m6-mstd0.5-inc1"},
        ),
    },
    "finetune": {
        "cifar100": Recipe(**_FINE_TUNED),
        "imagenet": Recipe(**_FINE_TUNED, crop_ratio=0.875, augmentation=_IMAGENET_CROP),
    },
    "linear_probe": {
        "cifar100": Recipe(**_PROBED),
        "imagenet": Recipe(**_PROBED, crop_ratio=0.875, augmentation=_IMAGENET_CROP),
    },
}  # fmt: skip

# What the paper prints (Table A3) or, failing that, what the released configurations have. Neither
# states a setting that is missing here.
_PAPER_CIFAR: dict[str, Any] = {
    "epochs": 200, "batch_size": 100, "schedule": "cosine", "crop_ratio": 1.0, "flip": True,
    "cosine_from": "start",
}  # fmt: skip
_PAPER_DEIT: dict[str, Any] = {
    "opt": "adamw", "weight_decay": 0.05, "label_smoothing": 0.1, "mixup": 0.8, "cutmix": 1.0,
    "erase": 0.25, "rand_augment": "9/0.5", "drop_path": 0.1, "decay_mask": "matrices",
    "loss": "cross_entropy",
}  # fmt: skip
_PAPER_LAMB: dict[str, Any] = {
    "opt": "lamb", "lr": 5e-3, "weight_decay": 0.02, "warmup_epochs": 5, "warmup_start": 1e-5,
    "mixup": 0.1, "cutmix": 1.0, "drop_path": 0.05, "repeats": 3, "loss": "bce_sum",
    "rand_augment": "7/0.5", "decay_mask": "matrices", "clip_norm": None, "ema": None,
    "label_smoothing": 0.0,
}  # fmt: skip
_PAPER_IMAGENET: dict[str, Any] = {
    "schedule": "cosine", "cosine_from": "start", "flip": True, "resized_crop": (0.08, 1.0),
    "image_size": 224,
}  # fmt: skip

PAPER: Mapping[tuple[str, str], Mapping[str, Any]] = types.MappingProxyType({
    ("pytorch", "cifar100"): _PAPER_CIFAR | {
        "opt": "sgd", "lr": 0.1, "weight_decay": 1e-4, "warmup_epochs": 0, "label_smoothing": 0.0,
        "drop_path": 0.0, "ema": None, "loss": "cross_entropy", "mixup": 0.0, "cutmix": 0.0,
        "repeats": 1, "clip_norm": None, "schedule_by": "epoch", "decay_mask": "all",
        "pad": 4, "pad_mode": "reflect", "end_fraction": 0.0, "rand_augment": None, "erase": None,
    },
    ("pytorch", "imagenet"): _PAPER_IMAGENET | {
        "epochs": 100, "batch_size": 256, "opt": "sgd", "lr": 0.1, "weight_decay": 1e-4,
        "warmup_epochs": 0, "end_fraction": 0.0, "schedule_by": "epoch", "loss": "cross_entropy",
        "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0, "repeats": 1, "drop_path": 0.0,
        "clip_norm": None, "ema": None, "decay_mask": "all", "crop_ratio": 0.875,
        "rand_augment": None, "erase": None,
    },
    ("deit", "cifar100"): _PAPER_CIFAR | _PAPER_DEIT | {
        "lr": 1e-3, "warmup_epochs": 5, "warmup_start": 1e-5, "clip_norm": 5.0, "repeats": 3,
        "ema": "on", "resized_crop": (0.8, 1.0), "end_fraction": 1e-3, "schedule_by": "step",
    },
    ("deit", "imagenet"): _PAPER_IMAGENET | _PAPER_DEIT | {
        "epochs": 300, "batch_size": 1024, "lr": 1e-3, "warmup_epochs": 5, "warmup_start": 1e-6,
        "end_fraction": 1e-2, "schedule_by": "step", "clip_norm": 5.0, "repeats": 3, "ema": "on",
        "crop_ratio": 0.875,
    },
    ("convnext", "cifar100"): _PAPER_CIFAR | _PAPER_DEIT | {
        "lr": 1e-3, "warmup_epochs": 20, "warmup_start": 1e-5, "clip_norm": None, "repeats": 3,
        "ema": "on", "pad": 4, "pad_mode": "reflect", "end_fraction": 1e-3, "schedule_by": "step",
    },
    ("convnext", "imagenet"): _PAPER_IMAGENET | _PAPER_DEIT | {
        "epochs": 300, "batch_size": 4096, "lr": 4e-3, "warmup_epochs": 20, "warmup_start": 1e-6,
        "end_fraction": 2.5e-4, "schedule_by": "step", "clip_norm": None, "repeats": 1,
        "ema": 0.9999, "crop_ratio": 0.875,
    },
    ("rsb_a1", "cifar100"): _PAPER_CIFAR,
    ("rsb_a1", "imagenet"): _PAPER_IMAGENET | _PAPER_LAMB | {
        "epochs": 600, "batch_size": 2048, "weight_decay": 0.01, "end_fraction": 2e-4,
        "schedule_by": "epoch", "loss": "cross_entropy", "label_smoothing": 0.1, "mixup": 0.2,
        "crop_ratio": 0.95,
    },
    ("rsb_a2", "cifar100"): _PAPER_CIFAR | _PAPER_LAMB,
    ("rsb_a2", "imagenet"): _PAPER_IMAGENET | _PAPER_LAMB | {
        "epochs": 300, "batch_size": 2048, "end_fraction": 2e-4, "schedule_by": "epoch",
        "crop_ratio": 0.95,
    },
    ("rsb_a3", "cifar100"): _PAPER_CIFAR | {"rand_augment": "6/0.5"},
    ("rsb_a3", "imagenet"): _PAPER_IMAGENET | _PAPER_LAMB | {
        "epochs": 100, "batch_size": 2048, "image_size": 160, "test_size": 224, "lr": 8e-3,
        "repeats": 1, "drop_path": 0.0, "end_fraction": 0.0, "schedule_by": "epoch",
        "rand_augment": "6/0.5", "crop_ratio": 0.95,
    },
})  # fmt: skip

_RAND_AUGMENT = (
    "The 15 operations of timm with noisy, increasing magnitude, as in the recipes' own papers. On "
    "CIFAR the authors drew from 14 other operations and applied each with probability 0.5."
)
_NO_EMA = (
    "The table ticks a weight average but gives no decay, and the released configurations train "
    "without one. --step.ema switches it on."
)
# (recipe or *, data set or *, setting) -> why ours differs from what is printed or released.
REASONS: Mapping[tuple[str, str, str], str] = types.MappingProxyType(
    {
        ("*", "*", "rand_augment"): _RAND_AUGMENT,
        ("deit", "*", "ema"): _NO_EMA,
        ("convnext", "cifar100", "ema"): _NO_EMA,
        ("convnext", "cifar100", "repeats"): (
            "The merged cell of the table would repeat images; neither ConvNeXt's own recipe nor "
            "the released configurations do."
        ),
    }
)
# Remarks that concern more than one setting.
NOTES = (
    "Stochastic depth is the table's. The released CIFAR configurations have 0.3 for ConvNeXt-T, "
    "0.2 for Swin-T, 0.1 for MogaNet-S, and none in effect for DeiT-S and EfficientNet.",
    "The warm-up is the table's: 5 epochs for DeiT, 20 for ConvNeXt; the released CIFAR "
    "configurations have it the other way round.",
    "Pixels are normalized by the mean and deviation of the data set itself; the authors used "
    "(0.491, 0.482, 0.447) and (0.202, 0.199, 0.201) for CIFAR-100.",
    "The cosine ends at a fraction of the peak, so that it scales with the learning rate; the "
    "authors' end is absolute, 1e-6 or 1e-5.",
    "Weight decay skips biases, norms, tokens and position tables by what they are. The authors "
    "matched patterns in names, which miss a few norms (in ConvNeXt's downsampling, for one).",
    "An incomplete last batch is dropped; the authors trained on it.",
    "RSB A1 and A3 are for pre-training on ImageNet; their CIFAR entries are ours.",
    "RSB A1 has cross entropy, as the authors ran it; the recipe's own paper has BCE.",
    "BCE is summed over the classes, as the authors ran it; --step.loss bce averages it.",
)


def list_recipes() -> list[str]:
    """Return the names that `--recipe` takes besides "auto"."""
    return list(_RECIPES)


def regime_for(dataset: str, image_side: int | None) -> str:
    """Return the entry of a recipe for a data set: "digits", "cifar100" (small) or "imagenet".

    Args:
      dataset: name of the data set.
      image_side: side of its images in pixels if they are all alike, else None.
    """
    if dataset == "digits":
        return "digits"
    return "cifar100" if image_side is not None and image_side <= 64 else "imagenet"


def get_recipe(name: str, regime: str, input_size: int | None = None) -> Recipe:
    """Return a recipe for one kind of data.

    Args:
      name: one of `list_recipes()`.
      regime: from `regime_for`; "digits" uses the entry for small images, without mirroring.
      input_size: side in pixels that the backbone sees; decides how small images are cropped.

    Raises:
      UserError: there is no such recipe; the message lists the known ones.
    """
    if name not in _RECIPES:
        raise UserError(f"There is no recipe '{name}'. There are: auto, {', '.join(_RECIPES)}.")
    entries = _RECIPES[name]
    recipe = entries.get(regime) or entries.get("cifar100") or entries["digits"]
    if recipe is entries.get("cifar100"):
        crop = _LARGE_CROP if (input_size or 32) > 64 else _SMALL_CROP
        if regime == "digits":
            crop = {**crop, "flip": False}
        recipe = dataclasses.replace(recipe, augmentation={**crop, **recipe.augmentation})
    return recipe


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """Return every setting of a recipe, augmentation included, in one flat mapping."""
    values = dataclasses.asdict(recipe)
    rates = {f"{opt}: rate, decay, layer decay": of for opt, of in values.pop("rates").items()}
    return values | values.pop("augmentation") | rates


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One setting of a recipe next to the paper's."""

    recipe: str
    dataset: str
    setting: str
    ours: Any
    paper: Any  # `UNSTATED` where neither paper nor released code says
    reason: str  # for the difference; empty if there is none

    @property
    def silent(self) -> bool:
        """Whether the two differ without a reason."""
        return self.paper != UNSTATED and not _equal(self.ours, self.paper) and not self.reason


UNSTATED = "not stated"


def compare() -> list[Comparison]:
    """Return every setting of every recipe of the paper next to the paper's."""
    rows = []
    for (name, dataset), paper in PAPER.items():
        large = 224 if "resized_crop" in paper else 32
        ours = settings_of(get_recipe(name, dataset, large))
        for setting in dict.fromkeys([*ours, *paper]):
            value, theirs = ours.get(setting), paper.get(setting, UNSTATED)
            reason = ""
            if theirs != UNSTATED and not _equal(value, theirs):
                keys = [(n, d, setting) for n in (name, "*") for d in (dataset, "*")]
                reason = next((REASONS[key] for key in keys if key in REASONS), "")
            rows.append(Comparison(name, dataset, setting, value, theirs, reason))
    return rows


def _equal(ours: Any, paper: Any) -> bool:
    return ours == paper or (not ours and not paper)
