"""A row of the table of bad input: what is given, and how it is refused."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Row:
    """One command on bad input. It runs in an empty folder.

    Attributes:
      id: unique within its part.
      arguments: what follows `bocb`.
      says: regular expression that stderr must match, all white space taken as single spaces.
      code: the exit code.
      files: name -> content of files in the folder.
      prepare: makes what is no plain file (links, pipes, runs); takes the folder.
      environ: environment variables that are set.
      writes: whether the command may write files; else the folder must stay as it was.
      script: also run through the installed `bocb`, as a process of its own.
      script_only: run through the installed `bocb` alone, since it depends on the process.
    """

    id: str
    arguments: Sequence[str]
    says: str
    code: int = 2
    files: Mapping[str, str | bytes] = dataclasses.field(default_factory=dict)
    prepare: Callable[[Path], None] | None = None
    environ: Mapping[str, str] = dataclasses.field(default_factory=dict)
    writes: bool = False
    script: bool = False
    script_only: bool = False

    def make_files(self, folder: Path) -> None:
        """Put the files of the row into its folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            else:
                path.write_text(content, encoding="utf-8")
        if self.prepare:
            self.prepare(folder)
