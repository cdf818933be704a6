"""The optimizers by name: a row for each, and how one is made.

An optimizer is a builder: a function of a `Context` (learning rate, weight decay, masks) and of its
own hyper-parameters, which are keyword-only and typed by `bounds`. `add_row` registers it; the
files beside this one each hold one optimizer or one close family.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax

from bocb_jax import paper
from bocb_jax.errors import UserError, described
from bocb_jax.optim import masks, own
from bocb_jax.optim.bounds import (
    Hyperparameter,
    check_hyperparameters,
    hyperparameters_of,
    set_signature,
)
from bocb_jax.optim.context import DECAYS, Context
from bocb_jax.optim.injected import OptimizerState, with_hyperparameters
from bocb_jax.optim.schedules import Scaled, Schedule, as_schedule, check_positive
from bocb_jax.paper import categories
from bocb_jax.registry import Registry

# The paper's categories by letter, and two for what the paper does not have.
CATEGORIES = categories.descriptions() | {"later": "after the paper", "user": "your own"}


@dataclasses.dataclass(frozen=True)
class OptimizerInfo:
    """What is known of an optimizer before it is made."""

    name: str
    build: Callable[..., optax.GradientTransformation]  # (context, **hyper-parameters)
    category: str = "user"  # a key of CATEGORIES
    paper: str = ""  # authors, year, arXiv number
    summary: str = ""
    decays: tuple[str, ...] = DECAYS  # kinds of weight decay; the first is the default
    default_learning_rate: float = 1e-3
    default_weight_decay: float = 0.0
    default_schedule: str = "cosine"  # after the warm-up; or "constant"
    reference: str = ""  # the implementation that the numbers are compared with
    numeric_class: str = ""  # exact (1e-9) | eps-level (1e-6) | variant
    state_per_parameter: float = 0.0  # numbers kept for each parameter
    cost: str = "element-wise"  # of an update, beside the gradient
    extra_args: tuple[str, ...] = ()  # extra arguments that its `update` cannot do without
    evaluation_parameters: Callable[[OptimizerState, Any], Any] | None = None
    cautious: bool = False  # does the direction keep only what agrees with the gradient?
    own: bool = False  # the user's, alone or in a wrapper; what it returns is checked
    notes: str = ""

    @property
    def hyperparameters(self) -> dict[str, Hyperparameter]:
        """Its own hyper-parameters."""
        return hyperparameters_of(self.build)

    @property
    def search_center(self) -> tuple[float, float]:
        """The learning rate and weight decay that a search starts from."""
        return self.default_learning_rate, self.default_weight_decay

    @property
    def paper_learning_rate(self) -> tuple[float, ...]:
        """The most frequent tuned learning rates of the paper (Table A4); several if tied."""
        return self._tuned()[0]

    @property
    def paper_weight_decay(self) -> tuple[float, ...]:
        """The most frequent tuned weight decays of the paper (Table A5); several if tied."""
        return self._tuned()[1]

    def _tuned(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        yours = self.category == "user"  # even if its name is like one of the paper's
        return ((), ()) if yours else paper.most_frequent(self.name)


def category_of(name: str) -> str:
    """Return the paper's category of an optimizer of this package, or "later"."""
    return categories.published_category(name) or "later"


def summary_of(build: Callable[..., Any]) -> str:
    """Return the first line of a docstring."""
    return (inspect.getdoc(build) or "").partition("\n")[0]


def formula_of(build: Callable[..., Any]) -> str:
    """Return the update rule: what a docstring has between its first line and its arguments."""
    _, _, rest = (inspect.getdoc(build) or "").partition("\n")
    return rest.partition("Args:")[0].strip()


def reference_of(build: Callable[..., Any]) -> str:
    """Return the papers under "References:" at the end of a docstring."""
    _, _, rest = (inspect.getdoc(build) or "").partition("References:\n")
    return " ".join(rest.split())


def _adapt(name: str, found: object) -> OptimizerInfo:
    """Return the row of a user's factory `(learning_rate, ...) -> GradientTransformation`."""
    if isinstance(found, OptimizerInfo):
        return dataclasses.replace(found, name=name)
    if not callable(found):
        raise UserError(f"The optimizer '{name}' must be a function, but it is {found!r}.")
    parameters = inspect.signature(found).parameters
    if "learning_rate" not in parameters:
        raise UserError(
            f"The optimizer '{name}' needs a parameter `learning_rate`; it has: "
            f"{', '.join(parameters) or 'none'}."
        )
    takes_decay, takes_mask = "weight_decay" in parameters, "mask" in parameters

    def build(ctx: Context, **hyperparameters: Any) -> optax.GradientTransformation:
        if takes_decay:
            hyperparameters["weight_decay"] = ctx.weight_decay
            if takes_mask:
                hyperparameters["mask"] = ctx.mask
        try:
            whole = found(learning_rate=ctx.learning_rate, **hyperparameters)
        except UserError:
            raise
        except Exception as error:
            raise UserError(
                f"The optimizer '{name}' cannot be made: {described(error)}."
            ) from error
        return optax.chain(own.checked(name, whole), ctx.scale_by_multipliers())

    shared = ("learning_rate", "weight_decay", "mask")
    others = [
        p.replace(kind=p.KEYWORD_ONLY)
        for k, p in parameters.items()
        if k not in shared and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
    ]
    first = inspect.Parameter("ctx", inspect.Parameter.POSITIONAL_ONLY)
    set_signature(build, inspect.Signature([first, *others]))

    def default(key: str, fallback: float) -> float:
        value = parameters[key].default if key in parameters else fallback
        return value if isinstance(value, (int, float)) else fallback

    return OptimizerInfo(
        name,
        build,
        summary=summary_of(found),
        decays=("decoupled",) if takes_decay else (),
        default_learning_rate=default("learning_rate", 1e-3),
        default_weight_decay=default("weight_decay", 0.0),
        own=True,
    )


