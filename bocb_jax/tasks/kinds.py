"""What differs between runs of classification, detection and pose estimation."""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import jax
import numpy as np
from PIL import Image

from bocb_jax.config import TrainConfig, TransferConfig
from bocb_jax.data import pipeline
from bocb_jax.data.annotated import AnnotatedDataset, images_of, open_annotated
from bocb_jax.data.boxed import BoxedImages, Resize, Shape, padded_shapes
from bocb_jax.data.coco import LEAST_SIDE
from bocb_jax.data.dataset import Dataset
from bocb_jax.data.decode import RandomCrop
from bocb_jax.data.detections import read_detections
from bocb_jax.data.loader import Loader
from bocb_jax.data.persons import PersonCrops
from bocb_jax.data.pipeline import Batches
from bocb_jax.data.registry import open_dataset
from bocb_jax.data.synthetic import open_or_synthetic
from bocb_jax.detection.rules import STYLES
from bocb_jax.errors import UserError
from bocb_jax.models import retinanet
from bocb_jax.pose.augmentation import AUGMENTATIONS
from bocb_jax.resolve import ResolvedConfig
from bocb_jax.resolve import resolve as resolve_classification
from bocb_jax.tasks.detection import Detector, box_scores
from bocb_jax.tasks.net import Net
from bocb_jax.tasks.pose import HeatmapNet, joint_scores
from bocb_jax.tasks.resolve import resolve
from bocb_jax.tasks.shown import box_picture, joint_picture

AnyDataset: TypeAlias = Dataset | AnnotatedDataset
Parts: TypeAlias = Sequence[dict[str, Any]]  # what `Task.evaluate` gave for each batch, fetched


class BatchSource(Protocol):
    """Makes iterators over batches."""

    def train(self, *, seed: int, repeats: int = 1) -> Batches:
        """Return endless shuffled batches."""

    def evaluation(self, split: str) -> Batches:
        """Return one pass over a split."""


class RunData(Protocol):
    """The batches of a run, and how the outputs for them are scored."""

    @property
    def epoch_steps(self) -> int:
        """Training batches in an epoch."""

    @property
    def said(self) -> str:
        """What a run says of its batches before it starts; may be empty."""

    @property
    def largest(self) -> tuple[int, int] | None:
        """Height and width of the largest images of a batch, if batches have several shapes."""

    def loader(self, sharding: jax.sharding.NamedSharding) -> BatchSource:
        """Return where batches come from, put on devices as `sharding` says."""

    def scores(self, split: str, parts: Parts) -> dict[str, float]:
        """Return the scores of a split, in 0 ... 1, the loss apart; by name."""

    def picture(self, split: str, parts: Parts) -> Image.Image | None:
        """Return a picture of some examples, the same each time; None where there is none."""


class Kind(Protocol):
    """A kind of run.

    Attributes:
      score: name of the score that runs are compared by.
    """

    score: str

    def open(self, config: TrainConfig) -> Any:
        """Open the data set of a run, with the splits of its protocol."""

    def open_or_stand_in(self, config: TrainConfig) -> tuple[Any, bool]:
        """Open the data set, or a stand-in where it is not on this machine; download nothing.

        Returns:
          The data set, with the splits of its protocol, and whether it is the real one.
        """

    def resolve(self, config: TrainConfig, dataset: Any) -> ResolvedConfig:
        """Return the values that a config leaves open."""

    def net(self, config: TrainConfig, resolved: ResolvedConfig, dataset: Any) -> Net | None:
        """Return what is put around the backbone, if anything."""

    def data(self, config: TrainConfig, resolved: ResolvedConfig, dataset: Any) -> RunData:
        """Return the batches of a run."""


# --- Classification -------------------------------------------------------------------------------


