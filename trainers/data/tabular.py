"""Tables in files as rows, whatever they hold: delimited columns, JSON, parquet and Excel, told by what is in a file.

What the columns mean is for those who read texts or pictures.
"""

import zipfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from trainers.data.delimited import PEEK, Delimited, NamesColumns, examples, is_data, unique
from trainers.data.json_rows import json_rows
from trainers.data.reading import Reading
from trainers.data.rows import (
    ARROW,
    BadRows,
    Lines,
    Row,
    numbered_lines,
    parquet_batches,
    parquet_columns,
    parquet_metadata,
    short,
)

Form = Literal[
    "columns", "JSON", "parquet", "Excel", "label first", "fastText", "trees", "class folders", "a file for each class",
    "a file of labels",
]  # fmt: skip


@dataclass(frozen=True)
class Table:
    """A file, or a folder of class folders, as rows."""

    path: Path
    form: Form
    names: list[str]
    """Its columns; "1", "2" and so on where it names none."""
    read: Callable[[Collection[str], BadRows], Iterator[Row]]
    """The rows with at least the given columns; rows that cannot be read go to `BadRows`."""
    has_header: bool = True
    """Whether the file itself names its columns."""
    examples: str = ""
    """Of a file that does not, its columns by number with what the first row holds."""

    @cached_property
    def head(self) -> list[dict[str, Any]]:
        """The first rows that can be read."""
        return [row for _, row in islice(self.read(self.names, BadRows("skip")), PEEK)]

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Names of the ids in a column, or in its lists, where the hub's libraries wrote them into parquet."""
        if self.form != "parquet":
            return None
        features = ((parquet_metadata(self.path) or {}).get("info") or {}).get("features") or {}
        feature = features.get(column)
        while isinstance(feature, dict) and "feature" in feature:
            feature = feature["feature"]
        return tuple(feature["names"]) if isinstance(feature, dict) and feature.get("names") else None


def read_stored(path: Path, reading: Reading) -> Table | Lines:
    """The table in a file that is parquet, Excel or JSON, or the lines of another text.

    Raises:
        ValueError: it is damaged, or in no form that is read.
        ModuleNotFoundError: a package that reads it is not installed; the message names it.
    """
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1" or path.suffix in (".parquet", ARROW):
        return Table(path, "parquet", parquet_columns(path), _Parquet(path))
    if magic == b"PK\x03\x04":
        return _excel(path)
    lines = list(numbered_lines(path, encoding=reading.encoding, keep_ends=True))
    first = next((line.strip() for _, line in lines if line.strip()), b"")
    if first[:1] in (b"{", b"[") and not reading.delimiter:
        return _json(path, lines)
    return lines


def read_delimited(
    path: Path,
    lines: Lines,
    reading: Reading,
    names_columns: NamesColumns,
    is_header: Callable[[Sequence[Sequence[str]]], bool] | None = None,
) -> tuple[Table, list[list[str]]]:
    """The table of delimited text, and its first records.

    Args:
        path: the file.
        lines: its lines, with their ends.
        reading: what the user says.
        names_columns: tells names of columns by themselves.
        is_header: whether the first of some records names the columns; by default where `names_columns` says so, or
            where it does not look like the records below it.
    """
    reader = Delimited.open(path, lines, reading.separator, names_columns)
    head = reader.head()
    if not head:
        return Table(path, "columns", [], reader), head
    has_header = is_header(head) if is_header else names_columns(head[0]) or not is_data(head)
    names = unique(head[0]) if has_header else [str(number) for number in range(1, len(head[0]) + 1)]
    shown = "" if has_header else examples(head)
    return Table(path, "columns", names, reader.named(names, has_header), has_header, shown), head


def _json(path: Path, lines: Lines) -> Table:
    read = json_rows(path, lines)
    names: dict[str, None] = {}
    for _, row in islice(read((), BadRows("skip")), PEEK):
        names.update(dict.fromkeys(row))
    return Table(path, "JSON", list(names), read)


@dataclass(frozen=True)
class _Parquet:
    """Rows of a parquet file, numbered from 1."""

    path: Path

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        rows = (row for batch in parquet_batches(self.path, list(columns)) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


def _excel(path: Path) -> Table:
    """The first sheet of an Excel file."""
    try:
        with zipfile.ZipFile(path) as file:
            members = file.namelist()
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged or cut short: {error}. Fetch it again.") from error
    if "xl/workbook.xml" not in members:
        raise ValueError(f"{path} is a zip. Unpack it, and give what is in it.")
    try:
        from openpyxl import load_workbook
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is an Excel file, which needs openpyxl: pip install 'lora-core[xlsx]'", name=error.name
        ) from error
    book = load_workbook(path, read_only=True, data_only=True)
    sheets = {sheet.title: list(sheet.iter_rows(values_only=True)) for sheet in book.worksheets}
    book.close()
    filled = {title: rows for title, rows in sheets.items() if any(any(row) for row in rows)}
    if len(filled) != 1:
        raise ValueError(f"{path} has the filled sheets {short(list(filled))}, expected one. Save each as a file.")
    ((_, rows),) = filled.items()
    names = unique(["" if cell is None else str(cell) for cell in rows[0]])
    return Table(path, "Excel", names, _ExcelRows(names, rows[1:]))


@dataclass(frozen=True)
class _ExcelRows:
    """Rows of cells under a header; empty ones are passed over."""

    names: list[str]
    rows: list[tuple[Any, ...]]

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, cells in enumerate(self.rows, start=2):
            if any(cell is not None for cell in cells):
                yield number, dict(zip(self.names, cells, strict=False))
