"""`bocb models`: the backbones as a table, or everything about one."""

import dataclasses
from typing import Any

from flax import nnx

from bocb_jax import paper
from bocb_jax.commands.catalog import Catalog
from bocb_jax.commands.tables import Column
from bocb_jax.errors import UserError
from bocb_jax.models import create_model, list_models, model_card
from bocb_jax.models.macs import count_macs
from bocb_jax.models.parameters import count_params

_LEGEND = (
    "Parameters with 1000 classes; top-1: percent on ImageNet-1k, as published; recipe and px: "
    "training recipe and image size of the paper on CIFAR-100."
)


def main(arguments: list[str]) -> int:
    """Print a table of backbones, or the card of one, and return the exit code."""
    _CATALOG.show(_CATALOG.parser("List or describe backbones.").parse_args(arguments))
    return 0


def describe(name: str) -> list[tuple[str, str]]:
    """Return what is known about a backbone: labels and texts.

    Raises:
      UserError: there is no such backbone.
    """
    card = dataclasses.asdict(model_card(name))
    rows: list[tuple[str, Any]] = [
        (field.replace("num_params", "parameters").replace("_", " "), value)
        for field, value in card.items()
    ]
    for size in (32, 224):
        try:
            model = nnx.eval_shape(
                lambda size=size: create_model(name, image_size=size, rngs=nnx.Rngs(0))
            )
        except UserError as reason:
            rows.append((f"at {size} px", str(reason)))
            continue
        macs = count_macs(model, size) / 1e6
        rows.append((f"at {size} px", f"{count_params(model):,} parameters, {macs:,.1f} M MACs"))
    return [(label, str(value)) for label, value in rows if value not in ("", None)]


def _fields(name: str) -> dict[str, Any]:
    return {"name": name, **dataclasses.asdict(model_card(name))}


def _row(name: str) -> tuple[str, ...]:
    card = model_card(name)
    return (
        name,
        f"{card.num_params / 1e6:.2f} M" if card.num_params else "",
        f"{card.top1:.1f}" if card.top1 else "",
        card.category,
        card.recipe,
        str(card.input_size) if card.recipe else "",
        card.reference,
    )


_CATALOG = Catalog(
    command="models",
    noun="backbone",
    example="conv*",
    of_paper=paper.backbones,
    names=list_models,
    describe=describe,
    columns=(
        Column("name"),
        Column("parameters", is_number=True),
        Column("top-1", is_number=True),
        Column("category"),
        Column("recipe"),
        Column("px", is_number=True),
        Column("reference"),
    ),
    row=_row,
    fields=_fields,
    legend=_LEGEND,
)
