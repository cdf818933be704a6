"""Tables of the documentation whose owner is the code: settings, backbones, optimizers, recipes."""

import ast
import dataclasses
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from bocb_jax import config, list_models, list_optimizers, model_card, optimizer_info, recipes
from bocb_jax.coupling.result import Analysis
from bocb_jax.study import spec


def write(folder: Path) -> None:
    """Write every table to `folder` as a Markdown file that pages include."""
    folder.mkdir(exist_ok=True)
    pages = {
        "train_settings": _settings(config.TrainConfig, "--"),
        "study_settings": _settings(spec.Study, ""),
        "analysis": _table(
            ("field", "content"), ((f"`{field.name}`", note) for field, note in _notes(Analysis))
        ),
        "backbones": _backbones(),
        "optimizers": _optimizers(),
        "recipes": _recipes(),
    }
    for name, text in pages.items():
        path = folder / f"{name}.md"
        if not path.exists() or path.read_text() != text:  # an unchanged page is not rebuilt
            path.write_text(text)


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    escaped = ([str(cell).replace("|", "\\|") for cell in line] for line in lines)
    return "".join(f"| {' | '.join(line)} |\n" for line in escaped)


def _settings(kind: type, prefix: str, name: str = "") -> str:
    """Return a table of a config's own fields, then a section for each nested config."""
    rows, nested = [], []
    for field, note in _notes(kind):
        default = field.default
        nested_in = default[0] if isinstance(default, tuple) and default else default
        if dataclasses.is_dataclass(nested_in):
            nested.append((f"{name}{field.name}.", type(nested_in)))
            continue
        shown = "" if default in (None, dataclasses.MISSING) else f"`{default!r}`"
        flag = f"{prefix}{name}{field.name}"
        rows.append((f"`{flag.replace('_', '-') if prefix else flag}`", shown, note))
    text = _table(("setting", "default", "meaning"), rows)
    for path, inner in nested:
        doc = inspect.getdoc(inner).partition("\n")[0]
        text += f"\n### `{path}*`\n\n{doc}\n\n{_settings(inner, prefix, path)}"
    return text


def _notes(kind: type) -> Iterator[tuple[dataclasses.Field, str]]:
    """Yield the fields of a dataclass with the comment above or beside each."""
    lines = inspect.getsource(kind).splitlines()
    tree = ast.parse(inspect.getsource(kind)).body[0]
    where = {n.target.id: n for n in tree.body if isinstance(n, ast.AnnAssign)}
    for field in dataclasses.fields(kind):
        node = where[field.name]
        beside = lines[node.end_lineno - 1][node.end_col_offset :].strip()
        before = reversed(lines[: node.lineno - 1])
        above = itertools.takewhile(lambda line: line.lstrip().startswith("#"), before)
        note = beside or " ".join(line.strip() for line in reversed(list(above)))
        yield field, re.sub(r"(^|\s)#\s*", " ", note).strip()


def _backbones() -> str:
    rows = []
    for name in list_models():
        card = model_card(name)
        if name.endswith("_mini") or card.num_params:
            rows.append((
                f"`{name}`",
                f"{card.num_params:,}" if card.num_params else "",
                f"{card.top1:.1f}" if card.top1 else "",
                card.reference,
                f"{card.recipe}, {card.input_size} px" if card.recipe else "",
            ))  # fmt: skip
    head = ("name", "parameters", "top-1", "reference", "the paper's recipe on CIFAR-100")
    return _table(head, rows)


def _optimizers() -> str:
    rows = []
    for name in list_optimizers():
        info = optimizer_info(name)
        decay = info.decays[0] if info.decays else "none"
        rates = f"{info.default_learning_rate:g}", f"{info.default_weight_decay:g} ({decay})"
        rows.append((f"`{name}`", info.category, *rates, info.reference, info.numeric_class))
    head = ("name", "category", "learning rate", "weight decay", "reference", "parity")
    return _table(head, rows)


def _recipes() -> str:
    rows = [
        (f"`{row.recipe}`", row.dataset, f"`{row.setting}`", f"`{row.ours}`", f"`{row.paper}`")
        for row in recipes.compare()
        if row.reason
    ]
    return _table(("recipe", "data set", "setting", "here", "paper"), rows)
