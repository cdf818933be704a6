"""`bocb models` and `bocb optimizers`: what there is, as tables, and the card of one."""

import argparse
import dataclasses
import functools

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bocb_jax.errors import UserError
from bocb_jax.recipes import NOTES, UNSTATED, compare, get_recipe, list_recipes, settings_of


def main(command: str, arguments: list[str]) -> int:
    """Prints a table, or a card when a single name is given."""
    parser = argparse.ArgumentParser(prog=f"bocb {command}")
    parser.add_argument(
        "name", nargs="?", default="*", help="a name, or a pattern such as 'conv*'; default: all"
    )
    if command == "optimizers":
        parser.add_argument(
            "--plot", metavar="FILE", help="draw their paths over toy landscapes (.png, .svg, ...)"
        )
    options = parser.parse_args(arguments)
    name = options.name
    console = Console(highlight=False)
    try:
        if getattr(options, "plot", None):
            _plot(name, options.plot)
        elif any(sign in name for sign in "*?["):
            console.print(_TABLES[command](name))
        else:
            console.print(_card(name, _CARDS[command](name)))
    except UserError as error:
        Console(stderr=True, highlight=False).print(str(error), markup=False, soft_wrap=True)
        return error.exit_code
    return 0


def _plot(pattern: str, path: str) -> None:
    from bocb_jax.optim import landscapes, list_optimizers

    names = list_optimizers(pattern) if any(sign in pattern for sign in "*?[") else [pattern]
    errors = Console(stderr=True, highlight=False)
    landscapes.plot(
        path, names, track=functools.partial(track, description="paths", console=errors)
    )
    errors.print(f"{path} is drawn.", markup=False, soft_wrap=True)


def _models(pattern: str) -> Table:
    from bocb_jax.models import list_models, model_card

    table = _table("Backbones", "name", "parameters", "top-1", "category", "recipe", "reference")
    for name in list_models(pattern):
        card = model_card(name)
        table.add_row(
            name,
            f"{card.num_params:,}" if card.num_params else "",
            f"{card.top1:.1f}" if card.top1 else "",
            card.category,
            f"{card.recipe} {card.input_size}" if card.recipe else "",
            card.reference,
        )
    table.caption = (
        "parameters at 1000 classes; top-1 in percent as published on ImageNet-1k; "
        "recipe and input size: the paper's on CIFAR-100"
    )
    return table


def _optimizers(pattern: str) -> Table:
    from bocb_jax.optim import list_optimizers, optimizer_info
    from bocb_jax.paper.categories import category

    table = _table(
        "Optimizers", "name", "category", "lr", "weight decay", "decay", "numbers", "paper"
    )
    for name in list_optimizers(pattern):
        info = optimizer_info(name)
        table.add_row(
            name,
            f"later ({category(name)[0] or '-'})" if info.category == "later" else info.category,
            f"{info.default_learning_rate:g}",
            f"{info.default_weight_decay:g}",
            info.decays[0] if info.decays else "none",
            info.numeric_class,
            info.paper,
        )
    table.caption = (
        "a fixed rate + momentum, b adaptive rate + momentum, c estimated rate + momentum, "
        "d adaptive rate, no momentum; later: after the paper, in brackets by its definition; "
        "numbers: against the reference implementation"
    )
    return table


def _model_card(name: str) -> list[tuple[str, str]]:
    from flax import nnx

    from bocb_jax.models import create_model, model_card
    from bocb_jax.models.macs import count_macs
    from bocb_jax.models.parameters import count_params

    card = dataclasses.asdict(model_card(name))
    rows = [(field.replace("_", " "), value) for field, value in card.items()]
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


def _optimizer_card(name: str) -> list[tuple[str, str]]:
    from bocb_jax.optim.describe import describe

    return describe(name)


_TABLES = {"models": _models, "optimizers": _optimizers}
_CARDS = {"models": _model_card, "optimizers": _optimizer_card}


def recipes(arguments: list[str]) -> int:
    """`bocb recipes`: the recipes side by side, or beside the paper."""
    parser = argparse.ArgumentParser(prog="bocb recipes")
    parser.add_argument("--dataset", default="cifar100", choices=["cifar100", "imagenet"])
    parser.add_argument("--check", action="store_true", help="every setting beside the paper's")
    options = parser.parse_args(arguments)
    console = Console(highlight=False)
    if options.check:
        return _check_recipes(console)
    names = [name for name in list_recipes() if name != "digits"]
    columns = {name: settings_of(get_recipe(name, options.dataset)) for name in names}
    table = _table(f"Recipes on {options.dataset}", "setting", *names)
    for setting in dict.fromkeys(key for column in columns.values() for key in column):
        table.add_row(setting, *(_said(column.get(setting)) for column in columns.values()))
    table.caption = (
        "images of 32 pixels; larger ones get resized_crop=(0.8, 1.0) in place of pad"
        if options.dataset == "cifar100"
        else ""
    )
    console.print(table)
    return 0


def _check_recipes(console: Console) -> int:
    rows = compare()
    table = _table(
        "Recipes beside the paper", "recipe", "dataset", "setting", "ours", "paper", "why"
    )
    for row in rows:
        why = "NO REASON GIVEN" if row.silent else row.reason
        texts = row.setting, _said(row.ours), _said(row.paper), why
        table.add_row(row.recipe, row.dataset, *texts)
    console.print(table)
    for note in NOTES:
        console.print(f"- {note}", soft_wrap=True)
    silent = sum(row.silent for row in rows)
    differ = sum(bool(row.reason) for row in rows)
    stated = sum(row.paper != UNSTATED for row in rows)
    console.print(
        f"{len(rows)} settings; {stated} of them stated by the paper or its code: {differ} differ "
        f"for the reason given, {silent} without one."
    )
    return 1 if silent else 0


def _said(value: object) -> str:
    return "-" if value in (None, "", False) or value == 0 else str(value)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", caption_justify="left")
    for column in columns:
        right = column in ("parameters", "top-1", "lr", "weight decay")
        table.add_column(column, justify="right" if right else "left", no_wrap=column == "name")
    return table


def _card(name: str, rows: list[tuple[str, str]]) -> Table:
    table = Table(title=name, title_justify="left", show_header=False)
    for label, value in rows:
        table.add_row(label, value)
    return table
