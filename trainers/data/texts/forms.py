"""The forms that labelled texts come in, told by what is in a file: delimited columns, JSON, parquet, Excel, fastText,
and folders of text files. Each becomes a `Table` of rows by name; what its columns mean is for columns.py.
"""

import csv
import json
import re
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from trainers.data.reading import Reading
from trainers.data.rows import (
    BadRows,
    encoding_of,
    json_row,
    numbered_lines,
    parquet_batches,
    parquet_columns,
    short,
)
from trainers.data.texts.columns import Ambiguous, choose_columns

Row = tuple[int | None, dict[str, Any]]
"""The number of a row's line (of the row itself, where a form has no lines; from 1), and its values by column."""
Form = Literal["columns", "JSON", "parquet", "Excel", "fastText", "class folders"]
Lines = list[tuple[int, bytes]]

DELIMITERS = ",\t;|"
PEEK = 200
"""Rows that are looked at to tell what a table is."""
FEW = 5
"""So few rows do not tell that a column holds mere numbers."""
FASTTEXT_LABEL = "__label__"
IGNORED_CLASSES = ("unsup",)
"""Folders of texts without a label."""
WRAPPERS = ("data", "rows", "examples", "records", "items")
"""Keys under which a JSON file may hold its rows."""

_STATED = re.compile(rb"sep=(.|\t)", re.IGNORECASE)


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

    def head(self) -> list[dict[str, Any]]:
        """The first rows that can be read."""
        return [row for _, row in islice(self.read(self.names, BadRows("skip")), PEEK)]


def read_table(path: Path, reading: Reading, classes: Collection[str] = ()) -> Table:
    """The table in a file, or in a folder that holds a folder for each class.

    Args:
        path: the file or folder.
        reading: what the user says.
        classes: names of labels that stand beside the file.

    Raises:
        ValueError: it is damaged, or in no form that is read.
        ModuleNotFoundError: a package that reads it is not installed; the message names it.
    """
    if path.is_dir():
        return Table(path, "class folders", ["text", "label"], _ClassFolders(path, reading.encoding))
    with path.open("rb") as file:
        magic = file.read(4)
    if magic == b"PAR1" or path.suffix == ".parquet":
        return Table(path, "parquet", parquet_columns(path), _Parquet(path))
    if magic == b"PK\x03\x04":
        return _excel(path)
    lines = list(numbered_lines(path, encoding=reading.encoding, keep_ends=True))
    first = next((line.strip() for _, line in lines if line.strip()), b"")
    if first.startswith(FASTTEXT_LABEL.encode()):
        return Table(path, "fastText", ["text", "label"], _FastText(path, lines))
    if first[:1] in (b"{", b"[") and not reading.delimiter:
        return _json(path, lines, first)
    return _delimited(path, lines, reading, classes)


@dataclass(frozen=True)
class _ClassFolders:
    """A text for each file in the folder of each class."""

    folder: Path
    encoding: str

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for inner in class_folders(self.folder):
            for path in sorted(filter(_is_text_file, inner.iterdir())):
                content = path.read_bytes()
                encoding = self.encoding or encoding_of(content)
                try:
                    text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
                except UnicodeDecodeError as error:
                    bad_rows.add(path, None, f"not {encoding.upper()} ({error})")
                    continue
                yield None, {"text": text.removeprefix("\ufeff"), "label": inner.name, "file": path}


def class_folders(folder: Path) -> list[Path]:
    """The folders of text files in a folder, one for each class."""
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in IGNORED_CLASSES]
    return [path for path in found if any(map(_is_text_file, path.iterdir()))]


def _is_text_file(path: Path) -> bool:
    """Whether a file in the folder of a class is a text: .txt, or a number (as of 20 Newsgroups)."""
    return path.is_file() and (path.suffix == ".txt" or path.name.isdecimal())


@dataclass(frozen=True)
class _Parquet:
    """Rows of a parquet file, numbered from 1."""

    path: Path

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        rows = (row for batch in parquet_batches(self.path, list(columns)) for row in batch.to_pylist())
        yield from enumerate(rows, start=1)


