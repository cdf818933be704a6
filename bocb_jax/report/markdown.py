"""A report as Markdown: the same sentences and tables as the page, pictures as links."""

import re

from bocb_jax.report.document import Document, Picture, Table, Text, text
from bocb_jax.report.heat import HeatData


def render(document: Document, heat: HeatData) -> str:
    """The whole report; names from the data are escaped, so that none becomes markup."""
    lines = [f"# {_said(document.title)}", "", _said(document.source), ""]
    for line in document.verdict:
        lines += [_said(line), ""]
    if document.warnings:
        lines += ["## What these data cannot say", ""]
        lines += [f"- {_said(line)}" for line in document.warnings] + [""]
    for section in document.sections:
        lines += [f"## {_said(section.title)}", ""]
        for block in section.blocks:
            if isinstance(block, Text):
                lines += [f"- {_said(x)}" if block.listed else f"{_said(x)}\n" for x in block.lines]
                lines.append("")
            elif isinstance(block, Table):
                lines += _table(block)
            elif isinstance(block, Picture):
                lines += [
                    f"![{_said(block.title)}. {_said(block.text)}](pictures/{block.name}.svg)",
                    "",
                ]
            else:
                lines += _heat_map(heat)
    return "\n".join(lines).rstrip() + "\n"


def _said(words: str) -> str:
    """Text that Markdown, and the HTML that it may hold, take for text."""
    words = " ".join(str(words).split())
    return re.sub(r"([\\`*_\[\]<>|&#!~])", r"\\\1", words).replace("\\<", "&lt;")


def _rows(heads: list[str], rows: list[list[str]], right: list[bool]) -> list[str]:
    rules = ["---:" if side else ":---" for side in right]
    return ["| " + " | ".join(line) + " |" for line in (heads, rules, *rows)]


def _table(table: Table) -> list[str]:
    if not table.rows:
        return []
    heads = [_said(column.title) for column in table.columns]
    rows = [
        [_said(text(row[column.key], column.kind, row, column.key)) for column in table.columns]
        for row in table.rows
    ]
    right = [column.kind != "text" for column in table.columns]
    caption = [_said(table.caption), ""] if table.caption else []
    return [f"### {_said(table.title)}", "", *caption, *_rows(heads, rows, right), ""]


def _heat_map(heat: HeatData) -> list[str]:
    measure = heat.measures[0]
    heads = ["optimizer", *map(_said, heat.backbones)]
    rows = [[_said(name), *measure["texts"][o]] for o, name in enumerate(heat.optimizers)]
    note = f"{measure['title'].partition(',')[0]}; ★ best, ▲ top 4, ▼ outlier, ° one seed"
    return [_said(note), "", *_rows(heads, rows, [False] + [True] * len(heat.backbones)), ""]
