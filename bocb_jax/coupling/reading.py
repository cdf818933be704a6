"""Files and data frames of any form as a `RawTable`: named columns of cells, not yet interpreted.

Nothing in a file is executed, and its size is bounded before it is taken apart.
"""

import ast
import csv
import dataclasses
import io
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas

from bocb_jax.errors import UserError
from bocb_jax.storage.files import read_bytes

MOST_BYTES = 2**28  # of text, or of a Parquet file's columns in memory
MOST_CELLS = 20_000_000
MOST_COLUMNS = 20_000
_MOST_NESTED = 3  # objects within one another that become columns such as "config.opt.name"
_SEPARATORS = "\t;,"
_KINDS = {
    b"PK\x03\x04": "an archive or an Excel workbook; save the sheet as CSV",
    b"\x1f\x8b": "compressed; unpack it first",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook; save the sheet as CSV",
    b"%PDF": "a PDF; save the table as CSV",
}


@dataclasses.dataclass(frozen=True)
class RawTable:
    """Cells as a file gives them.

    Attributes:
      name: of the file, for messages.
      columns: header -> cells from top to bottom: texts, numbers or None.
      at: where each row is in the file, such as its line number.
      where: what `at` counts: "line", "record" or "row".
    """

    name: str
    columns: dict[str, list[Any]]
    at: list[int]
    where: str

    def place(self, row: int) -> str:
        """Return where a row is, such as "line 7"."""
        return f"{self.where} {self.at[row]}"


def read_file(path: str | Path) -> RawTable:
    """Read a file of text (separated by commas, semicolons or tabs), JSON, JSON lines or Parquet.

    What it is, is told by its content.

    Raises:
      UserError: it cannot be read, is too large, or is no table.
    """
    name = str(path)
    try:
        content = read_bytes(path, MOST_BYTES)
    except FileNotFoundError:
        raise UserError(f"'{path}' cannot be read: there is no such file.") from None
    if content.startswith(b"PAR1"):
        return read_frame(_parquet(content, name), name)
    for start, kind in _KINDS.items():
        if content.startswith(start):
            raise UserError(f"'{path}' is {kind}.")
    text = _decoded(content, path)
    del content
    if text.lstrip()[:1] in ("{", "["):
        return _of_json(text, name)
    return _of_text(text, name)


def read_frame(frame: pandas.DataFrame, name: str) -> RawTable:
    """Return a data frame as a raw table; an index that counts rows is left out."""
    if not isinstance(frame.index, pandas.RangeIndex):
        unnamed = frame.index.nlevels == 1 and frame.index.name is None
        counts = unnamed and pandas.api.types.is_integer_dtype(frame.index.dtype)
        frame = frame.reset_index(drop=counts, names=[""] if unnamed and not counts else None)
    header = [" ".join(map(str, key)) if isinstance(key, tuple) else str(key) for key in frame]
    _check_header(header, name)
    _check_size(len(frame), len(header), name)
    cells = [frame.iloc[:, i].astype(object) for i in range(len(header))]
    columns = {
        key: column.where(column.notna(), None).tolist()
        for key, column in zip(header, cells, strict=True)
    }
    return RawTable(name, columns, list(range(1, len(frame) + 1)), "row")


def _decoded(content: bytes, path: str | Path) -> str:
    # Excel's "Unicode text" is UTF-16.
    utf16 = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        return content.decode("utf-16" if utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"'{path}' is not text in UTF-8; save it as CSV in UTF-8.") from None


def shown(cell: Any, most: int = 60) -> str:
    """Return a cell for a message: in one line, nothing that acts on a terminal, not long."""
    text = str(cell)
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= most else f"{text[:most]}..."


def _check_header(header: list[str], name: str) -> None:
    seen: set[str] = set()
    for column in header:
        if not column.isprintable():
            raise UserError(f"'{name}' has a column named '{shown(column)}', which is no text.")
        if column in seen:
            raise UserError(f"'{name}' has two columns named '{shown(column)}'.")
        seen.add(column)


