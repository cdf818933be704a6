"""What detection and pose estimation put around a backbone, as it is compiled into a program."""

import abc
from typing import Any

import jax.numpy as jnp
from flax import nnx

from bocb_jax.engine.passes import Preprocessing
from bocb_jax.engine.task import Task


class Net(abc.ABC):
    """A net around a backbone. Subclasses are frozen dataclasses: equal ones share a program."""

    @abc.abstractmethod
    def around(self, backbone: nnx.Module, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Module:
        """Return the net; the backbone becomes its attribute `backbone`, without a classifier."""

    @abc.abstractmethod
    def preprocessing(self, mean: tuple[float, ...], std: tuple[float, ...]) -> Preprocessing:
        """Return what happens to a batch before the net sees it.

        Args:
          mean: of each channel, with pixels scaled to 0 ... 1.
          std: likewise.
        """

    def other_name(self, name: str) -> str:
        """Return the name of a parameter in another library's weights of the whole net."""
        return name

    @abc.abstractmethod
    def task(self, model: Any) -> Task:
        """Return what the net is trained for.

        Args:
          model: the net; one of shapes only will do.
        """
