"""From a name to a backbone: the table of models, what is known of each, and how it is built."""

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from flax import nnx

from bocb_jax.errors import UserError
from bocb_jax.registry import Registry

MINI_SIZE = 32  # every backbone of the paper has a small twin, NAME_mini, made for 32x32


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a backbone before it is built; `bocb models NAME` prints it."""

    paper: str = ""  # authors, title, venue, arXiv number
    reference: str = ""  # the implementation that the numbers equal, such as "timm resnet50"
    parameters: int | None = None  # the reference's exact count at 1000 classes
    top1: float | None = None  # published ImageNet-1k top-1 in percent at 224
    top1_source: str = ""
    category: str = ""  # primary CNN | classical CNN | modern DNN (BOCB, Table A1)
    stage_design: str = ""  # plain | hierarchical | isotropic, patchify or not
    block_design: str = ""
    operator: str = ""
    residual: str = ""
    recipe: str = ""  # the recipe that BOCB gives it on CIFAR-100
    input_size: int = 224  # the input size that BOCB gives it on CIFAR-100


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of a family's table.

    Args:
      config: fields of the family's config that differ from its defaults.
      card: fields of the family's card that differ.
      aliases: other names of the same net.
      bocb: config fields that `variant="bocb"` changes, where the code released by the authors of
        BOCB differs from the official net.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    bocb: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One row of the table of models."""

    name: str
    build: Callable[..., nnx.Module]  # (*, num_classes, image_size, rngs, dtype, **overrides)
    card: ModelCard = ModelCard()
    image_size: int = 224  # side in pixels that it was made for
    settings: tuple[str, ...] = ()  # what `build` takes beside the above


def _adapt(name: str, found: object) -> ModelEntry:
    if isinstance(found, ModelEntry):
        return dataclasses.replace(found, name=name)
    if not callable(found):
        raise UserError(f"The model '{name}' is {found!r}, which is no class or function.")
    card = ModelCard(paper=(inspect.getdoc(found) or "").partition("\n")[0])
    constructor = found.__init__ if inspect.isclass(found) else found
    settings = tuple(inspect.signature(constructor).parameters)
    return ModelEntry(name, _accepting(found), card, settings=settings)


MODELS: Registry[ModelEntry] = Registry(
    "model", package="bocb_jax.models", entry_points="bocb_jax.models", adapt=_adapt
)


def _accepting(builder: Callable[..., nnx.Module]) -> Callable[..., nnx.Module]:
    """Leaves out `image_size` and `dtype` for a user's builder that has no use for them."""
    # The signature of an NNX class is that of its metaclass, which takes anything.
    constructor = builder.__init__ if inspect.isclass(builder) else builder
    parameters = inspect.signature(constructor).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())

    def build(**arguments):
        for optional in ("image_size", "dtype"):
            if not takes_any and optional not in parameters:
                arguments.pop(optional)
        return builder(**arguments)

    return build


def register_model(builder: Callable[..., nnx.Module] | None = None, *, name: str | None = None):
    """Registers one's own backbone under its function's or class's name.

    The builder takes `num_classes` and `rngs` as keywords, and `image_size` and `dtype` if it
    wants them, and returns an `nnx.Module` from (batch, height, width, 3) images to
    (batch, num_classes) logits.

    >>> from flax import nnx
    >>> import bocb_jax
    >>> @bocb_jax.register_model
    ... class linear_probe(nnx.Module):
    ...     def __init__(self, *, num_classes, image_size, rngs):
    ...         self.head = nnx.Linear(image_size**2 * 3, num_classes, rngs=rngs)
    ...     def __call__(self, x):
    ...         return self.head(x.reshape(len(x), -1))
    >>> "linear_probe" in bocb_jax.list_models("linear*")
    True
    """
    if builder is None:
        return lambda builder: register_model(builder, name=name)
    entry = _adapt(name or builder.__name__, builder)
    MODELS.register(entry.name, entry)
    return builder


def register_family(
    module: type[nnx.Module],
    config: type,
    card: ModelCard,
    variants: Mapping[str, Variant],
    *,
    torch_names: Sequence[tuple[str, str]] = (),
    torch_sources: Sequence[str] = ("timm",),
) -> None:
    """Registers every published variant of one family.

    Args:
      module: called as `module(config, num_classes=, image_size=, dtype=, rngs=)`.
      config: frozen dataclass of architecture settings; its defaults are the paper's.
      card: what all variants share.
      variants: name -> what differs.
      torch_names: (regular expression, replacement) pairs that turn a dotted path of ours, such as
        "blocks.0.attn.qkv.weight", into the reference's where the two differ; the module's class
        keeps them for `bocb_jax.interop`.
      torch_sources: whose names those are: "timm", "torchvision", or "official" for the authors'
        own repository.
    """
    module.torch_names = tuple(torch_names)
    module.torch_sources = tuple(torch_sources)
    for name, variant in variants.items():
        base = config(**variant.config)
        entry = ModelEntry(
            name,
            _variant_builder(name, module, base, variant.bocb),
            dataclasses.replace(card, **variant.card),
            image_size=MINI_SIZE if name.endswith("_mini") else 224,
            settings=tuple(field.name for field in dataclasses.fields(config)),
        )
        MODELS.register(name, entry, aliases=variant.aliases)


def _variant_builder(name, module, base, bocb):
    fields = [field.name for field in dataclasses.fields(base)]

    def build(*, num_classes, image_size, rngs, dtype=None, variant="official", **overrides):
        if variant not in ("official", "bocb"):
            raise UserError(f"{name} has the variants 'official' and 'bocb', not '{variant}'.")
        unknown = sorted(set(overrides) - set(fields))
        if unknown:
            raise UserError(
                f"{name} has no setting {', '.join(unknown)}. It has: {', '.join(fields)}, variant."
            )
        config = dataclasses.replace(base, **({**bocb} if variant == "bocb" else {}) | overrides)
        return module(
            config, num_classes=num_classes, image_size=image_size, dtype=dtype, rngs=rngs
        )

    return build


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int = 224,
    rngs: nnx.Rngs,
    dtype: Any = None,
    **overrides,
) -> nnx.Module:
    """Builds a backbone by name.

    Args:
      name: a listed name, an alias, or an import path such as "mypkg.nets:MyNet".
      num_classes: width of the logits.
      image_size: side in pixels of the square images that it will see.
      rngs: where the initial weights come from.
      dtype: type of the computation; parameters stay float32.
      **overrides: fields of the family's config, such as `drop_path=0.1`, and `variant="bocb"`.

    Returns:
      A module from images (batch, height, width, 3) to logits (batch, num_classes), with
      `features(x)` for the list of stage maps.

    Raises:
      UnknownName: no such model; the message lists near matches.
      UserError: no such setting; the message lists those that exist.
    """
    return MODELS.get(name).build(
        num_classes=num_classes, image_size=image_size, rngs=rngs, dtype=dtype, **overrides
    )


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of the backbones that match a shell pattern such as "conv*"."""
    return MODELS.names(pattern)


def model_card(name: str) -> ModelCard:
    """What is known of a backbone without building it."""
    return MODELS.get(name).card
