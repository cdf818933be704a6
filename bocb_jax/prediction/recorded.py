"""The net of a run folder with its best weights, and the settings that its record gives it."""

import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import jax.numpy as jnp
from flax import nnx
from pydantic import Field

from bocb_jax import torch_weights
from bocb_jax.checked import Count, Share, Text, settings
from bocb_jax.config import from_dict
from bocb_jax.data.dataset import IMAGENET_MEAN, IMAGENET_STD
from bocb_jax.engine.checkpoint import read_best
from bocb_jax.engine.inference import Forward, forward_of, whole_weights
from bocb_jax.engine.state import Params
from bocb_jax.errors import UserError
from bocb_jax.models.factory import ModelEntry
from bocb_jax.models.recorded import recorded_builder
from bocb_jax.pose.skeleton import Skeleton
from bocb_jax.run_files import read_data
from bocb_jax.tasks.net import Net

Side = Annotated[int, Field(ge=1, le=4096)]  # pixels


@settings("resolved")
class ImageSettings:
    """What the record of a run says of the images and the classes of its net."""

    num_classes: Count
    image_size: Side
    test_size: Side | None = None  # None: as in training
    crop_ratio: Annotated[Share, Field(ge=0.1)] = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    loss: Text = "cross_entropy"


@dataclasses.dataclass(frozen=True)
class Record:
    """The record of a run, as far as it is needed here.

    Attributes:
      folder: of the run.
      entry: its backbone.
      config: "config" of its `config.json`.
      resolved: "resolved" of it.
      data: the content of `dataset.json`, or what stands in for it.
    """

    folder: Path
    entry: ModelEntry
    config: Mapping[str, Any]
    resolved: Mapping[str, Any]
    data: Mapping[str, Any]

    @property
    def task(self) -> str:
        """What the run is for."""
        return self.config.get("task", "classification")

    @functools.cached_property
    def images(self) -> ImageSettings:
        """Sizes and classes, checked."""
        return self.checked(ImageSettings, self.resolved)

    def checked(self, kind: type, given: Mapping[str, Any]) -> Any:
        """Return settings of a class, of which the record may hold more.

        Raises:
          UserError: one is missing, or not what the class declares.
        """
        fields = [field.name for field in dataclasses.fields(kind)]
        try:
            return from_dict(kind, {name: given[name] for name in fields if name in given})
        except UserError as error:
            raise UserError(f"{self.folder / 'config.json'}: {error}") from error

    @property
    def transfer(self) -> Mapping[str, Any]:
        """What is recorded of the net around the backbone; empty for a backbone alone."""
        found = self.resolved.get("transfer")
        return found if isinstance(found, dict) else {}

    @property
    def mean(self) -> tuple[float, ...]:
        """Of each channel, with pixels scaled to 0 ... 1."""
        return tuple(self.data["mean"])

    @property
    def std(self) -> tuple[float, ...]:
        """Likewise."""
        return tuple(self.data["std"])

    @property
    def names(self) -> list[str]:
        """A name for each class; its number where none is known."""
        known, count = self.data["class_names"], self.images.num_classes
        return known if known and len(known) == count else [str(i) for i in range(count)]

    def skeleton(self) -> Skeleton:
        """Return the joints.

        Raises:
          UserError: none are recorded, or they do not fit together.
        """
        found = self.data["skeleton"]
        if found is None:
            raise UserError(f"{self.folder} does not say which joints its net finds.")
        pairs, limbs = ([(a, b) for a, b in found[name]] for name in ("pairs", "limbs"))
        return Skeleton(
            tuple(found["names"]), tuple(pairs), tuple(found["sigmas"]), limbs=tuple(limbs)
        )

    def load(self, net: Net | None = None) -> tuple[nnx.Module, Params, Forward]:
        """Return the net of shapes only, its best weights, and its function.

        Args:
          net: what is around the backbone.

        Raises:
          UserError: there are no weights, or the net that is recorded is not theirs.
        """
        weights, images = read_best(self.folder), self.images
        dtype = jnp.dtype(images.precision)
        build = recorded_builder(
            self.entry,
            self.config.get("model_args") or {},
            num_classes=images.num_classes,
            image_size=self.transfer.get("backbone_size", images.image_size),
            shapes={name: array.shape for name, array in weights.items()},
            dtype=dtype,
            around=None if net is None else functools.partial(net.around, dtype=dtype),
        )
        model = nnx.eval_shape(lambda: build(rngs=nnx.Rngs(0)))
        torch_weights.load_weights(model, weights)
        return model, whole_weights(model), forward_of(model)


def read_record(folder: Path, stored: Mapping[str, Any], entry: ModelEntry) -> Record:
    """Return the record of a run, whether or not it describes its data.

    Args:
      folder: of the run.
      stored: the content of its `config.json`.
      entry: its backbone.

    Raises:
      UserError: the description of the data cannot be read.
    """
    data = read_data(folder) or unknown_data()
    return Record(folder, entry, stored["config"], stored.get("resolved") or {}, data)


def unknown_data() -> dict[str, Any]:
    """Return what stands in for `dataset.json` of imported weights: ImageNet's normalization."""
    return {
        "mean": list(IMAGENET_MEAN),
        "std": list(IMAGENET_STD),
        "class_names": None,
        "image_shape": None,
        "skeleton": None,
    }
