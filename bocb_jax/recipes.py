"""Training settings as data: what a run uses where its config says nothing.

Standard library only.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Recipe:
    """The settings that go with a data set; those of the optimizer are in its own row."""

    epochs: int
    batch_size: int
    image_size: int
    warmup_epochs: float
    label_smoothing: float = 0.0


_RECIPES = {
    "digits": Recipe(epochs=20, batch_size=64, image_size=32, warmup_epochs=2),
    "cifar10": Recipe(epochs=200, batch_size=100, image_size=32, warmup_epochs=5),
    "cifar100": Recipe(epochs=200, batch_size=100, image_size=32, warmup_epochs=5),
    "imagenet2012": Recipe(
        epochs=300, batch_size=1024, image_size=224, warmup_epochs=5, label_smoothing=0.1
    ),
}


def recipe_for(dataset: str, image_side: int | None) -> Recipe:
    """The recipe of a data set.

    Args:
      dataset: its name.
      image_side: side of its images where they are all alike, else None. A data set that is not
        in the table is trained as CIFAR is up to 64 pixels, and as ImageNet above that.
    """
    known = _RECIPES.get(dataset.removeprefix("tfds:"))
    if known:
        return known
    if image_side is not None and image_side <= 64:
        return dataclasses.replace(_RECIPES["cifar10"], image_size=max(32, image_side))
    return _RECIPES["imagenet2012"]
