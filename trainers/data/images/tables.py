"""Tables of pictures: which files are some, and which names their columns usually have.

What the columns mean, `columns` finds; where a picture lies that a row names, `paths`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from trainers.data.images.decode import IMAGE_SUFFIXES
from trainers.data.reading import Reading
from trainers.data.tabular import Table, read_delimited, read_stored

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet", ".arrow", ".xlsx")
"""Ends of names of tables, also with .gz; what is in them tells their form."""
PICTURE_COLUMNS = ("image", "img", "picture", "path", "image_path", "img_path", "file", "file_path", "filepath",
                   "file_name", "filename", "image_name", "image_file", "img_name", "image_id", "img_id", "image_index",
                   "isic_id", "id_code", "id")  # fmt: skip
LABEL_COLUMNS = ("label", "labels", "class", "classes", "class_name", "class_id", "classid", "label_name", "category",
                 "target", "dx", "diagnosis", "species", "breed", "finding_labels", "tags",
                 "y")  # fmt: skip
"""Usual names, in any case, blanks and hyphens as _."""
SPLIT_COLUMNS = ("split", "set", "subset", "partition", "phase", "dataset", "usage")
"""Columns of splits; other than the first only where they hold the names of splits."""


def open_table(path: Path, reading: Reading) -> Table:
    """The columns of a table, and its rows.

    Raises:
        ValueError: it is no table, or has a column twice.
    """
    found = read_stored(path, reading)
    if not isinstance(found, Table):
        found, _ = read_delimited(path, found, reading, partial(_names_columns, reading=reading))
    for place, name in enumerate(found.names, start=1):
        first = name.removesuffix(f".{place}")
        if name != first and first in found.names[: place - 1]:
            raise ValueError(f"{path} has the column {first!r} twice. Rename one.")
    return found


def is_table(path: Path) -> bool:
    """Whether a file is called like a table."""
    return path.name.lower().removesuffix(".gz").endswith(TABLE_SUFFIXES) and not path.name.startswith(".")


def plain(name: str) -> str:
    """A column's name in lower case, with _ for blanks and hyphens."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _names_columns(cells: Sequence[str], reading: Reading) -> bool:
    """Whether these are names of columns that are usual, or that the user gives, and no pictures."""
    if any(cell.strip().lower().endswith(IMAGE_SUFFIXES) for cell in cells):
        return False
    usual = {*PICTURE_COLUMNS, *LABEL_COLUMNS}
    return reading.label_column in cells or any(plain(cell) in usual for cell in cells)
