"""The table of optimizers: a row for each, and how one is made by name.

An optimizer is a builder: a function of a `Packaging` (learning rate, weight decay, masks) and of
its own hyper-parameters, which are keyword-only and typed by `ranges`. `add_row` registers it; the
files beside this one each hold one optimizer or one close family.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from bocb_jax.errors import UserError
from bocb_jax.optim import masks
from bocb_jax.optim.bounds import Setting, check_settings, settings_of
from bocb_jax.optim.context import DECAYS, Packaging
from bocb_jax.optim.injected import OptimizerState, with_hyperparameters
from bocb_jax.optim.schedules import Scaled, Schedule, as_schedule, check_positive
from bocb_jax.registry import Registry

CATEGORIES = {
    "a": "fixed learning rate, momentum gradient",
    "b": "adaptive learning rate, momentum gradient",
    "c": "estimated learning rate, momentum gradient",
    "d": "adaptive learning rate, current gradient",
    "later": "after the paper",
    "user": "your own",
}


@dataclasses.dataclass(frozen=True)
class OptimizerInfo:
    """One row of the table of optimizers."""

    name: str
    build: Callable[..., optax.GradientTransformation]  # (packaging, **hyper-parameters)
    category: str = "user"  # a key of CATEGORIES; a to d are BOCB's
    paper: str = ""  # authors, year, arXiv number
    summary: str = ""
    decays: tuple[str, ...] = DECAYS  # kinds of weight decay; the first is the default
    default_learning_rate: float = 1e-3
    default_weight_decay: float = 0.0
    default_schedule: str = "cosine"  # after the warm-up; or "constant"
    paper_learning_rate: tuple[float, ...] = ()  # most frequent tuned values in BOCB (Table A4)
    paper_weight_decay: tuple[float, ...] = ()  # and those of weight decay (Table A5)
    reference: str = ""  # the implementation that the numbers are compared with
    numeric_class: str = ""  # exact (1e-9) | eps-level (1e-6) | variant
    state_per_parameter: float = 0.0  # numbers kept for each parameter
    cost: str = "element-wise"  # of an update, beside the gradient
    hooks: tuple[str, ...] = ()  # extra arguments of `update` that it cannot do without
    evaluation_parameters: Callable[[OptimizerState, Any], Any] | None = None
    cautious: bool = False  # is the direction masked by its agreement with the gradient?
    notes: str = ""

    @property
    def settings(self) -> dict[str, Setting]:
        """Its own hyper-parameters."""
        return settings_of(self.build)

    @property
    def search_center(self) -> tuple[float, float]:
        """The learning rate and weight decay that a search starts from."""
        return self.default_learning_rate, self.default_weight_decay

    @property
    def defaults(self) -> dict[str, Any]:
        """The default of each hyper-parameter, with the learning rate and the weight decay."""
        own = {name: setting.default for name, setting in self.settings.items()}
        rates = {
            "learning_rate": self.default_learning_rate,
            "weight_decay": self.default_weight_decay,
        }
        return rates | own


def _adapt(name: str, found: object) -> OptimizerInfo:
    """A user's factory `(learning_rate, ...) -> GradientTransformation` as a row."""
    if isinstance(found, OptimizerInfo):
        return dataclasses.replace(found, name=name)
    if not callable(found):
        raise UserError(f"The optimizer '{name}' is {found!r}, which is no function.")
    parameters = inspect.signature(found).parameters
    if "learning_rate" not in parameters:
        raise UserError(
            f"The optimizer '{name}' needs a parameter `learning_rate`; it has: "
            f"{', '.join(parameters) or 'none'}."
        )
    takes_decay, takes_mask = "weight_decay" in parameters, "mask" in parameters

    def build(packaging, **hyperparameters):
        if takes_decay:
            hyperparameters["weight_decay"] = packaging.weight_decay
            if takes_mask:
                hyperparameters["mask"] = packaging.mask
        whole = found(learning_rate=packaging.learning_rate, **hyperparameters)
        return optax.chain(whole, packaging.multiply())

    shared = ("learning_rate", "weight_decay", "mask")
    own = [
        p.replace(kind=p.KEYWORD_ONLY)
        for k, p in parameters.items()
        if k not in shared and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    first = inspect.Parameter("packaging", inspect.Parameter.POSITIONAL_ONLY)
    build.__signature__ = inspect.Signature([first, *own])

    def default(key, fallback):
        value = parameters[key].default if key in parameters else fallback
        return value if isinstance(value, (int, float)) else fallback

    return OptimizerInfo(
        name,
        build,
        summary=(inspect.getdoc(found) or "").partition("\n")[0],
        decays=("decoupled",) if takes_decay else (),
        default_learning_rate=default("learning_rate", 1e-3),
        default_weight_decay=default("weight_decay", 0.0),
    )


OPTIMIZERS: Registry[OptimizerInfo] = Registry(
    "optimizer", package="bocb_jax.optim", entry_points="bocb_jax.optimizers", adapt=_adapt
)


def add_row(*, name: str | None = None, aliases: tuple[str, ...] = (), **fields):
    """Decorator: registers a builder `(packaging, *, hyper-parameters)` with its row."""

    def decorate(build):
        summary = (inspect.getdoc(build) or "").partition("\n")[0]
        info = OptimizerInfo(name or build.__name__, build, **{"summary": summary, **fields})
        OPTIMIZERS.register(info.name, info, aliases=aliases)
        return build

    return decorate


_PREFIXES: dict[str, Callable[[OptimizerInfo], OptimizerInfo | None]] = {}


def add_prefix(prefix: str):
    """Decorator: names that begin with the prefix are the rest, changed by the function."""

    def decorate(around):
        _PREFIXES[prefix] = around
        return around

    return decorate


def register_optimizer(
    factory: Callable[..., optax.GradientTransformation] | None = None, *, name: str | None = None
):
    """Registers one's own optimizer under its function's name.

    The function takes `learning_rate` and whatever hyper-parameters it likes, and returns an
    Optax transformation. It is called with an array as the learning rate whenever an update is
    traced. If it takes `weight_decay` (and `mask`), these are passed as well.

    >>> import optax
    >>> import bocb_jax
    >>> @bocb_jax.register_optimizer
    ... def sign_momentum(learning_rate, momentum=0.9):
    ...     return optax.chain(
    ...         optax.trace(momentum),
    ...         optax.scale_by_sign(),
    ...         optax.scale_by_learning_rate(learning_rate),
    ...     )
    >>> bocb_jax.list_optimizers("sign*")
    ['sign_momentum']
    """
    if factory is None:
        return lambda factory: register_optimizer(factory, name=name)
    info = _adapt(name or factory.__name__, factory)
    OPTIMIZERS.register(info.name, info)
    return factory


def list_optimizers(pattern: str = "*") -> list[str]:
    """Sorted names of the optimizers that match a shell pattern such as "ada*"."""
    return OPTIMIZERS.names(pattern)


def optimizer_info(name: str) -> OptimizerInfo:
    """The row of an optimizer: what is known of it before it is made."""
    if name not in OPTIMIZERS:
        for prefix, around in _PREFIXES.items():
            base = name.removeprefix(prefix)
            if name.startswith(prefix) and ("+" in prefix or base in OPTIMIZERS):
                found = around(optimizer_info(base))
                if found is not None:
                    return found
    return OPTIMIZERS.get(name)


def create_optimizer(
    name: str,
    learning_rate: float | Schedule | optax.Schedule,
    *,
    weight_decay: float | None = None,
    decay_mask: Any = "matrices",
    decay: str | None = None,
    parameter_kinds: Any | None = None,
    lr_multipliers: Mapping[str, float] | None = None,
    **hyperparameters,
) -> optax.GradientTransformationExtraArgs:
    """Makes an optimizer by name.

    Args:
      name: a listed name, or an import path such as "mypkg.opts:my_opt".
      learning_rate: a number, one of `optim.schedules`, or an Optax schedule.
      weight_decay: coefficient of the decay; None for the optimizer's own default.
      decay_mask: "matrices" (no biases, norms, tokens, tables), "all", a list of path patterns
        such as "blocks/*/kernel", or a tree of booleans.
      decay: "l2", "decoupled" or "proximal"; None for the optimizer's own.
      parameter_kinds: a tree like the parameters that says what each is ("conv", "depthwise",
        "matrix", "head", "embedding", "token", "bias", "norm", "scale"); None to tell it from
        name and shape.
      lr_multipliers: path pattern -> factor on the learning rate; the first that fits counts.
      **hyperparameters: of this optimizer; see `optimizer_info(name).settings`.

    Returns:
      An Optax transformation whose state is an `OptimizerState`. Its `update` needs `params` and
      passes extra arguments (`value`, `key`, `value_and_grad_fn`, `sampled_label_grad_fn`) on to
      optimizers that use them.

    Raises:
      UnknownName: no such optimizer; the message lists near matches.
      UserError: a hyper-parameter or kind of decay that the optimizer does not have, or a value
        that it cannot take.
    """
    info = optimizer_info(name)
    check_settings(name, info.settings, hyperparameters)
    schedule = as_schedule(learning_rate)
    weight_decay = info.default_weight_decay if weight_decay is None else weight_decay
    check_positive("weight decay", weight_decay, or_zero=True)
    decay = _check_decay(info, decay, weight_decay)
    mask = functools.partial(
        masks.decay_tree,
        decay_mask=decay_mask,
        parameter_kinds=parameter_kinds,
        must_match=isinstance(weight_decay, jax.core.Tracer) or weight_decay != 0,
    )
    kinds = functools.partial(masks.kinds_of, parameter_kinds=parameter_kinds)
    multipliers = functools.partial(masks.multiplier_tree, lr_multipliers=lr_multipliers)

    def build(rate, peak, decay_rate):
        packaging = Packaging(
            learning_rate=rate,
            peak_learning_rate=None if isinstance(schedule, Scaled) else peak,
            weight_decay=decay_rate,
            decay=decay,
            mask=mask,
            kinds=kinds,
            multipliers=multipliers,
            cautious=info.cautious,
        )
        return info.build(packaging, **hyperparameters)

    build(1.0, 1.0, 0.0)  # so that what a builder refuses is refused here
    return with_hyperparameters(build, schedule, weight_decay)


def _check_decay(info: OptimizerInfo, decay: str | None, weight_decay: Any) -> str:
    if not info.decays:
        if decay is not None or weight_decay != 0:
            raise UserError(f"{info.name} has no weight decay: leave weight_decay at 0.")
        return "none"
    if decay is not None and decay not in info.decays:
        has = " or ".join(repr(kind) for kind in info.decays)
        raise UserError(f"{info.name} has no weight decay of the kind '{decay}'; it has {has}.")
    return decay or info.decays[0]
