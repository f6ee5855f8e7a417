"""Columns of a table in memory, whatever library made it; none of them is imported."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


def table_columns(table: Any, names: Sequence[str], source: str) -> Iterator[tuple[str, list[Any]]]:
    """(Name, values) of some columns of a table: a DataFrame, a datasets.Dataset, a dict of lists or a list of dicts.

    Raises:
        ValueError: it is none of these, or a column is not there; the message lists those that are.
    """
    rows = None
    if hasattr(table, "column_names"):  # datasets.Dataset
        there = list(table.column_names)
    elif hasattr(table, "columns"):  # a DataFrame of pandas or polars
        there = list(table.columns)
    elif isinstance(table, Mapping):
        there = list(table)
    elif isinstance(table, Iterable) and not isinstance(table, (str, bytes)):
        rows = list(table)
        if not all(isinstance(row, Mapping) for row in rows):
            raise ValueError(f"{source} is a list, expected a dict in each row.")
        there = list(dict.fromkeys(name for row in rows for name in row))
    else:
        raise ValueError(
            f"{source} is {type(table).__name__}, expected a DataFrame, a datasets.Dataset, a dict of columns or a "
            "list of dicts."
        )
    for name in names:
        if name not in there:
            raise ValueError(f"{source} has no column {name!r}; it has {', '.join(map(str, there))}.")
        if rows is None:
            yield name, list(as_stored(table, name)[name])
        else:
            yield name, [row.get(name) for row in rows]


def as_stored(table: Any, name: str) -> Any:
    """The table; of a datasets.Dataset one whose pictures in that column stay files, so that memory holds no pixels."""
    feature: Any = (getattr(table, "features", None) or {}).get(name)
    if getattr(feature, "decode", None) is True and hasattr(table, "cast_column"):
        return table.cast_column(name, type(feature)(decode=False))
    return table


def in_folder(image: Any, folder: str | Path) -> Any:
    """A picture of a table: the content or the path of what the hub stores, and paths below ``folder``."""
    if isinstance(image, Mapping):
        image = image.get("bytes") or image.get("path")
    return Path(folder, image) if isinstance(image, (str, Path)) else image


def plain_label(label: Any) -> Any:
    """A label without what libraries make of it: NumPy's numbers become Python's, whole ones with a point whole."""
    if isinstance(label, np.generic):
        label = label.item()
    return int(label) if isinstance(label, float) and label.is_integer() else label
