"""The files of a run, and of a folder of runs, checked as they are read.

A folder of runs may come from somebody else, or have been edited. Each file is checked against one
schema: where it does not hold, a sentence names the file and the field. A schema only asks for
types, finite numbers and printable names, so that runs of every version can be read; what a *new*
run may ask for is `bocb_jax.config`'s. Values are data: none of them is imported, opened or
downloaded.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, Union

import pydantic
from pydantic import Field, with_config
from typing_extensions import TypedDict  # with pydantic, before Python 3.12

from bocb_jax.checked import Text
from bocb_jax.config import TrainConfig
from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json

_STRICT = pydantic.ConfigDict(strict=True, extra="allow")

Whole = Annotated[int, Field(ge=-(2**63), lt=2**63)]  # what a column of a table can hold
Number = Annotated[float, Field(allow_inf_nan=False)]
Table = dict[str, Any]


def _stored(hint: Any) -> Any:
    """Return what a field of a config is in JSON: tables for tables, lists for tuples."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return _table_of(typing.cast(type, hint))
    if origin is Annotated:  # the range is for new runs
        return _stored(parts[0])
    if origin in (Union, types.UnionType):
        return Union[tuple(map(_stored, parts))]  # noqa: UP007 - of types only known here
    if origin is Literal:
        return Text
    if origin is tuple:
        items = tuple(_stored(part) for part in parts if part is not Ellipsis)
        return types.GenericAlias(list, (Union[items],))  # noqa: UP007 - as above
    if origin is dict:
        return Table
    return {int: Whole, float: Number, str: Text}.get(hint, hint)


def _table_of(config: type) -> Any:
    hints = typing.get_type_hints(config)
    fields = {field.name: _stored(hints[field.name]) for field in dataclasses.fields(config)}
    return _table(config.__name__, fields)


def _table(name: str, fields: dict[str, Any]) -> Any:
    table = TypedDict(name, fields, total=False)  # type: ignore[misc]  # of fields only known here
    return with_config(_STRICT)(table)


@with_config(_STRICT)
class _Config(_table_of(TrainConfig)):  # type: ignore[misc]  # a base only known here
    model: Text  # and no "opt" where weights were imported


@with_config(_STRICT)
class _Resolved(TypedDict, total=False):
    recipe: Text | None
    learning_rate: Number | None
    weight_decay: Number | None
    epochs: Whole | None
    num_classes: Whole
    image_size: Whole
    precision: Text
    drop_path: Number | None


@with_config(_STRICT)
class _Device(TypedDict, total=False):
    platform: Text
    kind: Text
    count: Whole


@with_config(_STRICT)
class _RunConfig(TypedDict):
    """`config.json`."""

    config: _Config
    resolved: NotRequired[_Resolved | None]
    label: NotRequired[Text | None]
    pretrained_with: NotRequired[Text | None]
    study: NotRequired[Text | None]
    versions: NotRequired[dict[str, Text]]
    device: NotRequired[_Device | None]


_Share = Annotated[Number, Field(ge=0, le=1)]
_Channels = Annotated[list[_Share], Field(min_length=3, max_length=3)]
_Side = Annotated[int, Field(ge=1, le=2**14)]
_Joint = Annotated[int, Field(ge=0, lt=1000)]
_Joints = Annotated[list[_Joint], Field(min_length=2, max_length=2)]


@with_config(_STRICT)
class _Skeleton(TypedDict):
    names: Annotated[list[Text], Field(min_length=1, max_length=1000)]
    pairs: list[_Joints]
    sigmas: list[Number]
    limbs: list[_Joints]


@with_config(_STRICT)
class _Data(TypedDict):
    """`dataset.json`."""

    name: Text
    mean: _Channels
    std: Annotated[list[Annotated[Number, Field(ge=1e-6, le=1)]], Field(min_length=3, max_length=3)]
    class_names: list[Text] | None
    image_shape: Annotated[list[_Side], Field(min_length=3, max_length=3)] | None
    skeleton: _Skeleton | None


_Step = Annotated[Number, Field(ge=-(2**63), lt=2**63)]
_Pair = Annotated[list[_Step | None], Field(min_length=2, max_length=2)]


