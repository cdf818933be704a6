"""The registry behind the names of models, optimizers and data sets.

Standard library only, so that anything may import it. An entry comes from one of four places: the
package registers it when imported, user code registers it with a decorator, another distribution
offers it as an entry point, or the name is an import path (`mypkg.nets:MyNet`).
"""

import difflib
import fnmatch
import importlib
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from bocb_jax.errors import UnknownName, UserError

T = TypeVar("T")

MAX_LISTED = 50  # names in a message


class Registry(Generic[T]):
    """A table of named entries of one kind.

    Args:
      kind: what an entry is, in the singular ("model"); used in messages.
      package: module that fills the registry when it is imported.
      entry_points: entry-point group through which other distributions add entries.
      adapt: turns an object found by import path or entry point into an entry.
    """

    def __init__(
        self,
        kind: str,
        *,
        package: str | None = None,
        entry_points: str | None = None,
        adapt: Callable[[str, Any], T] | None = None,
    ):
        self.kind = kind
        self._package = package
        self._entry_point_group = entry_points
        self._adapt: Callable[[str, Any], T] = adapt or (lambda name, found: found)
        self._entries: dict[str, T] = {}
        self._aliases: dict[str, str] = {}

    def register(self, name: str, entry: T, *, aliases: tuple[str, ...] = ()) -> T:
        """Add an entry and return it.

        Raises:
          UserError: a name is taken; nothing is replaced silently.
        """
        for new in (name, *aliases):
            if new in self._entries or new in self._aliases:
                raise UserError(
                    f"The {self.kind} name '{new}' is registered already; choose another."
                )
        self._entries[name] = entry
        self._aliases.update(dict.fromkeys(aliases, name))
        return entry

    def get(self, name: str) -> T:
        """Return the entry of a name, alias or import path (`package.module:attribute`).

        Raises:
          UnknownName: there is none.
        """
        self._fill()
        if ":" in name and name not in self._entries:
            return self._adapt(name, _import_path(name, self.kind))
        name = self._aliases.get(name, name)
        if name in self._entries:
            return self._entries[name]
        for point in self._points():
            if point.name == name:
                return self.register(name, self._adapt(name, point.load()))
        raise UnknownName(self._unknown(name))

    def names(self, pattern: str = "*") -> list[str]:
        """Return the sorted names that match a shell pattern such as "conv*"; no aliases."""
        self._fill()
        known = set(self._entries) | {point.name for point in self._points()}
        return sorted(fnmatch.filter(known, pattern))

    def canonical(self, name: str) -> str:
        """Return the name behind an alias, and any other name as it is."""
        self._fill()
        return self._aliases.get(name, name)

    def __contains__(self, name: str) -> bool:
        return self.canonical(name) in self.names()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())

    def _fill(self) -> None:
        if self._package:
            importlib.import_module(self._package)

    def _points(self) -> Iterable[importlib.metadata.EntryPoint]:
        if not self._entry_point_group:
            return ()
        return importlib.metadata.entry_points(group=self._entry_point_group)

    def _unknown(self, name: str) -> str:
        known = [*self.names(), *self._aliases]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        if near:
            hint = f"Did you mean {' or '.join(near)}?"
        elif len(known) <= MAX_LISTED:
            hint = f"Known: {', '.join(self.names())}."
        else:
            hint = f"`bocb {self.kind}s --all` lists the {len(self.names())} known ones."
        return f"There is no {self.kind} '{name}'. {hint}"


def _import_path(path: str, kind: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UnknownName(
            f"There is no {kind} '{path}': the module '{error.name}' cannot be imported."
        ) from error
    except AttributeError as error:
        raise UnknownName(
            f"There is no {kind} '{path}': {module_name} has no attribute '{attribute}'."
        ) from error
