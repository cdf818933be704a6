"""`bocb optimizers`: the optimizers as a table, all about one, or their paths as a picture."""

import functools

from rich.progress import track

from bocb_jax import paper
from bocb_jax.checked import FilePath
from bocb_jax.command_line import value_of
from bocb_jax.commands import landscapes
from bocb_jax.commands.catalog import Catalog
from bocb_jax.commands.tables import Column
from bocb_jax.console import console
from bocb_jax.optim import list_optimizers, optimizer_info
from bocb_jax.optim.describe import describe
from bocb_jax.paper.categories import SHORT, category

_LEGEND = (
    f"Categories: {', '.join(f'{letter} {words}' for letter, words in SHORT.items())}; later: "
    "published after the paper, in brackets by its definition. lr and weight decay: the defaults. "
    "parity: how closely updates agree with the reference implementation."
)


def main(arguments: list[str]) -> int:
    """Print a table of optimizers or the card of one, or draw them; return the exit code."""
    parser = _CATALOG.parser("List, describe or draw optimizers.")
    parser.add_argument(
        "--plot",
        type=value_of(FilePath),
        metavar="FILE",
        help="draw their paths over toy landscapes (.png, .svg, ...)",
    )
    options = parser.parse_args(arguments)
    if options.plot:
        _plot(_CATALOG.matching(options.name), options.plot)
    else:
        _CATALOG.show(options)
    return 0


def _fields(name: str) -> dict[str, object]:
    info = optimizer_info(name)
    return {
        "name": name,
        "category": category(name)[0] if info.category == "later" else info.category,
        "learning_rate": info.default_learning_rate,
        "weight_decay": info.default_weight_decay,
        "decays": list(info.decays),
        "parity": info.numeric_class,
        "paper": info.paper,
    }


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


_CATALOG = Catalog(
    command="optimizers",
    noun="optimizer",
    example="ada*",
    of_paper=paper.optimizers,
    names=list_optimizers,
    describe=describe,
    columns=(
        Column("name"),
        Column("category"),
        Column("lr", is_number=True),
        Column("weight decay", is_number=True),
        Column("decay"),
        Column("parity"),
        Column("paper"),
    ),
    row=_row,
    fields=_fields,
    legend=_LEGEND,
)
