"""A report as one HTML file, which fetches nothing and in which no name becomes markup."""

import base64
import hashlib
import importlib.resources
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any
from xml.etree import ElementTree

from bocb_jax.report.document import Block, Document, Picture, Table, Text, format_value
from bocb_jax.report.heat_map_data import HeatMapData, Measure, palette
from bocb_jax.report.style import INK, MARK_LEGEND, PAPER

_FILES = importlib.resources.files(__package__)
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "http://www.w3.org/1999/xlink"


def render(document: Document, heat_map: HeatMapData, pictures: Mapping[str, str]) -> str:
    """Return the whole page.

    Its content security policy forbids every fetch, and every script but the page's own.

    Args:
      document: from `sections.build_document`.
      heat_map: of the same analysis.
      pictures: SVG source of each picture, by name.
    """
    script = _FILES.joinpath("report.js").read_text("utf-8")
    style = _FILES.joinpath("report.css").read_text("utf-8") + palette()
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        "default-src 'none'; style-src 'unsafe-inline'; img-src data:; "
        f"script-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )
    parts = ['<section class="verdict" id="verdict" aria-label="Verdict">']
    parts += [_paragraph(line) for line in document.verdict[:1]]
    parts.append(_tiles(document.tiles))
    parts += [_paragraph(line) for line in document.verdict[1:]]
    parts += ["</section>", _warnings(document.warnings)]
    links = [("verdict", "Verdict")]
    for section in document.sections:
        parts.append(f'<section id="{section.name}"><h2>{escape(section.title)}</h2>')
        parts += [_block(block, heat_map, pictures) for block in section.blocks]
        parts.append("</section>")
        links.append((section.name, section.title))
    if document.behind:
        parts.append('<section id="statistics"><h2>The statistics behind this</h2>')
        for section in document.behind:
            title = f"<summary><h3>{escape(section.title)}</h3></summary>"
            parts.append(f'<details class="part" id="{section.name}">{title}')
            parts += [_block(block, heat_map, pictures) for block in section.blocks]
            parts.append("</details>")
        parts.append("</section>")
        links.append(("statistics", "Statistics"))
    anchors = "".join(f'<a href="#{name}">{escape(title)}</a>' for name, title in links)
    title = escape(document.title)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(policy)}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="generator" content="bocb_jax">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<a class="skip" href="#verdict">To the verdict</a>
<header><button id="theme" type="button" hidden>light / dark</button>
<h1>{title}</h1><p class="source">{escape(document.source)}</p></header>
<nav aria-label="Sections"><div>{anchors}</div></nav>
<main>
{"".join(parts)}
</main>
<footer><p>Made by bocb_jax. The same content as data: report.json; as text: report.md.</p></footer>
<div id="card" hidden></div>
<div id="said" class="skip" role="status"></div>
<script type="application/json" id="data">{_json(heat_map.to_dict())}</script>
<script>{script}</script>
</body>
</html>
"""


def _json(value: Any) -> str:
    """Return JSON that cannot close the script element around it."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _paragraph(line: str) -> str:
    return f"<p>{escape(line)}</p>"


def _tiles(tiles: Sequence[tuple[str, str]]) -> str:
    items = []
    for number, meaning in tiles:
        look = ' class="long"' if len(number) > 12 else ""
        shown = f"<strong{look}>{escape(number)}</strong>"
        items.append(f"<li>{shown}<span>{escape(meaning)}</span></li>")
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _warnings(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(line)}</li>" for line in warnings)
    title = f"<summary><h2>What these data cannot say ({len(warnings)})</h2></summary>"
    return f'<details class="warnings" id="warnings">{title}<ul>{items}</ul></details>'


def _block(block: Block, heat_map: HeatMapData, pictures: Mapping[str, str]) -> str:
    if isinstance(block, Text):
        if block.code:
            return "".join(f'<pre tabindex="0">{escape(line)}</pre>' for line in block.lines)
        if block.listed:
            return f"<ul>{''.join(f'<li>{escape(line)}</li>' for line in block.lines)}</ul>"
        return "".join(map(_paragraph, block.lines))
    if isinstance(block, Table):
        return _table(block) if block.rows else ""
    if isinstance(block, Picture):
        return _picture(block, pictures[block.name]) if block.name in pictures else ""
    return _heat_map(heat_map)


# --- Tables -------------------------------------------------------------------------------------


def _table(table: Table) -> str:
    heads = "".join(
        f'<th scope="col" aria-sort="none" class="{"text" if column.kind == "text" else ""}"'
        f'{_title(column.help)}><button type="button">{escape(column.title)}</button></th>'
        for column in table.columns
    )
    rows = "".join(f"<tr>{_row(table, row)}</tr>" for row in table.rows)
    caption = f'<p class="caption">{escape(table.caption)}</p>' if table.caption else ""
    name = escape(table.title)
    look = "data stacked" if table.stacked else "data"
    body = (
        f'{caption}<div class="scroll" tabindex="0" role="region" aria-label="{name}">'
        f'<table class="{look}"><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
    )
    if table.folded:
        return f"<details><summary>{name} ({len(table.rows)} rows)</summary>{body}</details>"
    return f"<h3>{name}</h3>{body}"


