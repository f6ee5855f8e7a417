"""Tables of pictures: CSV, JSON lines or parquet, one row a picture, read as rows whatever the columns are called.

What the columns mean, `columns` finds; where a picture lies that a row names, `paths`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from trainers.data.images.decode import IMAGE_SUFFIXES
from trainers.data.reading import Reading
from trainers.data.rows import (
    json_row,
    numbered_lines,
    parquet_batches,
    parquet_columns,
    parquet_metadata,
    short,
)

CSV_SUFFIXES = (".csv", ".tsv")
JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
PARQUET_SUFFIX = ".parquet"
TABLE_SUFFIXES = (*CSV_SUFFIXES, *JSON_SUFFIXES, PARQUET_SUFFIX)
PICTURE_COLUMNS = ("image", "img", "picture", "path", "image_path", "img_path", "file", "file_path", "filepath",
                   "file_name", "filename", "image_name", "image_file", "img_name", "image_id", "img_id", "image_index",
                   "isic_id", "id_code", "id")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "class_id", "classid", "label_name", "category",
                 "target", "dx", "diagnosis", "species", "breed", "y")  # fmt: skip
"""Usual names, in any case, blanks and hyphens as _."""
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "dataset", "usage")
"""Columns of splits; other than the first only where they hold the names of splits."""
DELIMITERS = ",\t;|"
"""What can stand between columns, where nobody says."""
FIRST_ROWS = 100
"""Rows that tell what the columns are."""

Line = tuple[int, dict[str, Any] | str]
"""The number of a row, from 1, and its values, or what is wrong with it."""


@dataclass(frozen=True)
class Table:
    """A file of rows."""

    path: Path
    names: list[str]
    """Its columns."""
    first: list[Line]
    """Its first rows."""
    reading: Reading

    @classmethod
    def open(cls, path: Path, reading: Reading) -> Table:
        """Read the columns and the first rows.

        Raises:
            ValueError: it is no table.
        """
        names, lines = _lines(path, reading)
        table = cls(path, names, list(islice(lines, FIRST_ROWS)), reading)
        twice = sorted({name for name in names if name and names.count(name) > 1})
        if twice:
            raise ValueError(f"{path} has the column {twice[0]!r} twice. Rename one.")
        return table

    @property
    def values(self) -> list[dict[str, Any]]:
        """The first rows that can be read."""
        return [row for _, row in self.first if not isinstance(row, str)]

    def lines(self) -> Iterator[Line]:
        """All rows."""
        return _lines(self.path, self.reading)[1]

    def class_names(self, column: str) -> tuple[str, ...] | None:
        """Names of the ids in a column, where the hub's libraries wrote them."""
        if self.path.suffix.lower() != PARQUET_SUFFIX:
            return None
        features = ((parquet_metadata(self.path) or {}).get("info") or {}).get("features") or {}
        feature = features.get(column)
        return tuple(feature["names"]) if isinstance(feature, dict) and feature.get("names") else None


def is_table(path: Path) -> bool:
    """Whether a file is called like a table."""
    return path.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES) and not path.name.startswith(".")


def _lines(path: Path, reading: Reading) -> tuple[list[str], Iterator[Line]]:
    """The columns of a file, and its rows."""
    name = path.name.lower().removesuffix(".gz")
    if name.endswith(PARQUET_SUFFIX):
        return parquet_columns(path), _parquet_lines(path)
    if name.endswith(JSON_SUFFIXES):
        return _json_lines(path, reading)
    return _csv_lines(path, reading)


def _parquet_lines(path: Path) -> Iterator[Line]:
    rows = (row for batch in parquet_batches(path, parquet_columns(path)) for row in batch.to_pylist())
    yield from enumerate(rows, start=1)


def _json_lines(path: Path, reading: Reading) -> tuple[list[str], Iterator[Line]]:
    """JSON lines, or one array of objects, whose elements are numbered from 1."""
    names: dict[str, None] = {}
    for _, row in islice(_json_rows(path, reading), FIRST_ROWS):
        names.update(dict.fromkeys(row if isinstance(row, dict) else ()))
    return list(names), _json_rows(path, reading)


def _json_rows(path: Path, reading: Reading) -> Iterator[Line]:
    lines = ((number, line) for number, line in numbered_lines(path, encoding=reading.encoding) if line.strip())
    first = next(lines, None)
    if first is None:
        return
    if first[1].lstrip().startswith(b"["):
        content = b"\n".join([first[1], *(line for _, line in lines)])
        try:
            found = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is neither JSON lines nor an array of objects: {error}.") from error
        for number, row in enumerate(found, start=1):
            yield number, row if isinstance(row, dict) else f"expected an object, got {short(row)}"
        return
    for number, line in chain([first], lines):
        try:
            row = json_row(line)
        except ValueError as problem:
            yield number, str(problem)
            continue
        yield number, row if isinstance(row, dict) else f"expected an object on one line, got {short(row)}"


def _csv_lines(path: Path, reading: Reading) -> tuple[list[str], Iterator[Line]]:
    """Rows under a header; where the first row names a picture there is none, and columns are called 1, 2, ..."""
    first = next((line for _, line in numbered_lines(path, encoding=reading.encoding) if line.strip()), b"")
    text = first.decode("utf-8", "surrogateescape")
    delimiter = reading.separator or max(DELIMITERS, key=text.count)
    names = [name.strip() for name in next(csv.reader([text], delimiter=delimiter), [])]
    headless = any(name.lower().endswith(IMAGE_SUFFIXES) for name in names)
    if headless:
        names = [str(number) for number in range(1, len(names) + 1)]
    return names, _csv_rows(path, reading, delimiter, names, has_header=not headless)


def _csv_rows(path: Path, reading: Reading, delimiter: str, names: list[str], has_header: bool) -> Iterator[Line]:
    lines = numbered_lines(path, encoding=reading.encoding, keep_ends=True)
    reader = csv.reader(
        (line.decode("utf-8", "surrogateescape") for _, line in lines), delimiter=delimiter, strict=True
    )
    skip = has_header
    while True:
        number = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield number, f"not CSV ({error})"
            continue
        if not any(cell.strip() for cell in cells):
            continue
        if skip:
            skip = False
        elif len(cells) != len(names):
            yield number, f"expected {len(names)} fields, got {len(cells)}: {short(cells)}"
        elif any(not cell.isascii() and _is_broken(cell) for cell in cells):
            yield number, f"not UTF-8: {short(cells)}"
        else:
            yield number, {name: cell.strip() for name, cell in zip(names, cells, strict=True)}


def _is_broken(cell: str) -> bool:
    """Whether a cell holds bytes that are no text in the file's encoding."""
    return any("\udc80" <= character <= "\udcff" for character in cell)
