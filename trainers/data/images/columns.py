"""Which columns of a table hold the picture, its label and its split; or what a user has to say."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainers.data.images.decode import IMAGE_SUFFIXES
from trainers.data.images.paths import Pictures
from trainers.data.images.tables import LABEL_COLUMNS, PICTURE_COLUMNS, SPLIT_COLUMNS, plain
from trainers.data.reading import Reading
from trainers.data.rows import short
from trainers.data.sources import SPLIT_OF_NAME
from trainers.data.tabular import Table

logger = logging.getLogger(__name__)

PROBED = 20
"""Rows whose pictures are looked for."""
NUMBERS_OF_ROWS = ("", "unnamed:_0", "index", "__index_level_0__")
"""Columns that only count the rows."""


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are."""

    picture: str
    labels: Sequence[str]
    """The column of the label; or several of which one is 1 and names the class."""
    split: str | None
    names: tuple[str, ...] | None = None
    """Names of the ids in the column of the label, where they are declared."""

    def label_of(self, row: Mapping[str, Any]) -> str:
        """The label of a row.

        Raises:
            ValueError: it has none, or several.
        """
        if len(self.labels) > 1:
            ones = [name for name in self.labels if _number(row.get(name)) == 1]
            if len(ones) != 1 or not all(_number(row.get(name)) in (0, 1) for name in self.labels):
                what = ", ".join(ones) if ones else "none of them"
                raise ValueError(f"of the columns {short(list(self.labels))} exactly one must be 1, but it is {what}")
            return ones[0]
        label = row.get(self.labels[0])
        if _is_empty(label):
            raise ValueError(f"{self.labels[0]} is empty: a picture without a label")
        if isinstance(label, (list, dict, bytes)):
            raise ValueError(f"{self.labels[0]} is {short(label)}, expected a name or a number")
        if self.names is not None and type(label) is int:
            if not 0 <= label < len(self.names):
                raise ValueError(f"{self.labels[0]} is {label}, expected a number from 0 to {len(self.names) - 1}")
            return self.names[label]
        return re.sub(r"(?<=\d)\.0+$", "", str(label).strip())  # what pandas makes of 3 where another row has none


def choose_columns(
    table: Table, reading: Reading, pictures: Pictures, labels_of_training: Sequence[str] = ()
) -> Columns:
    """The columns of a table, by what the user says, by their names, and by what they hold.

    Args:
        table: with its first rows.
        reading: what the user says; the column of the label may also be a number, from 1.
        pictures: where its pictures lie.
        labels_of_training: the columns of the label in the training split's table, which others must have too.

    Raises:
        ValueError: a column is not there, or several could be meant. The message lists them.
    """
    picture = _picture_column(table, pictures)
    split = _split_column(table, reading, picture)
    if labels_of_training:
        missing = [name for name in labels_of_training if name not in table.names]
        if missing:
            raise ValueError(f"{table.path} has no column {missing[0]!r}; it has {short(table.names)}")
        labels = tuple(labels_of_training)
        if table.head and all(_is_empty(row.get(name)) for row in table.head for name in labels):
            raise ValueError(f"{table.path}: {', '.join(labels)} is empty: it has no labels")
    else:
        labels = _label_columns(table, reading, {picture, split})
    return Columns(picture, labels, split, table.class_names(labels[0]))


def say_columns(table: Table, columns: Columns) -> None:
    """Log which columns are read, and which are not."""
    used = {columns.picture, *columns.labels, columns.split}
    others = [name for name in table.names if name not in used and plain(name) not in NUMBERS_OF_ROWS]
    logger.info(
        "%s: pictures from %s, labels from %s%s%s", table.path, columns.picture, ", ".join(columns.labels),
        f", splits from {columns.split}" if columns.split else "",
        f"; not used: {', '.join(others[:10])}{', ...' if len(others) > 10 else ''}" if others else "",
    )  # fmt: skip


def _picture_column(table: Table, pictures: Pictures) -> str:
    usual = [name for name in table.names if plain(name) in PICTURE_COLUMNS]
    called = {name: _looks_like_pictures(name, table) for name in table.names}
    likely = usual or [name for name in table.names if called[name]] or table.names
    found = {name: _found(name, table, pictures) for name in likely}
    holding = [name for name in found if any(found[name])]
    holding = [name for name in holding if called[name]] or holding  # a number of a row can be a picture's name too
    # Columns that name the same files, such as a path and a file's name, are the same to us.
    different = [name for name in holding if found[name] != found[holding[0]]]
    if holding and not different:
        return holding[0]
    if not holding and len(usual) == 1:
        return usual[0]
    if different or usual:
        listed = ", ".join(holding or usual)
        raise ValueError(f"{table.path}: each of the columns {listed} could name the picture. Leave one in the table.")
    raise ValueError(
        f"{table.path} has the columns {short(table.names)}: none is called one of {', '.join(PICTURE_COLUMNS)}, and "
        f"none names pictures below {table.path.parent}."
    )