class _Classification:
    score = "accuracy"

    def open(self, config: TrainConfig) -> Dataset:
        return _with_protocol(_opened(open_dataset, config), config.protocol)

    def open_or_stand_in(self, config: TrainConfig) -> tuple[Dataset, bool]:
        dataset, is_real = _opened(open_or_synthetic, config)
        return _with_protocol(dataset, config.protocol), is_real

    def resolve(self, config: TrainConfig, dataset: Dataset) -> ResolvedConfig:
        if config.transfer != TransferConfig():
            raise UserError("Settings under transfer are for detection and pose; leave them out.")
        return resolve_classification(config, dataset)

    def net(self, config: TrainConfig, resolved: ResolvedConfig, dataset: Dataset) -> None:
        return None

    def data(
        self, config: TrainConfig, resolved: ResolvedConfig, dataset: Dataset
    ) -> "_LabelledImages":
        return _LabelledImages(config, resolved, dataset)


def _opened(open_: Callable[..., Any], config: TrainConfig) -> Any:
    """Return what a function that opens data sets makes of that of a run."""
    return _dataset(
        os.getcwd(),  # a relative path in the name means another folder elsewhere
        open_,
        config.dataset,
        split_seed=config.data.split_seed,
        data_dir=config.data.dir,
        on_corrupt=config.on_corrupt,
    )


@functools.lru_cache(maxsize=1)
def _dataset(here: str, open_: Callable[..., Any], name: str, **options: Any) -> Any:
    """Open a data set; the next run of this process uses the images that are decoded already."""
    del here
    return open_(name, **options)


def _with_protocol(dataset: Dataset, protocol: str) -> Dataset:
    return dataset.tuned_on_test() if protocol == "paper" else dataset


class _LabelledImages:
    said = ""
    largest = None

    def __init__(self, config: TrainConfig, resolved: ResolvedConfig, dataset: Dataset):
        self._config, self._resolved, self._dataset = config, resolved, dataset
        examples = len(dataset.splits["train"])
        self.epoch_steps = pipeline.steps_per_epoch(examples, resolved.batch_size)

    def loader(self, sharding: jax.sharding.NamedSharding) -> Loader:
        resolved, data = self._resolved, self._config.data
        return Loader(
            self._dataset,
            batch_size=resolved.batch_size,
            image_size=resolved.image_size,
            test_size=resolved.test_size,
            sharding=sharding,
            workers=data.workers,
            crop=resolved.host_crop and RandomCrop(resolved.host_crop),
            crop_ratio=resolved.crop_ratio,
            on_device=data.on_device,
        )

    def scores(self, split: str, parts: Parts) -> dict[str, float]:
        total = {name: sum(part[name] for part in parts) for name in parts[0]}
        return {
            "loss": total["loss"] / total["count"],
            "accuracy": total["correct"] / total["count"],
        }

    def picture(self, split: str, parts: Parts) -> None:
        return None


# --- Detection and pose estimation ----------------------------------------------------------------


class _Planned:
    """Batches by plans of the splits' own."""

    def __init__(
        self, splits: dict[str, Any], plans: Any, workers: int, sharding: jax.sharding.NamedSharding
    ):
        self._splits, self._plans = splits, plans
        self._options: dict[str, Any] = {"sharding": sharding, "workers": workers}

    def train(self, *, seed: int, repeats: int = 1) -> Batches:
        del repeats
        plan = self._plans.train(seed)
        return pipeline.planned_batches(self._splits["train"], plan, **self._options)

    def evaluation(self, split: str) -> Batches:
        plan = self._plans.evaluation(split)
        return pipeline.planned_batches(self._splits[split], plan, **self._options)


