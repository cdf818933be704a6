"""Which runs of a pair train together as one program, and the measurements behind that.

    populations.json     "PAIR, EPOCHS epochs" -> "asked", "members", and what was measured

The choice is made once per program and kept, so that a resumed sweep does as before. A program is
compiled for a fixed number of members; a group that fills half of its places is trained in it.
"""

from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json, write_json
from bocb_jax.storage.remote import Workdir
from bocb_jax.study.plan import Cell, Planned

FILE = "populations.json"
MAX_AUTO_MEMBERS = 8  # that "auto" tries
# What the runs of a pair may differ in and still share a program.
MEMBER_SETTINGS = ("lr", "weight_decay", "seed")


def parse_population(text: str) -> str | int:
    """Return the value of `--population`: "auto", "off", or a number of members.

    Raises:
      UserError: it is none of these.
    """
    if text in ("auto", "off"):
        return text
    if text.isdecimal() and int(text) > 1:
        return int(text)
    raise UserError(f"--population is {text!r}; it must be auto, off, or a number above 1.")


class Grouping:
    """How a sweep groups runs.

    "off" is the default: the bits of a run then follow from its config and the kind of device
    alone, not from its companions or a stopwatch. On CPUs nothing is lost by it, since a core that
    is busy with one run gains nothing from several. On accelerators with small backbones, "auto" is
    worth its cost: per pair, compiling a second program and a few steps of both.

    Args:
      population: "off"; "auto", which measures both ways; or how many train together at most.
      workdir: the folder of runs, where the choices are kept.
    """

    def __init__(self, population: str | int, workdir: Workdir):
        self.population, self._workdir = population, workdir
        self._chosen: dict[str, Any] = {}
        if population != "off":
            workdir.fetch_file(FILE)
            self._chosen = read_json(workdir.path / FILE) or {}

    def group(self, todo: list[Planned]) -> list[Planned]:
        """Return the runs that could train together with the first one, itself included."""
        if self.population == "off":
            return todo[:1]
        limit = self.population if isinstance(self.population, int) else MAX_AUTO_MEMBERS
        return [planned for planned in todo if _shared(planned) == _shared(todo[0])][:limit]

    def members(self, cell: Cell, group: list[Planned]) -> int | None:
        """Return for how many members the program is compiled; None if that must be measured."""
        choice = self._chosen.get(_name(cell, group[0]))
        if isinstance(choice, dict) and choice.get("asked") == self.population:
            members = choice.get("members")
            limit = self.population if isinstance(self.population, int) else MAX_AUTO_MEMBERS
            if isinstance(members, int) and 1 <= members <= limit:  # else it was edited
                return members
        if self.population == "auto":
            return None
        if len(group) > 1:
            self.choose(cell, group, len(group))
        return len(group)

    def choose(self, cell: Cell, group: list[Planned], members: int, **measured: Any) -> None:
        """Keep a choice.

        Args:
          cell: the pair.
          group: runs that share a program.
          members: how many train together; 1 for none.
          measured: the evidence, or "error".
        """
        choice = {"asked": self.population, "members": members, **measured}
        self._chosen[_name(cell, group[0])] = choice
        write_json(self._workdir.path / FILE, self._chosen)
        self._workdir.publish(FILE)


def _shared(planned: Planned) -> dict[str, Any]:
    return {name: value for name, value in planned.config.items() if name not in MEMBER_SETTINGS}


def _name(cell: Cell, planned: Planned) -> str:
    pair = cell.pair
    return f"{pair.label} {pair.optimizer}, {planned.config['epochs']} epochs"
