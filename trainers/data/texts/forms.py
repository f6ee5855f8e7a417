"""The forms that labelled texts come in, told by what is in a file: tables, folders of text files, and the lines of
lines.py. Each becomes a `Table` of rows by name; what its columns mean is for columns.py.
"""

import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from trainers.data.delimited import Delimited, counts_columns, is_data, unique
from trainers.data.reading import Reading
from trainers.data.rows import LEGACY, BadRows, Row, encoding_of
from trainers.data.tabular import Table, read_delimited, read_stored
from trainers.data.texts.columns import Ambiguous, choose_columns
from trainers.data.texts.lines import INTENTS, UTTERANCES, ParallelLines, line_form_of

logger = logging.getLogger(__name__)

FEW = 5
"""So few rows do not tell that a column numbers them, or beside declared classes that one holds mere numbers."""
FEW_FILES = 2
"""So few files of a folder that are no UTF-8 are damaged ones."""
IGNORED_CLASSES = ("unsup",)
"""Folders of texts without a label."""


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
    if path.name == UTTERANCES and (path.parent / INTENTS).is_file():
        return Table(path, "a file of labels", ["text", "label"], ParallelLines(path, path.with_name(INTENTS), reading))
    found = read_stored(path, reading)
    if isinstance(found, Table):
        return found
    line_form = None if reading.delimiter else line_form_of(path, found)
    if line_form:
        return line_form
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
        for path in self._files():
            content = path.read_bytes()
            encoding = self.encoding or encoding_of(content)
            if encoding == "utf-8" and not _is_utf8(content):
                encoding = self._other_encoding
            try:
                text = content.decode("utf-8-sig" if encoding == "utf-8" else encoding)
            except UnicodeDecodeError as error:
                bad_rows.add(path, None, f"not {encoding.upper()} ({error})")
                continue
            yield None, {"text": text.removeprefix("\ufeff"), "label": path.parent.name, "file": path}

    def _files(self) -> list[Path]:
        return [path for inner in class_folders(self.folder) for path in sorted(filter(_is_text_file, inner.iterdir()))]

    @cached_property
    def _other_encoding(self) -> str:
        """What files with a few bytes that are no UTF-8 are taken for, by all files together, for each holds little."""
        wrong = [content for path in self._files() if not _is_utf8(content := path.read_bytes())]
        if len(wrong) <= FEW_FILES or encoding_of(b"\n".join(wrong)) != LEGACY:
            return "utf-8"
        logger.warning("%s: %d files are not UTF-8: they are read as %s. --encoding says otherwise.", self.folder,
                       len(wrong), LEGACY)  # fmt: skip
        return LEGACY


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def class_folders(folder: Path) -> list[Path]:
    """The folders of text files in a folder, one for each class."""
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in IGNORED_CLASSES]
    return [path for path in found if any(map(_is_text_file, path.iterdir()))]


def _is_text_file(path: Path) -> bool:
    """Whether a file in the folder of a class is a text: .txt, or a number (as of 20 Newsgroups)."""
    return path.is_file() and (path.suffix == ".txt" or path.name.isdecimal())


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
