"""Delimited text (CSV, TSV and their relatives): what parts its columns, whether quotation marks enclose cells, and
whether its first line names the columns or is data.
"""

import csv
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from trainers.data.rows import BadRows, Lines, Row, short

DELIMITERS = "\t,;|"
"""What can stand between columns, where nobody says; the first of those that fit equally well, since texts hold commas
but hardly a tab."""
PEEK = 200
"""Rows that tell what a table is."""
LONG = 8
"""So many words are a text, and no name of a column."""

_STATED = re.compile(rb"sep=(.|\t)", re.IGNORECASE)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")

NamesColumns = Callable[[Sequence[str]], bool]
"""Whether cells are names of columns that are usual for a kind of data, or that the user gives."""


@dataclass(frozen=True)
class Delimited:
    """The records of a file."""

    path: Path
    lines: Lines
    delimiter: str
    quotes: bool
    """Whether a quotation mark that opens a cell encloses it."""
    names: tuple[str, ...] = ()
    has_header: bool = True

    @classmethod
    def open(cls, path: Path, lines: Lines, separator: str, names_columns: NamesColumns) -> "Delimited":
        """Find out what parts the columns; what they are called is open yet.

        Args:
            path: the file.
            lines: its lines, with their ends.
            separator: what parts the columns; empty: what the content says.
            names_columns: tells names of columns.
        """
        csv.field_size_limit(sys.maxsize)
        stated = _STATED.fullmatch(lines[0][1].rstrip(b"\r\n")) if lines else None
        if stated:  # as Excel writes it, for itself
            lines = lines[1:]
        delimiter = separator or (stated[1].decode() if stated else _delimiter(lines, names_columns))
        return cls(path, lines, delimiter, _has_quotes(lines, delimiter))

    def named(self, names: Sequence[str], has_header: bool) -> "Delimited":
        """The same records under names of columns."""
        return replace(self, names=tuple(names), has_header=has_header)

    def head(self) -> list[list[str]]:
        """The first records that can be read."""
        return [cells for _, cells in islice(self.records(BadRows("skip")), PEEK)]

    def records(self, bad_rows: BadRows) -> Iterator[tuple[int, list[str]]]:
        """(Line where it begins, cells) of every record that is not empty."""
        texts = (line.decode("utf-8", "surrogateescape") for _, line in self.lines)
        quoting: Any = csv.QUOTE_MINIMAL if self.quotes else csv.QUOTE_NONE
        reader = csv.reader(texts, delimiter=self.delimiter, strict=True, quoting=quoting)
        while True:
            line = reader.line_num
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                bad_rows.add(self.path, self.lines[line][0], f"not CSV ({error})")
                continue
            if any(map(str.strip, cells)):  # spreadsheets end in lines of commas
                yield self.lines[line][0], cells

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        """The rows with the given columns alone."""
        places = [place for place, name in enumerate(self.names) if name in columns]
        for line, cells in islice(self.records(bad_rows), int(self.has_header), None):
            try:
                if len(cells) != len(self.names):
                    raise ValueError(f"{len(cells)} columns, expected {len(self.names)}: {short(cells)}")
                row = {self.names[place]: _from_utf8(cells[place]) for place in places}
            except ValueError as problem:
                bad_rows.add(self.path, line, str(problem))
                continue
            yield line, row


def _delimiter(lines: Lines, names_columns: NamesColumns) -> str:
    """The delimiter whose header has names that are known, or that cuts most records into as many columns."""
    best, best_score = ",", (False, 0.0)
    for delimiter in DELIMITERS:
        head = Delimited(Path(), lines[: 10 * PEEK], delimiter, _has_quotes(lines, delimiter)).head()
        if not head or len(head[0]) < 2:
            continue
        score = (names_columns(head[0]), sum(len(cells) == len(head[0]) for cells in head) / len(head))
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


def is_data(head: Sequence[Sequence[str]]) -> bool:
    """Whether the first record looks like those below it, and not like names of columns.

    It holds a number, a long text, or a value that comes again in its column.
    """
    first = [cell.strip() for cell in head[0]]
    if counts_columns(first):
        return False
    if any(_NUMBER.fullmatch(cell) or len(cell.split()) >= LONG for cell in first):
        return True
    below = [cells for cells in head[1:] if len(cells) == len(first)]
    return any(cell and cell in {cells[place].strip() for cells in below} for place, cell in enumerate(first))


def counts_columns(cells: Sequence[str]) -> bool:
    """Whether these are the numbers of columns from 0, with which pandas names them, perhaps behind the index."""
    counted = cells[1:] if cells[0] == "" else cells
    return len(counted) > 1 and all(cell == str(place) for place, cell in enumerate(counted))


def examples(head: Sequence[Sequence[str]]) -> str:
    """The columns by number, with what the first record holds."""
    return ", ".join(f"{place} ({short(cell.strip())})" for place, cell in enumerate(head[0], start=1))


def unique(names: Sequence[str]) -> list[str]:
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
