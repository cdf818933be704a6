"""What the record of a run says of the net around its backbone."""

from typing import Annotated, Literal

from pydantic import Field

from bocb_jax.checked import Pixels, settings
from bocb_jax.data.boxed import Resize, Shape, padded_shapes
from bocb_jax.detection.rules import STYLES
from bocb_jax.errors import UserError
from bocb_jax.models import retinanet
from bocb_jax.prediction.recorded import Record, Side
from bocb_jax.tasks.detection import Detector
from bocb_jax.tasks.net import Net
from bocb_jax.tasks.pose import HeatmapNet

_Width = Annotated[int, Field(ge=1, le=16_384)]


@settings("resolved.transfer")
class BoxSettings:
    """What the record of a detector says of it."""

    style: Literal["mmdet", "torchvision", "torchvision_v2"]
    width: _Width
    short: tuple[Side, Side]
    long: Side
    shapes: Annotated[int, Field(ge=1, le=64)]
    finest_stride: Pixels | None = None


@settings("resolved.transfer")
class JointSettings:
    """What the record of a pose net says of it."""

    width: _Width
    input_size: tuple[Side, Side]
    sigma: Annotated[int, Field(ge=1, le=1000)]


@settings("config.transfer")
class EvaluationSettings:
    """How the run of a pose net evaluates."""

    flip_test: bool = True
    soft_nms: bool = False


def box_settings(record: Record) -> BoxSettings:
    """Return the settings of a detector, checked."""
    return record.checked(BoxSettings, record.transfer)


def resize_of(given: BoxSettings) -> Resize:
    """Return how a detector's images are resized."""
    return Resize(given.long, given.short)


def shapes_of(given: BoxSettings) -> tuple[Shape, ...]:
    """Return the padded shapes that a detector's images are put into."""
    return padded_shapes(resize_of(given), given.shapes)


def evaluation_settings(record: Record) -> EvaluationSettings:
    """Return how the run of a pose net evaluates, checked."""
    found = record.config.get("transfer")
    return record.checked(EvaluationSettings, found if isinstance(found, dict) else {})


def detector(record: Record) -> Detector:
    """Return the net of a detector; nothing in it is frozen, which predictions do not ask for.

    Raises:
      UserError: the record does not describe one.
    """
    given = box_settings(record)
    config = retinanet.style_of(
        given.style,
        channels=given.width,
        finest_stride=given.finest_stride,
        frozen_stages=0,
        batch_norm="nothing",
    )
    return Detector(config, STYLES[given.style], record.images.num_classes, shapes_of(given)[-1])


def pose_net(record: Record) -> HeatmapNet:
    """Return the net of a pose run.

    Raises:
      UserError: the record does not describe one.
    """
    given: JointSettings = record.checked(JointSettings, record.transfer)
    flip_test = evaluation_settings(record).flip_test
    return HeatmapNet(record.skeleton(), given.input_size, given.sigma, given.width, flip_test)


def net_of(record: Record) -> Net | None:
    """Return the net around the backbone of a run; None for a classifier.

    Raises:
      UserError: the record does not describe it.
    """
    if record.task == "classification":
        return None
    if record.task == "detection":
        return detector(record)
    if record.task == "pose":
        return pose_net(record)
    raise UserError(f"{record.folder} is a run of {record.task[:60]!r}, which nothing here knows.")
