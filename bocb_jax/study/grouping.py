"""How many runs of a pair train together, and what was measured to decide it.

    populations.json     "PAIR, EPOCHS epochs": "asked", "members", and figures

The choice is made once for each program and kept, so that a sweep that goes on does as before. A
program is compiled for one number of places; a group that fills half of them is trained in it.
"""

from typing import Any

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_json, write_json
from bocb_jax.storage.remote import Workdir
from bocb_jax.study.plan import Cell, Planned

FILE = "populations.json"
LARGEST = 8  # members that "auto" tries
OWN = ("lr", "weight_decay", "seed")  # what runs of a pair differ in where they can train together


def population_size(text: str) -> str | int:
    """The value of `--population`: "auto", "off" or a number.

    Raises:
      UserError: it is none of these.
    """
    if text in ("auto", "off"):
        return text
    if text.isdecimal() and int(text) > 1:
        return int(text)
    raise UserError(f"--population is {text!r}; it must be auto, off, or a number above 1.")


class Populations:
    """The choices of a sweep.

    Off is what a sweep does unless told otherwise: a run's bits then follow from its config and the
    kind of device, and not from what it was trained with or from a stopwatch. On CPUs nothing is
    lost by it, for a core that is busy with one run gains nothing from several; on accelerators,
    with small backbones, "auto" is worth its measurement: a compilation of a second program, and a
    few steps of both, for each pair.

    Args:
      asked: "off"; "auto", which takes the faster of one by one and together; or how many train
        together at most.
      workdir: where the choices are kept.
    """

    def __init__(self, asked: str | int, workdir: Workdir):
        self.asked, self._workdir = asked, workdir
        self._chosen = {}
        if asked != "off":
            workdir.bring(FILE)
            self._chosen = read_json(workdir.path / FILE) or {}

    def group(self, todo: list[Planned]) -> list[Planned]:
        """The runs that could train together with the first: those that share its program."""
        if self.asked == "off":
            return todo[:1]
        first, *_ = todo
        limit = LARGEST if self.asked == "auto" else self.asked
        return [planned for planned in todo if _shared(planned) == _shared(first)][:limit]

    def places(self, cell: Cell, group: list[Planned]) -> int | None:
        """For how many members the program is compiled; None: that is to be measured."""
        found = self._chosen.get(_name(cell, group[0]))
        if found and found["asked"] == self.asked:
            return found["members"]
        if self.asked == "auto":
            return None
        if len(group) > 1:
            self.choose(cell, group, len(group))
        return len(group)

    def choose(self, cell: Cell, group: list[Planned], members: int, **measured: Any) -> None:
        """Keeps a choice.

        Args:
          cell: the pair.
          group: runs of one program.
          members: that train together; 1 for none.
          measured: what speaks for it.
        """
        choice = {"asked": self.asked, "members": members, **measured}
        self._chosen[_name(cell, group[0])] = choice
        write_json(self._workdir.path / FILE, self._chosen)
        self._workdir.publish(FILE)


def _shared(planned: Planned) -> dict[str, Any]:
    return {name: value for name, value in planned.settings.items() if name not in OWN}


def _name(cell: Cell, planned: Planned) -> str:
    pair = cell.pair
    return f"{pair.label} {pair.optimizer}, {planned.settings['epochs']} epochs"
