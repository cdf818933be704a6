"""Data sets by name: the registry, and how a name is opened."""

from collections.abc import Callable

from bocb_jax.data.dataset import Dataset, OpenOptions
from bocb_jax.data.image_folder import open_folder
from bocb_jax.data.tfds import open_tfds
from bocb_jax.registry import Registry

Opener = Callable[[OpenOptions], Dataset]

DATASETS: Registry[Opener] = Registry(
    "dataset", package="bocb_jax.data", entry_points="bocb_jax.datasets"
)
# Names of the form SCHEME:REST that are no import paths.
SCHEMES: dict[str, Callable[[str, OpenOptions], Dataset]] = {
    "folder": open_folder,
    "tfds": open_tfds,
}


def register_dataset(name: str) -> Callable[[Opener], Opener]:
    """Return a decorator that registers the function which opens a data set of your own.

    >>> import numpy as np
    >>> from bocb_jax.data import from_arrays
    >>> @register_dataset("stripes")
    ... def stripes(options):
    ...     images = np.tile(np.uint8([0, 255]), (100, 8, 4))
    ...     labels = np.arange(100) % 2
    ...     return from_arrays("stripes", images, labels, split_seed=options.split_seed)
    >>> open_dataset("stripes").num_classes
    2
    """
    return lambda opener: DATASETS.register(name, opener)


def open_dataset(
    name: str,
    *,
    split_seed: int = 0,
    data_dir: str | None = None,
    on_corrupt: str = "fail",
    download: bool = True,
) -> Dataset:
    """Open a data set by name.

    Args:
      name: a registered name ("digits"), "folder:PATH", "tfds:NAME", or the import path of an
        opener ("mypackage.data:open_mine").
      split_seed: decides which examples are held out where there is no official validation split.
      data_dir: directory of the data sets on this machine; None for each reader's own default.
      on_corrupt: "fail" stops at an unreadable image, "skip" takes the next readable one.
      download: whether a data set that is missing may be downloaded.

    Raises:
      UnknownName: no data set has this name; the message lists near matches.
      DatasetMissing: it is not on this machine and must not be downloaded.
      UserError: it cannot be used; the message says why.
    """
    options = OpenOptions(split_seed, data_dir, on_corrupt, download)
    scheme, _, rest = name.partition(":")
    if ":" in name and scheme in SCHEMES:
        return SCHEMES[scheme](rest, options)
    return DATASETS.resolve(name)(options)