def _check_size(rows: int, columns: int, name: str) -> None:
    if columns > MOST_COLUMNS or rows * columns > MOST_CELLS:
        raise UserError(
            f"'{name}' has {rows:,} rows of {columns:,} columns; at most {MOST_COLUMNS:,} columns "
            f"and {MOST_CELLS:,} cells are read."
        )


# -- text ------------------------------------------------------------------------------------------


def _of_text(text: str, name: str) -> RawTable:
    """Read separated text. Lines that begin with # are comments."""
    separator = _separator(text)
    rows: list[list[str]] = []
    at: list[int] = []
    lines = ("\n" if line.startswith("#") else line for line in io.StringIO(text, newline=""))
    # A column of configurations may have cells beyond the module's limit of 131,072 characters.
    limit = csv.field_size_limit(len(text) + 1)
    try:
        reader = csv.reader(lines, delimiter=separator)
        for row in reader:
            values = [value.strip() for value in row]
            if any(values) and not re.fullmatch("sep=.?", row[0]):  # Excel writes "sep=;"
                rows.append(values)
                at.append(reader.line_num)
    except csv.Error as error:
        raise UserError(f"'{name}', line {reader.line_num}: {error}.") from None
    finally:
        csv.field_size_limit(limit)
    if len(rows) < 2:
        raise UserError(f"'{name}' holds no score: it needs a line of names and a line of values.")
    header, *rows = rows
    # Spreadsheets pad with empty columns.
    width = max(len(header), max(map(len, rows)))
    while width > 1 and not any(
        row[width - 1 : width] not in ([], [""]) for row in [header, *rows]
    ):
        width -= 1
    header, rows = header[:width], [row[:width] for row in rows]
    _check_header(header, name)
    _check_size(len(rows), len(header), name)
    for row, line in zip(rows, at[1:], strict=True):
        if len(row) != len(header):
            hint = ""
            if separator == "," and re.search(r"\d,\d", text):
                hint = " If commas are decimal, separate the columns with semicolons."
            raise UserError(
                f"'{name}', line {line}: {len(row)} values, but the first line names "
                f"{len(header)} columns.{hint}"
            )
    columns = {key: list(cells) for key, cells in zip(header, zip(*rows, strict=True), strict=True)}
    return RawTable(name, columns, at[1:], "line")


def _separator(text: str) -> str:
    """Return the separator of the header: a tab, else a semicolon, else a comma."""
    for line in io.StringIO(text):
        if line.strip() and not line.startswith("#"):
            given = re.fullmatch(r"sep=(.)\s*", line)
            if given:
                return given[1]
            unquoted = re.sub(r'"[^"]*"', "", line)
            return next((sign for sign in _SEPARATORS if sign in unquoted), ",")
    return ","


# -- JSON ------------------------------------------------------------------------------------------


