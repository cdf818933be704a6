"""The registry of backbones: names, model cards, and how a name becomes a model."""

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from bocb_jax.compiler_options import init_compiler_options
from bocb_jax.errors import UserError
from bocb_jax.models import own, platform
from bocb_jax.models.own import Builder
from bocb_jax.paper import taxonomy
from bocb_jax.registry import Registry

MINI_SIZE = 32  # NAME_mini, the small twin of every backbone of the paper, takes 32x32 images

# (table, wanted shape) -> the table in that shape, or None where that is not possible
Resize = Callable[[np.ndarray, tuple[int, ...]], np.ndarray | None]


@dataclasses.dataclass(frozen=True)
class ModelCard:
    """What is known of a backbone before it is built; `bocb models NAME` prints it.

    Families write the first block of fields. `register_family` fills in the second one from the
    paper's Table A1, which `bocb_jax.paper` owns.
    """

    paper: str = ""  # authors, title, venue, arXiv number
    reference: str = ""  # implementation whose outputs this one reproduces, "timm resnet50"
    num_params: int | None = None  # exact count of the reference at 1000 classes
    top1: float | None = None  # published ImageNet-1k top-1 accuracy in percent at 224 pixels
    top1_source: str = ""
    # Stochastic depth rate that this size was published with; None: the recipe's rate. The second
    # is the rate of BOCB on CIFAR-100 where it differs.
    drop_path: float | None = None
    cifar_drop_path: float | None = None

    category: str = ""  # primary CNN | classical CNN | modern DNN
    stage_design: str = ""
    block_design: str = ""
    operator: str = ""
    residual: str = ""
    recipe: str = ""  # on CIFAR-100
    input_size: int = 224  # in pixels on CIFAR-100

    @property
    def parameters(self) -> int | None:
        """The former name of `num_params`."""
        return self.num_params


@dataclasses.dataclass(frozen=True)
class Variant:
    """One row of a family's table.

    Args:
      config: fields of the family's config that differ from its defaults.
      card: fields of the family's card that differ.
      aliases: other names of the same model.
      bocb: config fields that `variant="bocb"` changes, where the code released by the authors of
        BOCB differs from the official model.
    """

    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    card: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    aliases: tuple[str, ...] = ()
    bocb: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelEntry:
    """One row of the registry."""

    name: str
    build: Builder
    card: ModelCard = ModelCard()
    image_size: int = 224  # side in pixels that it was designed for
    overrides: tuple[str, ...] = ()  # keyword arguments of `build` beyond the common ones
    own: bool = False  # of the user's; what it is and returns is checked
    has_position_tables: bool = False  # whose size is that of the images it is built for


def _entry(name: str, found: object) -> ModelEntry:
    """Return the entry of whatever an entry point, an import path or a decorator delivers."""
    if isinstance(found, ModelEntry):
        return dataclasses.replace(found, name=name)
    if not callable(found):
        raise UserError(
            f"The model '{name}' is {found!r}; it must be a class or a function that returns one."
        )
    card = ModelCard(paper=(inspect.getdoc(found) or "").partition("\n")[0])
    overrides = tuple(own.parameters_of(found))
    return ModelEntry(name, own.builder(name, found), card, overrides=overrides, own=True)


MODELS: Registry[ModelEntry] = Registry(
    "model", package="bocb_jax.models", entry_points="bocb_jax.models", adapt=_entry
)