def _row(table: Table, row: Mapping[str, Any]) -> str:
    """Return the cells of a row; the first one is its heading."""
    cells = []
    for number, column in enumerate(table.columns):
        value = row[column.key]
        shown = escape(format_value(value, column.kind, row, column.key))
        is_text = column.kind == "text"
        head = f' data-head="{escape(column.title)}"' if table.stacked else ""
        if table.stacked and not shown:
            head += " data-empty"
        if number == 0:
            sort = "" if is_text else _sort_value(value)
            cells.append(f'<th scope="row"{_title(shown, raw=True)}{sort}>{shown}</th>')
        elif is_text:
            long = " long" if len(shown) > 24 else ""
            cells.append(f'<td class="text{long}"{head}>{shown}</td>')
        else:
            cells.append(f"<td{_sort_value(value)}{head}>{shown}</td>")
    return "".join(cells)


def _title(text: str, *, raw: bool = False) -> str:
    """Return a title attribute, which browsers show as a tooltip; `raw`: already escaped."""
    return f' title="{text if raw else escape(text)}"' if text else ""


def _sort_value(value: Any) -> str:
    """Return the attribute by which report.js sorts a cell; empty values come last."""
    known = value is not None and not isinstance(value, str) and math.isfinite(float(value))
    return f' data-v="{float(value):.10g}"' if known else ' data-v=""'


# --- The heat map -------------------------------------------------------------------------------


def _heat_map(heat_map: HeatMapData) -> str:
    score = heat_map.measures[0]
    heads = "".join(
        f'<th scope="col" aria-sort="none" data-b="{b}"{_title(name)}>'
        f'<button type="button">{escape(name)}</button></th>'
        for b, name in enumerate(heat_map.backbones)
    )
    rows = []
    for o, name in enumerate(heat_map.optimizers):
        cells = []
        for b in range(len(heat_map.backbones)):
            look = score.colours[o][b] + (" strong" if score.strong[o][b] else "")
            shown = escape(score.texts[o][b])
            cells.append(f'<td class="{look}" tabindex="-1" data-o="{o}" data-b="{b}">{shown}</td>')
        rows.append(
            f'<tr data-o="{o}"><th scope="row" aria-sort="none"{_title(name)}>'
            f'<button type="button">{escape(name)}</button></th>{"".join(cells)}</tr>'
        )
    options = "".join(
        f'<option value="{m.key}">{escape(m.title)}</option>' for m in heat_map.measures
    )
    legends = "".join(
        _legend(measure, hidden=measure is not score) for measure in heat_map.measures
    )
    return (
        '<div class="controls" hidden><label>Show <select id="measure">'
        f'{options}</select></label><button type="button" id="unsort">original order</button>'
        "<span>Click a name to sort by it; hover, touch or use the arrow keys to see a cell's "
        "details.</span></div>"
        '<div class="scroll heat" role="region" aria-label="Heat map of scores">'
        f'<table id="heat"><thead><tr><th></th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{legends}"
    )


def _legend(measure: Measure, *, hidden: bool) -> str:
    items = "".join(
        f'<li><i class="{look}"></i>{escape(meaning)}</li>' for look, meaning in measure.legend
    )
    if measure.key == "score":
        items += "".join(f"<li>{escape(text)}</li>" for text in MARK_LEGEND)
    attribute = " hidden" if hidden else ""
    return f'<ul class="legend" data-measure="{measure.key}"{attribute}>{items}</ul>'


# --- Pictures -----------------------------------------------------------------------------------


def _picture(block: Picture, svg: str) -> str:
    title = escape(block.title)
    heading = "" if block.folded else f"<h3>{title}</h3>"
    figure = (
        f"<figure>{heading}"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{title}">{inline(svg, block)}'
        f"</div><figcaption>{escape(block.text)}</figcaption></figure>"
    )
    if block.folded:
        return f"<details><summary>{title}</summary>{figure}</details>"
    return figure


def inline(svg: str, block: Picture) -> str:
    """Return an SVG to embed in the page: with unique ids, and in the colours of the page.

    Args:
      svg: source of the picture.
      block: its name, which becomes the prefix of its ids, and its description.
    """
    svg = svg.replace(INK, "currentColor").replace(PAPER, "none")
    root = ElementTree.fromstring(svg)
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag.endswith("}metadata"):
                parent.remove(child)
    for node in root.iter():
        for name, value in list(node.attrib.items()):
            if name == "id":
                node.set(name, f"{block.name}-{value}")
            elif name == f"{{{_XLINK}}}href" and value.startswith("#"):
                del node.attrib[name]
                node.set("href", f"#{block.name}-{value[1:]}")
            elif "url(#" in value:
                node.set(name, value.replace("url(#", f"url(#{block.name}-"))
    root.set("role", "img")
    root.set("aria-label", f"{block.title}. {block.text}")
    for size in ("width", "height"):
        root.attrib.pop(size, None)
    ElementTree.register_namespace("", _SVG)
    return ElementTree.tostring(root, encoding="unicode")