# Fields of `result.json` beside its status and its texts.
_NUMBERS = ("validation_accuracy", "best_validation_accuracy", "test_accuracy", "test_loss",
            "validation_AP", "best_validation_AP", "test_AP", "test_AP50", "test_AP75",
            "train_loss", "train_accuracy", "first_train_loss", "epochs", "wall_seconds",
            "seconds_to_first_step")  # fmt: skip
_WHOLES = ("diverged_at_step", "bytes_asked", "best_step", "steps", "parameters", "population",
           "peak_memory_bytes")  # fmt: skip
_Result: Any = _table(
    "_Result",
    {
        "status": typing.Required[Text],
        **dict.fromkeys(("error", "traceback"), str | None),
        **dict.fromkeys(_NUMBERS, Number | None),
        **dict.fromkeys(_WHOLES, Whole | None),
        "evaluations": list[_Pair] | None,
        "evaluation_seconds": list[Number | None] | None,
    },
)


@with_config(_STRICT)
class _Study(TypedDict, total=False):
    """`study.json`, as far as it is read."""

    target: Number | None


def read_config(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's `config.json`, or None if there is none.

    Raises:
      UserError: it cannot be read, or a field is missing or of the wrong type.
    """
    return _read(folder / "config.json", _RunConfig)


def config_of(weights: str) -> dict[str, Any] | None:
    """Return the content of the `config.json` of the run that weights are of, or None.

    Args:
      weights: a run directory, its `checkpoints/best`, or a file of weights.

    Raises:
      UserError: the config.json of the run cannot be read.
    """
    path = Path(weights).expanduser().absolute()
    folders = (path, path.parent.parent) if path.is_dir() else ()
    return next((found for folder in folders if (found := read_config(folder))), None)


def optimizer_of(weights: str) -> str | None:
    """Return the optimizer that trained weights, if they are those of a run; see `config_of`."""
    stored = config_of(weights)
    return None if stored is None else stored["config"].get("opt")


def read_result(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's `result.json`, or None if the run has not ended.

    Raises:
      UserError: it cannot be read, or a field is missing or of the wrong type.
    """
    return _read(folder / "result.json", _Result)


def read_data(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's `dataset.json`, or None if an earlier version began the run.

    Raises:
      UserError: it cannot be read, or a field is missing or of the wrong type.
    """
    return _read(folder / "dataset.json", _Data)


SCORES = ("accuracy", "AP")  # by which runs are compared: of classification, of other tasks


def score_name(result: Mapping[str, Any]) -> str:
    """Return which of `SCORES` the content of a `result.json`, or a line of metrics, has."""
    return next((name for name in SCORES if f"validation_{name}" in result), SCORES[0])


def read_study(folder: Path) -> dict[str, Any]:
    """Return the content of the `study.json` of a folder of runs; empty if there is none.

    Raises:
      UserError: it cannot be read, or a field is of the wrong type.
    """
    return _read(folder / "study.json", _Study) or {}


def _read(path: Path, kind: Any) -> dict[str, Any] | None:
    content = read_json(path)
    if content is not None:
        try:
            _schema(kind).validate_python(content)
        except pydantic.ValidationError as error:
            raise UserError(
                f"{path}: {_sentence(error)} Was it edited? Move the folder away."
            ) from None
    return content


@functools.cache
def _schema(kind: Any) -> pydantic.TypeAdapter:
    return pydantic.TypeAdapter(kind)


# Kind of a fault, as pydantic names it -> what the value should have been.
_EXPECTED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "string_type": "text",
    "bool_type": "true or false",
    "dict_type": "an object",
    "list_type": "a list",
    "string_pattern_mismatch": "text without control characters",
    "greater_than_equal": "a number of at most 64 bits",
    "less_than": "a number of at most 64 bits",
}


def _sentence(error: pydantic.ValidationError) -> str:
    """Return the first fault in words."""
    (fault, *_) = error.errors(include_url=False, include_context=False)
    field = ".".join(map(str, fault["loc"]))
    if fault["type"] == "missing":
        return f"there is no {field}."
    value = repr(fault["input"])
    value = value if len(value) <= 60 else f"{value[:60]}..."
    expected = _EXPECTED.get(fault["type"])
    if expected is None:
        return f"{field} is {value}: {fault['msg'][0].lower()}{fault['msg'][1:]}."
    return f"{field} is {value}, not {expected}."