def register_model(builder: Builder | None = None, *, name: str | None = None) -> Callable:
    """Register your own backbone, by default under the name of its function or class.

    Use it as `@register_model` or `@register_model(name=...)`.

    Args:
      builder: takes the keywords `num_classes` and `rngs`, and `image_size` and `dtype` if it
        declares them; returns an `nnx.Module` from images (batch, height, width, 3) to logits
        (batch, num_classes).
      name: registered name.

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
    entry = _entry(name or builder.__name__, builder)
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
    position_tables: Mapping[str, Resize] | None = None,
    pyramid_input: str = "map",
) -> None:
    """Register all published variants of a family.

    Args:
      module: called as `module(config, num_classes=, image_size=, dtype=, rngs=)`.
      config: frozen dataclass of the architecture; its defaults are the paper's.
      card: fields that all variants share.
      variants: name -> what differs.
      torch_names: (regular expression, replacement) pairs, applied in order, that turn a dotted
        path of ours, such as "blocks.0.attn.qkv.weight", into the reference's where the two
        differ; `bocb_jax.torch_weights` reads them from the class.
      torch_sources: origin of those names: "timm", "torchvision", or "official" for the authors'
        own repository.
      position_tables: parameters whose shape depends on the image size: last part of the name ->
        how a table for another size is resized.
      pyramid_input: what a feature pyramid takes of a map of `features`: "map", as it is; "norm",
        after a LayerNorm of its own, where a stage ends with a sum of branches that nothing has
        normalized; "pool", after the 2x2 max-pool that ends the stage.
    """
    module.pyramid_input = pyramid_input  # type: ignore[attr-defined]  # class attributes of ours
    module.torch_names = tuple(torch_names)  # type: ignore[attr-defined]
    module.torch_sources = tuple(torch_sources)  # type: ignore[attr-defined]
    module.position_tables = dict(position_tables or {})  # type: ignore[attr-defined]
    for name, variant in variants.items():
        image_size = MINI_SIZE if name.endswith("_mini") else 224
        entry = ModelEntry(
            name,
            _variant_builder(name, module, config(**variant.config), variant.bocb),
            dataclasses.replace(card, **(_taxonomy(name, image_size) | dict(variant.card))),
            image_size=image_size,
            overrides=tuple(field.name for field in dataclasses.fields(config)),
            has_position_tables=bool(position_tables),
        )
        MODELS.register(name, entry, aliases=variant.aliases)


def _taxonomy(name: str, image_size: int) -> dict[str, Any]:
    """Return the fields of a card that the paper decides; empty for a family that it lacks."""
    known = taxonomy.find(name)
    if known is None:
        return {}
    return {
        "category": known.category,
        "stage_design": known.stage_design,
        "block_design": known.block_design,
        "operator": known.operator,
        "residual": known.residual_branch,
        "recipe": known.recipe,
        "input_size": min(known.input_size, image_size),
    }


_CARD_FIELDS = ("drop_path", "cifar_drop_path")


def sizes_of(reference: str, top1_source: str = "", **shared: Any) -> Callable[..., Variant]:
    """Return a function that writes one row of a family's table.

    The function takes the reference's name of the size, its exact parameter count at 1000 classes
    and its top-1 accuracy or None; as keywords `aliases`, the config fields that differ, and the
    card's `drop_path` and `cifar_drop_path`.

    Args:
      reference: library or repository of the reference, such as "timm".
      top1_source: where the accuracies are published.
      **shared: fields of `Variant` that all sizes share, such as `bocb`.
    """

    def size(
        name: str,
        num_params: int | None,
        top1: float | None = None,
        *,
        aliases: tuple[str, ...] = (),
        **config: Any,
    ) -> Variant:
        card = {key: config.pop(key) for key in _CARD_FIELDS if key in config}
        card |= {"reference": f"{reference} {name}", "num_params": num_params, "top1": top1}
        card["top1_source"] = top1_source if top1 else ""
        return Variant(config, card, aliases, **shared)

    return size


def check_lengths(config: Any, *names: str) -> None:
    """Raise UserError unless these fields of a config have one entry per stage."""
    lengths = {name: len(getattr(config, name)) for name in names}
    if len(set(lengths.values())) > 1 or not all(lengths.values()):
        listed = " and ".join(f"{name} has {length}" for name, length in lengths.items())
        raise UserError(f"{listed} entries; there must be one for every stage.")


_RATES = ("drop_path", "dropout", "attention_dropout")
_MAY_BE_ZERO = (
    *_RATES, "depth", "depths", "taps", "layer_scale", "stem_padding", "scaled_shortcuts", "stem",
    "gate_activations",
)  # fmt: skip


def _checked(name: str, config: type, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Return overrides in the types that a config class declares, lists as tuples.

    Raises:
      UserError: no such field, a value of another type, or a number out of range.
    """
    fields = {field.name: field.type for field in dataclasses.fields(config)}
    unknown = sorted(set(overrides) - set(fields))
    if unknown:
        raise UserError(
            f"{name} has no setting {', '.join(unknown)}. It has: {', '.join(fields)}, variant."
        )
    checked = {key: _tuples(value) for key, value in overrides.items()}
    for key, value in checked.items():
        if not _matches(value, fields[key]):
            kind = getattr(fields[key], "__name__", None) if type(fields[key]) is type else None
            raise UserError(f"The setting {key} of {name} is {value!r}, not {kind or fields[key]}.")
        if key in _RATES and not 0 <= value <= 1:
            raise UserError(f"The setting {key} of {name} is {value}; it must be in [0, 1].")
        if any(
            number < 0 or (not number and key not in _MAY_BE_ZERO) for number in _numbers(value)
        ):
            raise UserError(f"The setting {key} of {name} is {value}; it must be positive.")
    return checked


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


