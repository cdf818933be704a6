"""From a name to a backbone: the table of models, what is known of each, and how it is built."""

import dataclasses
import inspect
import types
import typing
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
    # Rate of stochastic depth that this size was published with; None: the recipe's. The second one
    # is BOCB's on CIFAR-100, where that differs.
    drop_path: float | None = None
    cifar_drop_path: float | None = None


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
        keeps them for `bocb_jax.torch_weights`.
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


def published(reference: str, source: str = "", **shared) -> Callable[..., Variant]:
    """A function that writes one line of a family's table.

    It takes the reference's name of the size, its exact count of parameters at 1000 classes, and
    its top-1 or None; then as keywords the fields of the config that differ, and of the card
    `drop_path` and the like.

    Args:
      reference: what stands before that name in the card, such as "timm".
      source: where the top-1 is published.
      **shared: fields of `Variant` that all sizes share, such as `bocb`.
    """
    of_card = ("drop_path", "cifar_drop_path", "operator")

    def size(name, parameters, top1=None, *, aliases=(), **config):
        card = {key: config.pop(key) for key in of_card if key in config}
        card |= {"reference": f"{reference} {name}", "parameters": parameters, "top1": top1}
        card["top1_source"] = source if top1 else ""
        return Variant(config, card, aliases, **shared)

    return size


def same_length(config: Any, *names: str) -> None:
    """Raises UserError unless these fields of a config have one entry a stage each."""
    lengths = {name: len(getattr(config, name)) for name in names}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        listed = " and ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{listed} entries; there must be one for every stage.")


_RATES = ("drop_path", "dropout", "attention_dropout")
_MAY_BE_ZERO = (
    *_RATES, "depth", "depths", "taps", "layer_scale", "stem_padding", "scaled_shortcuts", "stem",
    "gate_activations",
)  # fmt: skip


def _checked(name: str, config: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings as a config class wants them: lists as tuples, and each of its type."""
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    unknown = sorted(set(settings) - set(fields))
    if unknown:
        raise UserError(
            f"{name} has no setting {', '.join(unknown)}. It has: {', '.join(fields)}, variant."
        )
    checked = {key: _tuples(value) for key, value in settings.items()}
    for key, value in checked.items():
        if not _is_a(value, fields[key]):
            kind = getattr(fields[key], "__name__", None) if type(fields[key]) is type else None
            raise UserError(f"The setting {key} of {name} is {value!r}, not {kind or fields[key]}.")
        if key in _RATES and not 0 <= value <= 1:
            raise UserError(f"The setting {key} of {name} is {value}; it must be in [0, 1].")
        if any(
            number < 0 or (not number and key not in _MAY_BE_ZERO) for number in _numbers(value)
        ):
            raise UserError(f"The setting {key} of {name} is {value}; it must be positive.")
    return checked


def _tuples(value):
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _numbers(value):
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _is_a(value: Any, kind: Any) -> bool:
    """Whether a value fits an annotation of a config's field."""
    parts = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return any(_is_a(value, part) for part in parts)
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(parts) == len(value) and all(map(_is_a, value, parts))
    if isinstance(value, bool):  # which Python counts among the integers
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _variant_builder(name, module, base, bocb):
    def build(*, num_classes, image_size, rngs, dtype=None, variant="official", **overrides):
        if variant not in ("official", "bocb"):
            raise UserError(f"{name} has the variants 'official' and 'bocb', not '{variant}'.")
        overrides = _checked(name, type(base), overrides)
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
      UserError: no such setting, or one that does not fit the others.
    """
    for what, value in (("num_classes", num_classes), ("image_size", image_size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{what} is {value}; it must be a whole number from 1 on.")
    return MODELS.get(name).build(
        num_classes=num_classes, image_size=image_size, rngs=rngs, dtype=dtype, **overrides
    )


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names of the backbones that match a shell pattern such as "conv*"."""
    return MODELS.names(pattern)


def model_card(name: str) -> ModelCard:
    """What is known of a backbone without building it."""
    return MODELS.get(name).card