OPTIMIZERS: Registry[OptimizerInfo] = Registry(
    "optimizer", package="bocb_jax.optim", entry_points="bocb_jax.optimizers", adapt=_adapt
)


def add_row(
    *, name: str | None = None, **fields: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return a decorator that registers a builder `(ctx, *, hyper-parameters)` with its row.

    The category comes from the paper's table; summary and paper from the builder's docstring.

    Args:
      name: of the optimizer; None for the function's own.
      **fields: of `OptimizerInfo`.
    """

    def decorate(build: Callable[..., Any]) -> Callable[..., Any]:
        row = OptimizerInfo(
            name or build.__name__,
            build,
            category=category_of(name or build.__name__),
            paper=reference_of(build),
            summary=summary_of(build),
            **fields,
        )
        OPTIMIZERS.register(row.name, row)
        return build

    return decorate


Around = Callable[[OptimizerInfo], OptimizerInfo | None]
_PREFIXES: dict[str, Around] = {}


def add_prefix(prefix: str) -> Callable[[Around], Around]:
    """Return a decorator for what a prefix does to an optimizer: its row -> another row."""

    def decorate(around: Around) -> Around:
        _PREFIXES[prefix] = around
        return around

    return decorate


def register_optimizer(
    factory: Callable[..., optax.GradientTransformation] | None = None, *, name: str | None = None
) -> Callable[..., Any]:
    """Register your own optimizer under its function's name.

    The function takes `learning_rate` and whatever hyper-parameters it likes, and returns an
    Optax transformation. It is called with an array as the learning rate whenever an update is
    traced. If it takes `weight_decay` (and `mask`), these are passed as well.

    Args:
      factory: the function; None if the decorator is called with a name.
      name: other than the function's own.

    Returns:
      The function itself, or a decorator.

    Raises:
      UserError: the name is taken, or the function has no `learning_rate`.

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
    """Return the sorted names of the optimizers that match a shell pattern such as "ada*"."""
    return OPTIMIZERS.names(pattern)


def optimizer_info(name: str) -> OptimizerInfo:
    """Return the row of an optimizer: what is known of it before it is made.

    Raises:
      UnknownName: no such optimizer; the message lists near matches.
    """
    if name not in OPTIMIZERS:
        for prefix, around in _PREFIXES.items():
            base = name.removeprefix(prefix)
            if name.startswith(prefix) and ("+" in prefix or base in OPTIMIZERS):
                found = around(optimizer_info(base))
                if found is not None:
                    return found
    return OPTIMIZERS.resolve(name)


def create_optimizer(
    name: str,
    learning_rate: float | Schedule | optax.Schedule,
    *,
    weight_decay: float | None = None,
    decay_mask: Any = "matrices",
    decay: str | None = None,
    parameter_kinds: Any | None = None,
    lr_multipliers: Mapping[str, float] | None = None,
    **hyperparameters: Any,
) -> optax.GradientTransformationExtraArgs:
    """Create an optimizer by name.

    Args:
      name: a listed name, or an import path such as "mypkg.opts:my_opt".
      learning_rate: a number, one of `optim.schedules`, or an Optax schedule.
      weight_decay: coefficient of the decay; None for the optimizer's own default.
      decay_mask: "matrices" (no biases, norms, tokens, tables), "all", a list of path patterns
        such as "blocks/*/kernel", or a tree of booleans.
      decay: "l2", "decoupled" or "proximal"; None for the optimizer's own.
      parameter_kinds: a tree like the parameters that says what each is ("conv", "depthwise",
        "matrix", "head", "embedding", "token", "bias", "norm", "scale"); None to infer it from
        name and shape.
      lr_multipliers: path pattern -> factor on the learning rate; the first that matches counts.
      **hyperparameters: of this optimizer; see `optimizer_info(name).hyperparameters`.

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
    check_hyperparameters(name, info.hyperparameters, hyperparameters)
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

    def build(
        rate: float | jax.Array, peak: float | jax.Array, decay_rate: float | jax.Array
    ) -> optax.GradientTransformation:
        ctx = Context(
            learning_rate=rate,
            peak_learning_rate=None if isinstance(schedule, Scaled) else peak,
            weight_decay=decay_rate,
            decay=decay,
            mask=mask,
            kinds=kinds,
            multipliers=multipliers,
            cautious=info.cautious,
        )
        return info.build(ctx, **hyperparameters)

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