def _numbers(value: Any) -> list[float]:
    if isinstance(value, tuple):
        return [number for part in value for number in _numbers(part)]
    return [value] if isinstance(value, int | float) and not isinstance(value, bool) else []


def _matches(value: Any, annotation: Any) -> bool:
    """Return whether a value has the type that a config field is annotated with."""
    parts = typing.get_args(annotation)
    if isinstance(annotation, types.UnionType):
        return any(_matches(value, part) for part in parts)
    if typing.get_origin(annotation) is tuple:
        if not isinstance(value, tuple):
            return False
        parts = parts[:1] * len(value) if parts[-1] is Ellipsis else parts
        return len(parts) == len(value) and all(map(_matches, value, parts))
    if isinstance(value, bool):  # a subclass of int
        return annotation is bool
    return isinstance(value, int | float if annotation is float else annotation)


def _variant_builder(
    name: str, module: type[nnx.Module], base: Any, bocb: Mapping[str, Any]
) -> Builder:
    def build(
        *,
        num_classes: int,
        image_size: int,
        rngs: nnx.Rngs,
        dtype: Any = None,
        variant: str = "official",
        **overrides: Any,
    ) -> nnx.Module:
        if variant not in ("official", "bocb"):
            raise UserError(f"{name} has the variants 'official' and 'bocb', not '{variant}'.")
        changes = dict(bocb) if variant == "bocb" else {}
        config = dataclasses.replace(base, **changes | _checked(name, type(base), overrides))
        return module(
            config,  # type: ignore[call-arg]  # the constructor of a family, not nnx.Module's
            num_classes=num_classes,
            image_size=image_size,
            dtype=dtype,
            rngs=rngs,
        )

    return build


def create_model(
    name: str,
    *,
    num_classes: int = 1000,
    image_size: int = 224,
    rngs: nnx.Rngs,
    dtype: Any = None,
    **overrides: Any,
) -> nnx.Module:
    """Build a backbone by name, with the initial weights that a run of the same key starts from.

    Args:
      name: a listed name, an alias, or an import path such as "mypkg.nets:MyNet".
      num_classes: width of the logits.
      image_size: side in pixels of the square input images.
      rngs: random streams; `params` draws the initial weights.
      dtype: type of the computation; parameters are float32.
      **overrides: fields of the family's config, such as `drop_path=0.1`, and `variant="bocb"`.

    Returns:
      A module from images (batch, height, width, 3) to logits (batch, num_classes); its
      `features(x)` returns the list of stage maps.

    Raises:
      UnknownName: no such model; the message lists near matches.
      UserError: no such override, a value that does not fit, or `rngs` of another kind.
    """
    for what, value in (("num_classes", num_classes), ("image_size", image_size)):
        if not isinstance(value, int) or value < 1:
            raise UserError(f"{what} is {value}; it must be a whole number of at least 1.")
    if not isinstance(rngs, nnx.Rngs) or not hasattr(rngs, "params"):
        raise UserError(
            f"rngs is a {type(rngs).__name__}; it must draw params, as nnx.Rngs(0) does."
        )
    build = MODELS.resolve(name).build
    arguments = {"num_classes": num_classes, "image_size": image_size, "dtype": dtype, **overrides}
    streams, counts = nnx.split(rngs)
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(counts)):
        return build(**arguments, rngs=rngs)
    try:
        draw = _draw_at_once(build, **arguments)
    except TypeError:  # an argument that has no hash, of a model of the user's
        return build(**arguments, rngs=rngs)
    model, counts = draw(streams, counts)
    nnx.update(rngs, counts)
    return nnx.merge(*model)


@functools.lru_cache(maxsize=64, typed=True)  # typed: True is not 1
def _draw_at_once(build: Builder, **arguments: Any) -> Callable[..., Any]:
    """Return a function of split `nnx.Rngs`: a split model, and the state of the streams after it.

    It is one program, since one a tensor would take several times as long to compile.
    """

    @functools.partial(
        jax.jit,
        static_argnums=0,
        compiler_options=init_compiler_options(platform.target()),
    )
    def draw(streams: nnx.GraphDef, counts: nnx.State) -> tuple[Any, nnx.State]:
        rngs = nnx.merge(streams, counts)
        model = nnx.split(build(**arguments, rngs=rngs))
        return model, nnx.state(rngs)

    return draw


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names of the backbones that match a shell pattern such as "conv*"."""
    return MODELS.names(pattern)


def model_card(name: str) -> ModelCard:
    """Return what is known of a backbone, without building it."""
    return MODELS.resolve(name).card
