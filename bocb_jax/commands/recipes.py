"""`bocb recipes`: the training recipes side by side, or beside the paper's."""

import itertools

from bocb_jax.command_line import Parser
from bocb_jax.commands.tables import Column, show_in_parts, show_text
from bocb_jax.recipes import (
    NOTES,
    UNSTATED,
    Comparison,
    compare,
    get_recipe,
    list_recipes,
    settings_of,
)


def main(arguments: list[str]) -> int:
    """Print the recipes, and return the exit code: 1 if one differs from the paper silently."""
    parser = Parser(prog="bocb recipes", description="List training recipes.")
    parser.add_argument("--dataset", default="cifar100", choices=["cifar100", "imagenet"])
    parser.add_argument("--check", action="store_true", help="every setting beside the paper's")
    options = parser.parse_args(arguments)
    if options.check:
        return _check()
    names = [name for name in list_recipes() if name != "digits"]
    recipes = {name: settings_of(get_recipe(name, options.dataset)) for name in names}
    settings = dict.fromkeys(key for recipe in recipes.values() for key in recipe)
    show_in_parts(
        [Column(f"on {options.dataset}"), *map(Column, names)],
        [[key, *(_text(recipe.get(key)) for recipe in recipes.values())] for key in settings],
    )
    if options.dataset == "cifar100":
        show_text(
            "For images of 32 pixels; larger ones are cropped with resized_crop=(0.8, 1.0), not "
            "padded."
        )
    return 0


def _check() -> int:
    rows = compare()
    reasons = {
        reason: i for i, reason in enumerate(dict.fromkeys(r.reason for r in rows if r.reason), 1)
    }
    for (recipe, dataset), part in itertools.groupby(rows, lambda row: (row.recipe, row.dataset)):
        show_in_parts(
            [Column(f"{recipe}, {dataset}"), Column("ours"), Column("paper"), Column("why")],
            [[r.setting, _text(r.ours), _text(r.paper), _why(r, reasons)] for r in part],
        )
    for reason, number in reasons.items():
        show_text(f"[{number}] {reason}")
    print()
    for note in NOTES:
        show_text(f"- {note}")
    silent = sum(row.silent for row in rows)
    differ = sum(bool(row.reason) for row in rows)
    stated = sum(row.paper != UNSTATED for row in rows)
    print()
    show_text(
        f"{len(rows)} settings; {stated} of them stated by the paper or its code: {differ} differ "
        f"for the reason given, {silent} without one."
    )
    return 1 if silent else 0


def _why(row: Comparison, reasons: dict[str, int]) -> str:
    if row.silent:
        return "NO REASON"
    return f"[{reasons[row.reason]}]" if row.reason else ""


def _text(value: object) -> str:
    return "-" if value in (None, "", False) or value == 0 else str(value)
