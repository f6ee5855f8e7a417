"""The forms that labelled texts come in, row by row: CSV, JSON lines, parquet, and folders of text files.

Every reader gives (text, label name) for each usable row. What labels are called stands in the rows, or beside them.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainers.data.labels import LabelNames, read_label_names
from trainers.data.rows import (
    BadRows,
    json_row,
    numbered_lines,
    parquet_batches,
    parquet_columns,
    parquet_metadata,
    refuse_lone_surrogates,
    short,
)

Row = tuple[str, str]
"""A text and the name of its label."""

LABEL_COLUMNS = ("label", "labels", "class", "class index", "category", "sentiment")
"""Columns that can hold the label, the first that is there, in any case."""
TEXT_COLUMNS = (
    ("text",),
    ("sentence",),
    ("review",),
    ("title", "description"),
    ("title", "content"),
    ("content",),
    ("description",),
)
"""Columns that make up the text, joined by a space; the first set that is there, in any case."""
IGNORED_CLASSES = ("unsup",)
"""Folders of texts without a label."""


def csv_rows(path: Path, labels: LabelNames, bad_rows: BadRows) -> Iterator[Row]:
    """Rows under a header that names the columns; or without one the class first, then the parts of the text."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, strict=True)
        columns: tuple[list[int], int] | None = None
        width = 0
        while True:
            line = reader.line_num + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                bad_rows.add(path, line, f"not CSV ({error})")
                continue
            if not cells:
                continue
            if columns is None:
                width = len(cells)
                named = choose_columns(cells)
                columns = _numbers(cells, named) if named else _headless(path, cells, labels)
                if named:
                    continue
            try:
                if len(cells) != width:
                    raise ValueError(f"{len(cells)} columns, expected {width}: {short(cells)}")
                yield text_of([_from_utf8(cells[index]) for index in columns[0]]), labels.name_of(cells[columns[1]])
            except ValueError as problem:
                bad_rows.add(path, line, str(problem))


def json_rows(path: Path, labels: LabelNames, bad_rows: BadRows) -> Iterator[Row]:
    """Rows of JSON lines such as {"text": ..., "label": ...}; a file that ends in .gz is gzipped."""
    for number, line in numbered_lines(path):
        if not line.strip():
            continue
        try:
            row = json_row(line)
            columns = choose_columns(list(row)) if isinstance(row, dict) else None
            if columns is None:
                raise ValueError(f'expected an object {{"text": ..., "label": ...}} on one line, got {short(row)}')
            parsed = text_of([row[name] for name in columns[0]]), labels.name_of(row[columns[1]])
        except ValueError as problem:
            bad_rows.add(path, number, str(problem))
            continue
        yield parsed


def parquet_rows(path: Path, labels: LabelNames, bad_rows: BadRows) -> Iterator[Row]:
    """Rows of a parquet file with such columns; the rows are numbered from 1."""
    names = parquet_columns(path)
    columns = choose_columns(names)
    if columns is None:
        raise ValueError(f"{path} has the columns {names}, but {_WANTED}.")
    rows = (row for batch in parquet_batches(path, [*columns[0], columns[1]]) for row in batch.to_pylist())
    for number, row in enumerate(rows, start=1):
        try:
            parsed = text_of([row[name] for name in columns[0]]), labels.name_of(row[columns[1]])
        except ValueError as problem:
            bad_rows.add(path, number, str(problem))
            continue
        yield parsed


def class_folder_rows(folder: Path, labels: LabelNames, bad_rows: BadRows) -> Iterator[Row]:
    """A text for each .txt file in the folder of each class."""
    for inner in class_folders(folder):
        for path in sorted(inner.glob("*.txt")):
            try:
                parsed = text_of([path.read_bytes().decode("utf-8-sig")]), labels.name_of(inner.name)
            except UnicodeDecodeError as error:
                bad_rows.add(path, None, f"not UTF-8 ({error})")
                continue
            except ValueError as problem:
                bad_rows.add(path, None, str(problem))
                continue
            yield parsed


def class_folders(folder: Path) -> list[Path]:
    """The folders of text files in a folder, one for each class."""
    if not folder.is_dir():
        return []
    found = [path for path in sorted(folder.iterdir()) if path.is_dir() and path.name not in IGNORED_CLASSES]
    return [path for path in found if next(path.glob("*.txt"), None)]


def text_of(parts: list[Any]) -> str:
    """The parts of a text, joined by a space.

    Raises:
        ValueError: a part is no string, none holds a word, or one holds half of a character.
    """
    for part in parts:
        if type(part) is not str:
            raise ValueError(f"the text is {short(part)}, expected a string")
    text = " ".join(part.strip() for part in parts if part.strip())
    if not text:
        raise ValueError("an empty text")
    refuse_lone_surrogates(text)
    return text


_WANTED = (
    f"needs one for the label ({', '.join(LABEL_COLUMNS)}) and those of the text "
    f"({', '.join(' and '.join(names) for names in TEXT_COLUMNS)})"
)


def choose_columns(names: Sequence[str]) -> tuple[list[str], str] | None:
    """The columns of the text and the column of the label, as ``names`` spells them; None when one is not there."""
    by_name = {name.strip().lower(): name for name in reversed(names)}
    label = next((by_name[name] for name in LABEL_COLUMNS if name in by_name), None)
    text = next(([by_name[name] for name in parts] for parts in TEXT_COLUMNS if by_name.keys() >= set(parts)), None)
    return None if label is None or text is None else (text, label)


def _numbers(header: list[str], named: tuple[list[str], str]) -> tuple[list[int], int]:
    return [header.index(name) for name in named[0]], header.index(named[1])


def _headless(path: Path, cells: list[str], labels: LabelNames) -> tuple[list[int], int]:
    """The columns of a CSV file whose first row is no header: it must begin with a class."""
    is_class = cells[0].strip().isdecimal() or cells[0].strip() in (labels.names or ())
    if not is_class or len(cells) < 2:
        raise ValueError(
            f"{path}:1: {short(cells)} is neither a row that begins with a class id or a name of classes.txt, nor a "
            f"header: a header {_WANTED}."
        )
    return list(range(1, len(cells))), 0


def declared_names(path: Path, folder: Path) -> LabelNames:
    """The names of the labels: those that stand beside a file, or else in its data set's folder, or in the file itself.

    They stand in label.json ({"Business": 0, ...}), or in classes.txt, a name a line, whose ids begin at 1 in CSV files
    and at 0 elsewhere.

    Raises:
        ValueError: a file of names is damaged, or names a label twice.
    """
    for place in (path.parent, folder):
        if (place / "label.json").is_file():
            return LabelNames(read_label_names(place / "label.json"))
        if (place / "classes.txt").is_file():
            return LabelNames(_read_classes(place / "classes.txt"), first_id=int(path.suffix == ".csv"))
    return LabelNames(_names_in_parquet(path) if path.suffix == ".parquet" else None)


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: {error}.") from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{path} holds {list(names)}: expected the name of each class once, one a line.")
    return names


def _names_in_parquet(path: Path) -> tuple[str, ...] | None:
    """Class names of the label column, where the hub's libraries wrote them."""
    features = ((parquet_metadata(path) or {}).get("info") or {}).get("features") or {}
    for name, feature in features.items():
        if name.lower() in LABEL_COLUMNS and isinstance(feature, dict) and feature.get("names"):
            return tuple(feature["names"])
    return None


def _from_utf8(cell: str) -> str:
    """The cell itself; ValueError where bytes that are not UTF-8 were kept as surrogates."""
    if cell.isascii():
        return cell
    try:
        return cell.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