def _of_json(text: str, name: str) -> RawTable:
    """Read JSON lines, a list of records, or an object of columns as pandas writes it."""
    try:
        content = _parsed(text)
    except (ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise UserError(f"'{name}' is not valid JSON: {reason}.") from None
    if isinstance(content, dict):
        content = _records_of(content, name)
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UserError(
            f"'{name}' is JSON, but no list of records such as [{{\"backbone\": ...}}]."
        )
    if not content:
        raise UserError(f"'{name}' holds no score: its list of records is empty.")
    records = [_flat(record) for record in content]
    header = list(dict.fromkeys(itertools.chain.from_iterable(records)))
    _check_header(header, name)
    _check_size(len(records), len(header), name)
    columns = {key: [record.get(key) for record in records] for key in header}
    return RawTable(name, columns, list(range(1, len(records) + 1)), "record")


def _parsed(text: str) -> Any:
    """Return the content of JSON, or the list of the records of JSON lines."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats)
    except json.JSONDecodeError as error:
        if not error.msg.startswith("Extra data"):
            raise
    decoder = json.JSONDecoder(object_pairs_hook=_without_repeats)
    found = []
    for number, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                found.append(decoder.decode(line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
    return found


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object names a key twice")
    return found


def _records_of(content: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the records of an object of columns: {"score": {"0": 70}} or {"score": [70]}."""
    if {"columns", "data"} <= set(content):  # pandas' orient "split", and W&B's tables
        header, rows = content["columns"], content["data"]
        if isinstance(header, list) and isinstance(rows, list):
            whole = all(isinstance(row, list) and len(row) == len(header) for row in rows)
            if whole and all(isinstance(key, str) for key in header):
                _check_header(header, name)
                return [dict(zip(header, row, strict=True)) for row in rows]
        raise UserError(f"'{name}': its rows do not fit its columns.")
    if content and all(isinstance(column, list) for column in content.values()):
        lengths = {len(column) for column in content.values()}
        if len(lengths) > 1:
            raise UserError(f"'{name}': its columns have different lengths.")
        return [dict(zip(content, row, strict=True)) for row in zip(*content.values(), strict=True)]
    if content and all(isinstance(column, dict) for column in content.values()):
        if all(key.isdecimal() for key in content):  # pandas' orient "index"
            return list(content.values())
        index = list(dict.fromkeys(key for column in content.values() for key in column))
        counts = all(key.isdecimal() for key in index)
        return [
            ({} if counts else {"": key})
            | {header: column.get(key) for header, column in content.items()}
            for key in index
        ]
    return [dict(content)]


def _flat(record: Mapping[str, Any], prefix: str = "", depth: int = 0) -> dict[str, Any]:
    """Return a record with objects in it as columns with dotted names."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, dict) and depth < _MOST_NESTED:
            found |= _flat(value, f"{prefix}{key}.", depth + 1)
        elif isinstance(value, dict | list):
            found[prefix + key] = str(value)[:1000]
        else:
            found[prefix + key] = value
    return found


def opened(table: RawTable, names: Iterable[str]) -> RawTable:
    """Return a table in which columns of objects, as W&B's API exports them, are columns each.

    Args:
      table: any.
      names: columns that may hold objects, in lower case, such as "config".
    """
    columns: dict[str, list[Any]] = {}
    for header, cells in table.columns.items():
        found = _objects(cells) if header.lower() in names else None
        if found is None:
            columns[header] = cells
            continue
        for key in dict.fromkeys(itertools.chain.from_iterable(found)):
            columns[f"{header}.{key}"] = [record.get(key) for record in found]
    return dataclasses.replace(table, columns=columns)


def _objects(cells: Iterable[Any]) -> list[dict[str, Any]] | None:
    """Return cells as flat records; None if any is not the text of an object."""
    found = []
    for cell in cells:
        if not isinstance(cell, str) or not cell.startswith("{"):
            return None
        record = next(_literals(cell), None)
        if not isinstance(record, dict) or not all(isinstance(key, str) for key in record):
            return None
        found.append(_flat(record))
    return found


def _literals(text: str) -> Iterator[Any]:
    """Yield what a text is as JSON, or as a literal of Python; nothing is called or looked up."""
    for read in (json.loads, ast.literal_eval):
        try:
            yield read(text)
        except (ValueError, SyntaxError, RecursionError, MemoryError, TypeError):
            continue


# -- Parquet ---------------------------------------------------------------------------------------


def _parquet(content: bytes, path: str) -> pandas.DataFrame:
    """Read a Parquet file batch by batch, so that a small file cannot fill the memory."""
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(content))
        _check_size(file.metadata.num_rows, file.metadata.num_columns, path)
        batches, size = [], 0
        for batch in file.iter_batches(batch_size=1024):
            size += batch.nbytes
            if size > MOST_BYTES:
                raise UserError(
                    f"'{path}' has more than {MOST_BYTES // 2**20} MiB of values; it is no table "
                    "of scores."
                )
            batches.append(batch)
        return pyarrow.Table.from_batches(batches, schema=file.schema_arrow).to_pandas()
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise UserError(f"'{path}' is not a Parquet file: {reason}.") from None
