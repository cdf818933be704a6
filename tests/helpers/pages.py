"""The pages of the documentation and the code blocks in them."""

import dataclasses
import os
import re
from pathlib import Path

ROOT = Path(os.environ.get("BOCB_JAX_SOURCE", Path(__file__).parents[2]))
PAGES = sorted(
    [*ROOT.glob("*.md"), *(p for p in ROOT.glob("docs/**/*.md") if "_generated" not in p.parts)]
)
_FENCE = re.compile(r"^```(?P<info>[^\n`]*)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block: its language, the words after that, its text and its line on the page."""

    language: str
    words: tuple[str, ...]
    text: str
    line: int

    @property
    def file(self) -> str | None:
        """The name in a first line such as `# mynets.py`: the reader saves such a block."""
        found = re.match(r"# (\S+\.(?:py|csv))\n", self.text)
        return found[1] if found else None


def blocks(page: Path) -> list[Block]:
    """Return the fenced blocks of a page, in order."""
    text = page.read_text("utf-8")
    found = []
    for match in _FENCE.finditer(text):
        language, *words = match["info"].split() or [""]
        found.append(
            Block(language, tuple(words), match["text"], text.count("\n", 0, match.start()))
        )
    return found


def name_of(page: Path) -> str:
    """Return a page's path from the root of the project, for names of tests."""
    return page.relative_to(ROOT).as_posix()
