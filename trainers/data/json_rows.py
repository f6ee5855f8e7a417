"""JSON that holds rows: an object a line, or one value, whatever the file is called."""

import json
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.rows import BadRows, Lines, Row, json_row, short

WRAPPERS = ("data", "rows", "examples", "records", "items")
"""Keys under which a file may hold its rows."""
FEW_CELLS = 200
"""Cells of a column that are looked at for a text."""


def json_rows(path: Path, lines: Lines) -> "JsonLines | JsonValues":
    """The rows of a file: JSON lines, or one JSON value that holds them.

    Raises:
        ValueError: it is neither.
    """
    first = next((line.strip() for _, line in lines if line.strip()), b"")
    several = sum(bool(line.strip()) for _, line in lines) > 1
    try:
        value = json_row(first)
    except ValueError:
        value = None
    if value is None and several and (len(first) == 1 or first.startswith(b"[")):
        value = _document(path, lines)  # begun on its first line
    elif value is None and several:
        with suppress(ValueError):  # where JSON lines begin with a damaged one
            value = _document(path, lines)
    elif several:
        value = None
    plain = isinstance(value, dict) and not any(isinstance(cell, (list, dict)) for cell in value.values())
    if value is None or (plain and not several):
        return JsonLines(path, lines)
    return JsonValues(path, _rows_of(path, value))


def _document(path: Path, lines: Lines) -> Any:
    try:
        return json.loads(b"".join(line for _, line in lines).decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}. Correct it, or fetch it again.") from error


def _rows_of(path: Path, value: Any) -> list[Any]:
    """The rows in one JSON value: a list of objects; {"data": [...]}; or columns, as pandas writes them.

    Raises:
        ValueError: it is something else.
    """
    if isinstance(value, list):
        return value
    if set(value) >= {"columns", "data"} and isinstance(value["columns"], list):  # pandas, orient="split"
        return [dict(zip(value["columns"], row, strict=False)) for row in value["data"]]
    inner = [name for name in WRAPPERS if isinstance(value.get(name), list)]
    if len(value) == 1 and not inner:
        inner = [name for name, rows in value.items() if isinstance(rows, list)]
    if len(inner) == 1 and all(isinstance(row, dict) for row in value[inner[0]]):
        rows = value[inner[0]]
        return [row["row"] for row in rows] if rows and set(rows[0]) >= {"row", "row_idx"} else rows
    columns = list(value.values())
    if all(isinstance(column, dict) for column in columns):
        if all(name.isdecimal() for name in value):  # pandas, orient="index"
            return columns
        inner_names = list(columns[0])
        alike = all(list(column) == inner_names for column in columns)
        if alike and len(columns) > len(inner_names) and not all(name.isdecimal() for name in inner_names):
            return columns  # an object for each id
        indices = dict.fromkeys(index for column in columns for index in column)
        return [{name: value[name].get(index) for name in value} for index in indices]
    one_length = all(isinstance(column, list) for column in columns) and len({len(column) for column in columns}) == 1
    if one_length and any(isinstance(cell, str) for column in columns for cell in column[:FEW_CELLS]):
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if any(type(cell) is str for cell in columns):
        return [value]  # one row, of JSON lines
    raise ValueError(
        f"{path} holds an object with {short(list(value))}: expected a list of objects, an object a line, "
        '{"data": [...]}, or columns {"text": {...}, "label": {...}}. Splits in one object are to be files of '
        "their own, train.json and test.json."
    )


@dataclass(frozen=True)
class JsonValues:
    """The objects of a list, numbered from 1."""

    path: Path
    values: list[Any]

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        """Whole rows, whatever columns are wanted."""
        for number, row in enumerate(self.values, start=1):
            if isinstance(row, dict):
                yield number, row
            else:
                bad_rows.add(self.path, number, f"expected an object with a value for each column, got {short(row)}")


@dataclass(frozen=True)
class JsonLines:
    """An object a line."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        """Whole rows, whatever columns are wanted."""
        for number, line in self.lines:
            if not line.strip():
                continue
            try:
                row = json_row(line.strip())
                if not isinstance(row, dict):
                    raise ValueError(f"expected an object with a value for each column on one line, got {short(row)}")
            except ValueError as problem:
                bad_rows.add(self.path, number, str(problem))
                continue
            yield number, row
