"""A report as Markdown: the same text and tables as the HTML page, pictures as links."""

import re

from bocb_jax.report.document import Block, Document, Picture, Table, Text, format_value
from bocb_jax.report.heat_map_data import HeatMapData
from bocb_jax.report.style import MARK_LEGEND


def render(document: Document, heat_map: HeatMapData) -> str:
    """Return the whole report; names from the data are escaped, so that none becomes markup."""
    lines = [f"# {_escape(document.title)}", "", _escape(document.source), ""]
    for line in document.verdict:
        lines += [_escape(line), ""]
    if document.warnings:
        lines += ["## What these data cannot say", ""]
        lines += [f"- {_escape(line)}" for line in document.warnings] + [""]
    for section in (*document.sections, *document.behind):
        lines += [f"## {_escape(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block, heat_map)
    return "\n".join(lines).rstrip() + "\n"


def _block(block: Block, heat_map: HeatMapData) -> list[str]:
    if isinstance(block, Text):
        if block.code:
            return [*(f"    {line}" for line in block.lines), ""]
        form = "- {}" if block.listed else "{}\n"
        return [*(form.format(_escape(line)) for line in block.lines), ""]
    if isinstance(block, Table):
        return _table(block)
    if isinstance(block, Picture):
        text = f"{_escape(block.title)}. {_escape(block.text)}"
        return [f"![{text}](pictures/{block.name}.svg)", ""]
    return _heat_map(heat_map)


def _escape(text: str) -> str:
    """Return text on one line, without meaning in Markdown or in the HTML that it may hold."""
    text = " ".join(str(text).split())
    return re.sub(r"([\\`*_\[\]<>|&#!~])", r"\\\1", text).replace("\\<", "&lt;")


def _rows(heads: list[str], rows: list[list[str]], right: list[bool]) -> list[str]:
    """Return the lines of a table; `right` says which columns are aligned to the right."""
    rules = ["---:" if side else ":---" for side in right]
    return ["| " + " | ".join(line) + " |" for line in (heads, rules, *rows)]


def _table(table: Table) -> list[str]:
    if not table.rows:
        return []
    heads = [_escape(column.title) for column in table.columns]
    rows = [
        [
            _escape(format_value(row[column.key], column.kind, row, column.key))
            for column in table.columns
        ]
        for row in table.rows
    ]
    right = [column.kind != "text" for column in table.columns]
    caption = [_escape(table.caption), ""] if table.caption else []
    return [f"### {_escape(table.title)}", "", *caption, *_rows(heads, rows, right), ""]


def _heat_map(heat_map: HeatMapData) -> list[str]:
    score = heat_map.measures[0]
    heads = ["optimizer", *map(_escape, heat_map.backbones)]
    rows = [
        [_escape(name), *line] for name, line in zip(heat_map.optimizers, score.texts, strict=True)
    ]
    note = f"{score.title.partition(',')[0]}; {', '.join(MARK_LEGEND)}"
    right = [False] + [True] * len(heat_map.backbones)
    return [_escape(note), "", *_rows(heads, rows, right), ""]
