"""The registry behind the names of models, optimizers and data sets.

Standard library only, so that anything may import it. An entry is registered by the package when
it is imported, by user code with a decorator, or by another installed distribution as an entry
point: `Registry.get` finds these. A name may also be an import path (`mypkg.nets:MyNet`), which
only `Registry.resolve` follows. Importing runs code, so `resolve` is for what a person gave: on the
command line, in a config or study of their own, in Python. What was read from the files of a run,
which may come from somebody else, goes to `get`.
"""

import difflib
import fnmatch
import importlib
import importlib.metadata
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, TypeVar

from bocb_jax.errors import UnknownName, UserError

T = TypeVar("T")

MAX_LISTED = 20  # names in a message


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
        """Return the entry of a registered name or alias; no import path is followed.

        Raises:
          UnknownName: no entry has this name, or it is an import path.
        """
        self._fill()
        found = self._find(name)
        if found is not None:
            return found
        if ":" in name:
            raise UnknownName(
                f"The {self.kind} '{name}' is not registered. Import paths are followed on the "
                "command line, in your own config or study and in Python, never from a file of a "
                "run."
            )
        raise UnknownName(self._unknown(name))

    def resolve(self, name: str) -> T:
        """Return the entry of a name, alias or import path (`package.module:attribute`).

        An import path runs code: call this only with what the user of this process gave.

        Raises:
          UnknownName: no entry has this name, or the path leads nowhere.
          UserError: the module cannot be imported, or what it holds is no such thing.
        """
        self._fill()
        if ":" in name and self._find(name) is None:
            return self._adapt(name, _import_path(name, self.kind))
        return self.get(name)

    def _find(self, name: str) -> T | None:
        name = self._aliases.get(name, name)
        if name in self._entries:
            return self._entries[name]
        for point in self._points():
            if point.name == name:
                return self.register(name, self._adapt(name, _load(point, self.kind)))
        return None

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


def _import_path(path: str, kind: str) -> object:
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in [*module_name.split("."), attribute]):
        raise UnknownName(
            f"There is no {kind} '{path}': an import path is package.module:name, such as "
            "mynets:MyNet."
        )
    _find_beside(module_name.partition(".")[0])
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except ModuleNotFoundError as error:
        raise UnknownName(
            f"There is no {kind} '{path}': the module '{error.name}' cannot be imported."
        ) from error
    except AttributeError as error:
        if hasattr(sys.modules.get(module_name), attribute) or module_name not in sys.modules:
            raise _failed_import(path, kind, error) from error
        raise UnknownName(
            f"There is no {kind} '{path}': {module_name} has no attribute '{attribute}'."
        ) from error
    except Exception as error:
        raise _failed_import(path, kind, error) from error


def _find_beside(package: str) -> None:
    """Let a package be imported from the current folder if it is not installed.

    The command `bocb`, unlike `python -m`, starts without that folder in `sys.path`. It is appended
    as the last entry, so that no file in it hides a library, and only for an import path that the
    user gave.
    """
    here = os.getcwd()
    if package in sys.modules or here in sys.path:
        return
    if importlib.util.find_spec(package) is None:
        sys.path.append(here)
        importlib.invalidate_caches()


def _load(point: importlib.metadata.EntryPoint, kind: str) -> object:
    try:
        return point.load()
    except Exception as error:
        raise _failed_import(point.value, kind, error) from error


def _failed_import(path: str, kind: str, error: Exception) -> UserError:
    """Return the error that says where an import failed."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return UserError(
        f"The {kind} '{path}' cannot be imported: {type(error).__name__}: {error}{where}."
    )
