"""What `bocb models` and `bocb optimizers` share: which entries they list, and how."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from bocb_jax.command_line import Parser
from bocb_jax.commands.tables import Column, show_card, show_json, show_table
from bocb_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Catalog:
    """Entries that a command lists as a table, or describes one by one.

    Attributes:
      command: the word after `bocb`.
      noun: what messages call an entry.
      example: a pattern.
      of_paper: returns the names of the paper's entries, which come first.
      names: pattern -> the names that match it, sorted.
      describe: name -> what is known, as labels and texts.
      columns: of the table.
      row: name -> its cells.
      fields: name -> its values for programs.
      legend: sentences below the table.
    """

    command: str
    noun: str
    example: str
    of_paper: Callable[[], list[str]]
    names: Callable[[str], list[str]]
    describe: Callable[[str], list[tuple[str, str]]]
    columns: Sequence[Column]
    row: Callable[[str], Sequence[str]]
    fields: Callable[[str], dict[str, Any]]
    legend: str

    def parser(self, description: str) -> Parser:
        """Return a parser of the options that `show` follows."""
        parser = Parser(prog=f"bocb {self.command}", description=description)
        parser.add_argument(
            "name", nargs="?", help=f"a name, or a pattern such as '{self.example}'"
        )
        parser.add_argument("--all", action="store_true", help="also those that the paper lacks")
        parser.add_argument("--json", action="store_true", help="as JSON, for programs")
        return parser

    def matching(self, pattern: str | None) -> list[str]:
        """Return the names that a pattern matches, the paper's first; a plain name as it is.

        Raises:
          UserError: nothing matches.
        """
        if pattern and _is_name(pattern):
            return [pattern]
        of_paper, known = self.of_paper(), self.names(pattern or "*")
        if not known:
            raise UserError(
                f"No {self.noun} matches '{pattern}'; `bocb {self.command} --all` lists them."
            )
        return [*(n for n in of_paper if n in known), *(n for n in known if n not in of_paper)]

    def show(self, options: argparse.Namespace) -> None:
        """Print what the options of `parser` ask for."""
        names, notes = self.matching(options.name), [self.legend]
        if options.name and _is_name(options.name):
            card = self.describe(options.name)
            show_json(dict(card)) if options.json else show_card(options.name, card)
            return
        if not options.name and not options.all:
            others = len(names) - len(self.of_paper())
            names = self.of_paper()
            notes.append(
                f"These are the paper's; `bocb {self.command} --all` adds {others} others."
            )
        if options.json:
            show_json([self.fields(name) for name in names])
        else:
            show_table(self.columns, [self.row(name) for name in names], notes)


def _is_name(pattern: str) -> bool:
    return not set(pattern) & set("*?[")