def _looks_like_pictures(name: str, table: Table) -> bool:
    """Whether the first row has the content of a picture there, or what ends like one."""
    value = picture_of(table.head[0].get(name)) if table.head else None
    return isinstance(value, bytes) or (isinstance(value, str) and value.lower().endswith(IMAGE_SUFFIXES))


def _found(name: str, table: Table, pictures: Pictures) -> list[Any]:
    """The pictures of a column in the first rows; None where there is none."""
    return [_existing(row.get(name), pictures) for row in table.head[:PROBED]]


def _existing(value: Any, pictures: Pictures) -> Path | bytes | None:
    """The picture that a cell names, if it is there."""
    picture = picture_of(value)
    if isinstance(picture, bytes) or picture is None:
        return picture
    try:
        path = pictures.find(picture)
    except ValueError:
        return None
    return path if path.is_file() else None


def picture_of(value: Any) -> str | bytes | None:
    """What a cell says of its picture: the content of a file, or where it lies; None: nothing."""
    if isinstance(value, Mapping):  # as the hub stores pictures
        value = value.get("bytes") or value.get("path")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    value = value.strip() if isinstance(value, str) else value
    return value if isinstance(value, (str, bytes)) and value else None


def _split_column(table: Table, reading: Reading, picture: str) -> str | None:
    for wanted in SPLIT_COLUMNS:
        for name in table.names:
            values = [row.get(name) for row in table.head]
            if plain(name) == wanted and name != picture and name != reading.label_column:
                words = [str(value).strip().lower() for value in values]
                if wanted == SPLIT_COLUMNS[0] or (words and all(word in SPLIT_OF_NAME for word in words)):
                    return name
    return None


def _label_columns(table: Table, reading: Reading, taken: set[str | None]) -> tuple[str, ...]:
    wanted = reading.label_column
    if wanted and wanted in table.names:
        return (wanted,)
    if wanted.lstrip("-").isdecimal() and 1 <= abs(int(wanted)) <= len(table.names):
        return (table.names[int(wanted) - (int(wanted) > 0)],)
    if wanted:
        raise ValueError(f"{table.path} has no column {wanted!r} (--label-column); it has {short(table.names)}.")
    left = [name for name in table.names if name not in taken and plain(name) not in NUMBERS_OF_ROWS]
    usual = [name for name in left if plain(name) in LABEL_COLUMNS]
    if len(usual) == 1:
        return (usual[0],)
    if usual:
        raise ValueError(f"{table.path}: the label can be in {', '.join(usual)}. Say which: --label-column {usual[0]}")
    rows = table.head
    flags = [name for name in left if rows and all(_number(row.get(name)) in (0, 1) for row in rows)]
    flags = [name for name in flags if len(rows) < PROBED or not all(_number(row[name]) == 1 for row in rows)]
    if len(flags) > 1:
        if all(sum(_number(row[name]) == 1 for name in flags) == 1 for row in rows):
            return tuple(flags)
        raise ValueError(
            f"{table.path}: the columns {short(flags)} are 0 or 1, but in some rows not exactly one of them is 1: "
            "several labels for a picture, of which only one can be learnt. Say which: --label-column NAME"
        )
    if len(left) == 1:
        values = [str(row.get(left[0])) for row in rows]
        if len(values) < PROBED or len(set(values)) < len(values):
            return (left[0],)
    raise ValueError(
        f"{table.path} has the columns {short(table.names)}: none is called one of {', '.join(LABEL_COLUMNS)}"
        + (f". Say which is the label: --label-column {left[0]}" if left else ", and none is left for the label.")
    )


def _is_empty(label: Any) -> bool:
    return (
        label is None
        or (isinstance(label, str) and not label.strip())
        or (isinstance(label, float) and math.isnan(label))
    )


def _number(value: Any) -> float | None:
    """A cell that is a number, as one."""
    try:
        return float(value)
    except (TypeError, ValueError):
        return None