@dataclass(frozen=True)
class _FastText:
    """Lines such as `__label__pos A fine film.`; one with several labels has a list of them."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in self.lines:
            if not line.strip():
                continue
            try:
                words = line.decode("utf-8").strip().split(" ")
            except UnicodeDecodeError as error:
                bad_rows.add(self.path, number, f"not UTF-8 ({error})")
                continue
            count = next((place for place, word in enumerate(words) if not word.startswith(FASTTEXT_LABEL)), len(words))
            labels = [word.removeprefix(FASTTEXT_LABEL) for word in words[:count]]
            yield number, {"text": " ".join(words[count:]), "label": labels if len(labels) > 1 else "".join(labels)}


def _json(path: Path, lines: Lines, first: bytes) -> Table:
    """JSON lines, or one JSON value that holds rows."""
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
        read: Any = _JsonLines(path, lines)
    else:
        read = _JsonRows(path, _rows_of(path, value))
    names: dict[str, None] = {}
    for _, row in islice(read((), BadRows("skip")), PEEK):
        names.update(dict.fromkeys(row))
    return Table(path, "JSON", list(names), read)


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
        indices = dict.fromkeys(index for column in columns for index in column)
        return [{name: value[name].get(index) for name in value} for index in indices]
    one_length = all(isinstance(column, list) for column in columns) and len({len(column) for column in columns}) == 1
    if one_length and any(isinstance(cell, str) for column in columns for cell in column[:PEEK]):
        return [dict(zip(value, row, strict=True)) for row in zip(*columns, strict=True)]
    if any(type(cell) is str for cell in columns):
        return [value]  # one row, of JSON lines
    raise ValueError(
        f"{path} holds an object with {short(list(value))}: expected a list of objects, an object a line, "
        '{"data": [...]}, or columns {"text": {...}, "label": {...}}. Splits in one object are to be files of '
        "their own, train.json and test.json."
    )


@dataclass(frozen=True)
class _JsonRows:
    """The objects of a list, numbered from 1."""

    path: Path
    rows: list[Any]

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, row in enumerate(self.rows, start=1):
            if isinstance(row, dict):
                yield number, row
            else:
                bad_rows.add(self.path, number, f"expected an object with the text and the label, got {short(row)}")


@dataclass(frozen=True)
class _JsonLines:
    """An object a line."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in self.lines:
            if not line.strip():
                continue
            try:
                row = json_row(line.strip())
                if not isinstance(row, dict):
                    raise ValueError(f'expected an object {{"text": ..., "label": ...}} on one line, got {short(row)}')
            except ValueError as problem:
                bad_rows.add(self.path, number, str(problem))
                continue
            yield number, row


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
    names = _unique(["" if cell is None else str(cell) for cell in rows[0]])
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


def _delimited(path: Path, lines: Lines, reading: Reading, classes: Collection[str]) -> Table:
    """Columns between delimiters, under a header or without one."""
    csv.field_size_limit(sys.maxsize)
    stated = _STATED.fullmatch(lines[0][1].rstrip(b"\r\n")) if lines else None
    if stated:  # as Excel writes it, for itself
        lines = lines[1:]
    delimiter = reading.separator or (stated[1].decode() if stated else _delimiter(lines, reading))
    reader = _Delimited(path, lines, delimiter, _has_quotes(lines, delimiter))
    head = [cells for _, cells in islice(reader.records(BadRows("skip")), PEEK)]
    if not head:
        return Table(path, "columns", [], reader)
    has_header = _is_header(head, reading, classes)
    names = _unique(head[0]) if has_header else [str(number + 1) for number in range(len(head[0]))]
    if not has_header and not reading.label_column:
        label = _label_column(head, classes)
        if label is None:  # the names of a header that are not usual
            return Table(path, "columns", _unique(head[0]), _named(reader, _unique(head[0]), True))
        names = [f"text {name}" for name in names]
        names[label] = "label"
        rest = [place for place in range(len(names)) if place != label]
        if len(rest) == 1:
            names[rest[0]] = "text"
    return Table(path, "columns", names, _named(reader, names, has_header), has_header)


@dataclass(frozen=True)
class _Delimited:
    """Records of cells."""

    path: Path
    lines: Lines
    delimiter: str
    quotes: bool
    """Whether a quotation mark that opens a cell encloses it."""
    names: tuple[str, ...] = ()
    has_header: bool = True

    def records(self, bad_rows: BadRows) -> Iterator[tuple[int, list[str]]]:
        """(Line where it begins, cells) of every record."""
        texts = (line.decode("utf-8", "surrogateescape") for _, line in self.lines)
        quoting: Any = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        reader = csv.reader(texts, delimiter=self.delimiter, strict=True, quoting=quoting)
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                bad_rows.add(self.path, line, f"not CSV ({error})")
                continue
            if cells:
                yield line, cells

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        places = [place for place, name in enumerate(self.names) if name in columns]
        records = self.records(bad_rows)
        for line, cells in islice(records, int(self.has_header), None):
            try:
                if len(cells) != len(self.names):
                    raise ValueError(f"{len(cells)} columns, expected {len(self.names)}: {short(cells)}")
                row = {self.names[place]: _from_utf8(cells[place]) for place in places}
            except ValueError as problem:
                bad_rows.add(self.path, line, str(problem))
                continue
            yield line, row


