"""The forms that labelled texts come in, told by what is in a file: tables, lines that begin with a label, fastText,
and folders of text files. Each becomes a `Table` of rows by name; what its columns mean is for columns.py.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from trainers.data.delimited import PEEK, Delimited, counts_columns, is_data, unique
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, Lines, Row, encoding_of, short
from trainers.data.tabular import Table, read_delimited, read_stored
from trainers.data.texts.columns import Ambiguous, choose_columns

logger = logging.getLogger(__name__)

FEW = 5
"""So few rows do not tell that a column numbers them, or beside declared classes that one holds mere numbers."""
FASTTEXT_LABEL = "__label__"
IGNORED_CLASSES = ("unsup",)
"""Folders of texts without a label."""

_FASTTEXT = re.compile(rb"(^|\s)__label__\S")
_LABEL_FIRST = re.compile(rb"([A-Z]+:[A-Za-z]+|[+-]?\d+) +\S")
"""A label as TREC writes it (DESC:manner), or a number, then a text."""


def read_table(path: Path, reading: Reading, classes: Collection[str] = (), header: bool | None = None) -> Table:
    """The table in a file, or in a folder that holds a folder for each class.

    Args:
        path: the file or folder.
        reading: what the user says.
        classes: names of labels that stand beside the file.
        header: False: the data set's other files have no header, so that only usual names count as one.

    Raises:
        ValueError: it is damaged, or in no form that is read.
        ModuleNotFoundError: a package that reads it is not installed; the message names it.
    """
    if path.is_dir():
        return Table(path, "class folders", ["text", "label"], _ClassFolders(path, reading.encoding))
    found = read_stored(path, reading)
    if isinstance(found, Table):
        return found
    first = next((line for _, line in found if line.strip()), b"")
    if is_fasttext(first) and not reading.delimiter:
        return Table(path, "fastText", ["text", "label"], _FastText(path, found))
    if not reading.delimiter and leading_labels(found):
        return Table(path, "label first", ["text", "label"], _LabelFirst(path, found))
    is_header = partial(_is_header, reading=reading, classes=classes, header=header)
    table, head = read_delimited(path, found, reading, partial(_names_columns, reading=reading), is_header)
    if not head or table.has_header or reading.label_column:
        return table
    label = _label_column(head, classes)
    if label is None:
        return table
    names = [f"text {name}" for name in table.names]
    names[label] = "label"
    rest = [place for place in range(len(names)) if place != label]
    if len(rest) == 1:
        names[rest[0]] = "text"
    assert isinstance(table.read, Delimited)
    return replace(table, names=names, read=table.read.named(names, has_header=False))


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
            labels = [word.removeprefix(FASTTEXT_LABEL) for word in words if word.startswith(FASTTEXT_LABEL)]
            text = " ".join(word for word in words if not word.startswith(FASTTEXT_LABEL))
            yield number, {"text": text, "label": labels if len(labels) > 1 else "".join(labels)}


@dataclass(frozen=True)
class _LabelFirst:
    """Lines such as `DESC:manner How did serfdom develop?` and `1 a stirring , funny film`."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in self.lines:
            if not line.strip():
                continue
            try:
                label, _, text = line.decode("utf-8").strip().partition(" ")
                if not _LABEL_FIRST.match(line.strip()):
                    raise ValueError(f"expected a label, a blank and a text, got {short(f'{label} {text}')}")
            except UnicodeDecodeError as error:
                bad_rows.add(self.path, number, f"not UTF-8 ({error})")
            except ValueError as problem:
                bad_rows.add(self.path, number, str(problem))
            else:
                yield number, {"text": text, "label": label}


def leading_labels(lines: Lines) -> frozenset[str]:
    """The labels that every one of the first lines begins with, before a text; none where they do not come again, or
    lines have columns."""
    head = [line.strip() for _, line in lines[: 10 * PEEK] if line.strip()]
    if len(head) < 2 or not all(map(_LABEL_FIRST.match, head)):
        return frozenset()
    labels = Counter(map(leading_label, head))
    if not 1 < len(labels) <= max(2, len(head) // 2) or all(b"\t" in line for line in head):
        return frozenset()
    return frozenset(labels)


def leading_label(line: bytes) -> str:
    """What may be a label at the beginning of a line: as TREC writes it, or a number; empty: there is none."""
    return line.split(b" ", 1)[0].decode() if _LABEL_FIRST.match(line) else ""


def is_fasttext(line: bytes) -> bool:
    """Whether a line has a label as fastText writes it, anywhere."""
    return _FASTTEXT.search(line) is not None


def _names_columns(cells: Sequence[str], reading: Reading) -> bool:
    """Whether these are names of columns that are usual, or that the user gives."""
    said = {reading.text_column, reading.label_column, reading.pair_column} & set(cells)
    if counts_columns(cells) or any(name and not name.lstrip("-").isdecimal() for name in said):
        return True
    try:
        return choose_columns(unique(cells), unlabelled=True) is not None
    except Ambiguous:
        return True
    except ValueError:
        return False


def _is_header(head: Sequence[Sequence[str]], reading: Reading, classes: Collection[str], header: bool | None) -> bool:
    """Whether the first record names the columns."""
    if _names_columns(head[0], reading):
        # A record of data may hold such a word too, but not beside a label.
        return counts_columns(head[0]) or not (head[0][0].strip() in classes or head[0][0].strip().isdecimal())
    if header is False or is_data(head) or any(cell.strip() in classes for cell in head[0]):
        return False
    if not reading.label_column.lstrip("-").isdecimal():
        return True
    place = int(reading.label_column) - (int(reading.label_column) > 0)
    values = Counter(cells[place] for cells in head[1:] if -len(cells) <= place < len(cells))
    return max(values.values(), default=0) > 1  # names by number of few different rows stand for a file without names


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
        numbers = (len(records) > FEW or not classes) and any(all(map(_is_number, column)) for column in columns[1:])
        return None if numbers else 0
    if len(columns) != 2:
        return None
    again = [counts[column[0]] > 1 and len(counts) <= max(2, len(records) // 2)
             for column in columns for counts in [Counter(column)]]  # fmt: skip
    return again.index(True) if sum(again) == 1 else None


def _all_different(values: Sequence[str]) -> bool:
    return len(values) > FEW and len(set(values)) == len(values)


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"\s*[\d.:/-]*\s*", cell) is not None
