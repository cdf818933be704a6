"""`bocb models`: the backbones as a table, or everything about one."""

import dataclasses
from typing import Any

from flax import nnx

from bocb_jax import paper
from bocb_jax.command_line import Parser
from bocb_jax.commands.tables import Column, show_card, show_json, show_table
from bocb_jax.errors import UserError
from bocb_jax.models import create_model, list_models, model_card
from bocb_jax.models.macs import count_macs
from bocb_jax.models.parameters import count_params

_COLUMNS = (
    Column("name"),
    Column("parameters", is_number=True),
    Column("top-1", is_number=True),
    Column("category"),
    Column("recipe"),
    Column("px", is_number=True),
    Column("reference"),
)
_LEGEND = (
    "Parameters with 1000 classes; top-1: percent on ImageNet-1k, as published; recipe and px: "
    "training recipe and image size of the paper on CIFAR-100."
)


def main(arguments: list[str]) -> int:
    """Print a table of backbones, or the card of one, and return the exit code."""
    parser = Parser(prog="bocb models", description="List or describe backbones.")
    parser.add_argument("name", nargs="?", help="a backbone, or a pattern such as 'conv*'")
    parser.add_argument("--all", action="store_true", help="also those that the paper lacks")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    options = parser.parse_args(arguments)
    if options.name and not set(options.name) & set("*?["):
        card = describe(options.name)
        show_json(dict(card)) if options.json else show_card(options.name, card)
        return 0
    of_paper, known = paper.backbones(), list_models(options.name or "*")
    names = [*(n for n in of_paper if n in known), *(n for n in known if n not in of_paper)]
    if not options.name and not options.all:
        names = of_paper
    if not names:
        raise UserError(f"No backbone matches '{options.name}'; `bocb models --all` lists them.")
    cards = {name: model_card(name) for name in names}
    if options.json:
        show_json([{"name": name, **dataclasses.asdict(card)} for name, card in cards.items()])
        return 0
    notes = [_LEGEND]
    if len(known) > len(names):
        notes.append(
            f"These are the paper's; `bocb models --all` adds {len(known) - len(names)} others."
        )
    show_table(_COLUMNS, [_row(name, card) for name, card in cards.items()], notes)
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


def _row(name: str, card: Any) -> tuple[str, ...]:
    return (
        name,
        f"{card.num_params / 1e6:.2f} M" if card.num_params else "",
        f"{card.top1:.1f}" if card.top1 else "",
        card.category,
        card.recipe,
        str(card.input_size) if card.recipe else "",
        card.reference,
    )
