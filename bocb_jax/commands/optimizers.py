"""`bocb optimizers`: the optimizers as a table, all about one, or their paths as a picture."""

import functools

from rich.progress import track

from bocb_jax import paper
from bocb_jax.checked import FilePath
from bocb_jax.command_line import Parser, value_of
from bocb_jax.commands import landscapes
from bocb_jax.commands.tables import Column, show_card, show_json, show_table
from bocb_jax.console import console
from bocb_jax.errors import UserError
from bocb_jax.optim import list_optimizers, optimizer_info
from bocb_jax.optim.describe import describe
from bocb_jax.paper.categories import category

_COLUMNS = (
    Column("name"),
    Column("category"),
    Column("lr", is_number=True),
    Column("weight decay", is_number=True),
    Column("decay"),
    Column("parity"),
    Column("paper"),
)
_LEGEND = (
    "Categories: a fixed rate + momentum, b adaptive rate + momentum, c estimated rate + momentum, "
    "d adaptive rate, no momentum; later: published after the paper, in brackets by its "
    "definition. lr and weight decay: the defaults. parity: how closely updates agree with the "
    "reference implementation."
)


def main(arguments: list[str]) -> int:
    """Print a table of optimizers or the card of one, or draw them; return the exit code."""
    parser = Parser(prog="bocb optimizers", description="List, describe or draw optimizers.")
    parser.add_argument("name", nargs="?", help="an optimizer, or a pattern such as 'ada*'")
    parser.add_argument("--all", action="store_true", help="also those that the paper lacks")
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument(
        "--plot",
        type=value_of(FilePath),
        metavar="FILE",
        help="draw their paths over toy landscapes (.png, .svg, ...)",
    )
    options = parser.parse_args(arguments)
    is_pattern = not options.name or bool(set(options.name) & set("*?["))
    of_paper, known = paper.optimizers(), list_optimizers(options.name or "*")
    if is_pattern and not known:
        raise UserError(
            f"No optimizer matches '{options.name}'; `bocb optimizers --all` lists them."
        )
    if options.plot:
        _plot(known if is_pattern else [options.name], options.plot)
        return 0
    if not is_pattern:
        card = describe(options.name)
        show_json(dict(card)) if options.json else show_card(options.name, card)
        return 0
    names = [*(n for n in of_paper if n in known), *(n for n in known if n not in of_paper)]
    if not options.name and not options.all:
        names = of_paper
    rows = [_row(name) for name in names]
    if options.json:
        show_json([dict(zip(_JSON, _values(name), strict=True)) for name in names])
        return 0
    notes = [_LEGEND]
    if len(known) > len(names):
        notes.append(
            f"These are the paper's; `bocb optimizers --all` adds {len(known) - len(names)} others."
        )
    show_table(_COLUMNS, rows, notes)
    return 0


_JSON = ("name", "category", "learning_rate", "weight_decay", "decays", "parity", "paper")


def _values(name: str) -> tuple[object, ...]:
    info = optimizer_info(name)
    return (
        name,
        category(name)[0] if info.category == "later" else info.category,
        info.default_learning_rate,
        info.default_weight_decay,
        list(info.decays),
        info.numeric_class,
        info.paper,
    )


def _row(name: str) -> tuple[str, ...]:
    info = optimizer_info(name)
    return (
        name,
        f"later ({category(name)[0] or '-'})" if info.category == "later" else info.category,
        f"{info.default_learning_rate:g}",
        f"{info.default_weight_decay:g}",
        info.decays[0] if info.decays else "none",
        info.numeric_class,
        info.paper,
    )


def _plot(names: list[str], path: str) -> None:
    progress = functools.partial(track, description="paths", console=console)
    landscapes.plot(path, names, track=progress)
    console.print(f"{path} is drawn.", markup=False, soft_wrap=True)