def _named(reader: _Delimited, names: Sequence[str], has_header: bool) -> _Delimited:
    return _Delimited(reader.path, reader.lines, reader.delimiter, reader.quotes, tuple(names), has_header)


def _delimiter(lines: Lines, reading: Reading) -> str:
    """The delimiter whose header has names that are known, or that cuts most records into as many columns."""
    best, best_score = ",", (False, 0.0)
    for delimiter in DELIMITERS:
        quotes = _has_quotes(lines, delimiter)
        records = _Delimited(Path(), lines[: 10 * PEEK], delimiter, quotes).records(BadRows("skip"))
        head = [cells for _, cells in islice(records, PEEK)]
        if not head or len(head[0]) < 2:
            continue
        score = (_names_columns(head[0], reading), sum(len(cells) == len(head[0]) for cells in head) / len(head))
        if score > best_score:
            best, best_score = delimiter, score
    return best


def _has_quotes(lines: Lines, delimiter: str) -> bool:
    """Whether quotation marks enclose cells. In files of tabs they often do not: a text may begin with one."""
    if delimiter != "\t":
        return True
    width = None
    for _, line in lines:
        cells = line.rstrip(b"\r\n").split(b"\t")
        width = width or len(cells)
        if len(cells) != width:
            return True  # a cell that is quoted holds a tab or a line end
    return not any(
        cell.startswith(b'"') and (len(cell) < 2 or not cell.endswith(b'"') or b'"' in cell[1:-1].replace(b'""', b""))
        for _, line in lines
        for cell in line.rstrip(b"\r\n").split(b"\t")
    )


def _names_columns(cells: Sequence[str], reading: Reading) -> bool:
    """Whether these are names of columns that are usual, or that the user gives."""
    if {reading.text_column, reading.label_column, reading.pair_column} & set(cells) - {""}:
        return True
    try:
        return choose_columns(_unique(cells), unlabelled=True) is not None
    except Ambiguous:
        return True
    except ValueError:
        return False


def _is_header(head: Sequence[Sequence[str]], reading: Reading, classes: Collection[str]) -> bool:
    """Whether the first record names the columns."""
    if _names_columns(head[0], reading):
        # A record of data may hold such a word too, but not beside a label.
        return head[0][0].strip() not in classes and not head[0][0].strip().isdecimal()
    wanted = [part.strip() for name in (reading.text_column, reading.label_column) for part in name.split(",") if part]
    if not all(part.isdecimal() for part in wanted):
        return True
    if not reading.label_column:
        return False
    place = int(reading.label_column) - 1
    values = Counter(cells[place] for cells in head[1:] if place < len(cells))
    return place < len(head[0]) and head[0][place] not in values and max(values.values(), default=0) > 1


def _label_column(head: Sequence[Sequence[str]], classes: Collection[str]) -> int | None:
    """The column of the label in a table without a header; None: it is not clear.

    The first, where it holds ids or names of classes, and no other column is mere numbers; or of two columns the one
    whose values come again while those of the other do not.
    """
    records = [cells for cells in head if len(cells) == len(head[0])]
    columns = list(zip(*records, strict=True))
    if len(columns) < 2:
        return None
    first = [cell.strip() for cell in columns[0]]
    if first[0] in classes or (first[0].isdecimal() and not _all_different(first)):
        numbers = len(records) > FEW and any(all(map(_is_number, column)) for column in columns[1:])
        return None if numbers else 0
    if len(columns) != 2:
        return None
    again = [counts[column[0]] > 1 and len(counts) <= max(2, len(records) // 2)
             for column in columns for counts in [Counter(column)]]  # fmt: skip
    return again.index(True) if sum(again) == 1 else None


def _all_different(values: Sequence[str]) -> bool:
    return len(values) > 20 and len(set(values)) == len(values)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*[\d.:/-]*\s*", cell) is not None


def _unique(names: Sequence[str]) -> list[str]:
    """The names of columns; one that comes again gets its number."""
    found: list[str] = []
    for number, name in enumerate(map(str.strip, names), start=1):
        found.append(f"{name}.{number}" if name in found else name)
    return found


def _from_utf8(cell: str) -> str:
    """The cell itself; ValueError where bytes that are not UTF-8 were kept as surrogates."""
    if cell.isascii():
        return cell
    try:
        return cell.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