class _BoxedData:
    def __init__(self, config: TrainConfig, resolved: ResolvedConfig, dataset: AnnotatedDataset):
        special = resolved.transfer
        assert special is not None
        resize, shapes = _shapes(special)
        train = dataset.splits["train"]
        chosen = train.annotations.trained_images
        self._left_out = len(train) - len(chosen)
        self.splits = {
            "train": BoxedImages(images_of(train, chosen), resize, shapes, training=True)
        }
        for name in ("validation", "test"):
            self.splits[name] = BoxedImages(dataset.splits[name], resize, shapes)
        self._images = dataset.splits
        self._workers, self._batch_size = config.data.workers, resolved.batch_size
        self.epoch_steps = self.train(0).steps

    @property
    def said(self) -> str:
        used = {split.shapes[group] for split in self.splits.values() for group in split.groups}
        listed = ", ".join(f"{width}x{height}" for height, width in sorted(used))
        shapes = "one padded shape" if len(used) == 1 else f"{len(used)} padded shapes"
        left_out = ""
        if self._left_out:
            left_out = (
                f"{self._left_out:,} training image(s) without a box or with a side below "
                f"{LEAST_SIDE} pixels are left out, as in MMDetection.\n"
            )
        return f"{left_out}Images are put into {shapes} ({listed} pixels); each is compiled.\n"

    @property
    def largest(self) -> tuple[int, int]:
        return self.splits["train"].shapes[-1]

    def train(self, seed: int) -> pipeline.Plan:
        return self.splits["train"].train_plan(self._batch_size, seed)

    def evaluation(self, split: str) -> pipeline.Plan:
        return self.splits[split].evaluation_plan(self._batch_size)

    def loader(self, sharding: jax.sharding.NamedSharding) -> _Planned:
        return _Planned(self.splits, self, self._workers, sharding)

    def scores(self, split: str, parts: Parts) -> dict[str, float]:
        return box_scores(self.splits[split].annotations, parts)

    def picture(self, split: str, parts: Parts) -> Image.Image:
        return box_picture(self._images[split], parts)


def _shapes(special: Mapping[str, Any]) -> tuple[Resize, tuple[Shape, ...]]:
    """Return how images are resized, and the padded shapes that they are put into."""
    low, high = special["short"]
    resize = Resize(special["long"], (low, high))
    return resize, padded_shapes(resize, special["shapes"])


class _PersonData:
    said = ""
    largest = None

    def __init__(self, config: TrainConfig, resolved: ResolvedConfig, dataset: AnnotatedDataset):
        special = resolved.transfer
        assert special is not None
        width, height = special["input_size"]
        augmentation = AUGMENTATIONS[special["augmentation"]]
        boxes = config.transfer.boxes
        self.splits: dict[str, PersonCrops] = {}
        for name, images in dataset.splits.items():
            found = None
            if boxes is not None and name == "test":
                found = read_detections(boxes, images.annotations)
            self.splits[name] = PersonCrops(
                images,
                (width, height),
                augmentation=augmentation if name == "train" else None,
                detections=found,
            )
        self._images = dataset.splits
        self._workers, self._batch_size = config.data.workers, resolved.batch_size
        self._soft_nms = config.transfer.soft_nms
        persons = len(self.splits["train"])
        self.epoch_steps = pipeline.steps_per_epoch(persons, self._batch_size, "persons")

    def train(self, seed: int) -> pipeline.Plan:
        return pipeline.TrainPlan(len(self.splits["train"]), self._batch_size, seed)

    def evaluation(self, split: str) -> pipeline.Plan:
        return pipeline.EvaluationPlan(len(self.splits[split]), self._batch_size)

    def loader(self, sharding: jax.sharding.NamedSharding) -> _Planned:
        return _Planned(self.splits, self, self._workers, sharding)

    def scores(self, split: str, parts: Parts) -> dict[str, float]:
        return joint_scores(self.splits[split], parts, soft_nms=self._soft_nms)

    def picture(self, split: str, parts: Parts) -> Image.Image:
        return joint_picture(self._images[split], self.splits[split], parts)


class _Transfer:
    score = "AP"

    def open(self, config: TrainConfig) -> AnnotatedDataset:
        return self._open(config, config.dataset)

    def open_or_stand_in(self, config: TrainConfig) -> tuple[AnnotatedDataset, bool]:
        scheme, _, folder = config.dataset.partition(":")
        is_real = scheme != "coco" or os.path.isdir(os.path.expanduser(folder))
        return self._open(config, config.dataset if is_real else "shapes"), is_real

    def _open(self, config: TrainConfig, name: str) -> AnnotatedDataset:
        return _annotated(
            os.getcwd(),
            name,
            config.task,
            split_seed=config.data.split_seed,
            held_out=config.protocol != "paper",
        )


class _Detection(_Transfer):
    def resolve(self, config: TrainConfig, dataset: AnnotatedDataset) -> ResolvedConfig:
        found = dataset.annotations
        images = len(found.trained_images)
        if not np.isin(found.image[found.usable], found.trained_images).any():
            raise UserError(
                f"'{dataset.name}' has no box of at least a pixel in a training image of no side "
                f"below {LEAST_SIDE} pixels."
            )
        resolved = resolve(config, dataset, images)
        assert resolved.transfer is not None
        group = STYLES[resolved.transfer["style"]].group
        part = resolved.batch_size // config.step.accumulate
        if part > 1 and part % group:
            raise UserError(
                f"A batch of {part} images does not divide into groups of {group}, over which the "
                "losses are normalized; choose a multiple."
            )
        return resolved

    def net(
        self, config: TrainConfig, resolved: ResolvedConfig, dataset: AnnotatedDataset
    ) -> Detector:
        special = resolved.transfer
        assert special is not None
        return Detector(
            retinanet.style_of(
                special["style"],
                channels=special["width"],
                finest_stride=special["finest_stride"],
                frozen_stages=special["frozen_stages"],
                batch_norm=special["batch_norm"],
            ),
            STYLES[special["style"]],
            dataset.num_classes,
            _shapes(special)[1][-1],
        )

    def data(
        self, config: TrainConfig, resolved: ResolvedConfig, dataset: AnnotatedDataset
    ) -> _BoxedData:
        return _BoxedData(config, resolved, dataset)


class _Pose(_Transfer):
    def resolve(self, config: TrainConfig, dataset: AnnotatedDataset) -> ResolvedConfig:
        return resolve(config, dataset, len(dataset.annotations.persons))

    def net(
        self, config: TrainConfig, resolved: ResolvedConfig, dataset: AnnotatedDataset
    ) -> HeatmapNet:
        special = resolved.transfer
        assert special is not None
        width, height = special["input_size"]
        return HeatmapNet(
            dataset.skeleton,
            (width, height),
            special["sigma"],
            special["width"],
            config.transfer.flip_test,
        )

    def data(
        self, config: TrainConfig, resolved: ResolvedConfig, dataset: AnnotatedDataset
    ) -> _PersonData:
        return _PersonData(config, resolved, dataset)


@functools.lru_cache(maxsize=1)
def _annotated(here: str, name: str, task: str, **options: Any) -> AnnotatedDataset:
    """Open a data set; the next run of this process need not read it again."""
    del here
    return open_annotated(name, task, **options)


# Training examples of COCO 2017, whose size stands in for an annotated set that is not there.
_COCO = {"detection": 117_266, "pose": 149_813}


def epoch_steps(
    config: TrainConfig, resolved: ResolvedConfig, data: RunData, *, has_data: bool
) -> int:
    """Return the training batches in an epoch of the data set that a config names.

    Args:
      config: of the run.
      resolved: what the recipe fills in.
      data: of the run, or of a stand-in.
      has_data: whether it is the run's own, see `Kind.open_or_stand_in`.
    """
    if not has_data and config.task in _COCO:
        return _COCO[config.task] // resolved.batch_size
    return data.epoch_steps


KINDS: dict[str, Kind] = {
    "classification": _Classification(),
    "detection": _Detection(),
    "pose": _Pose(),
}
