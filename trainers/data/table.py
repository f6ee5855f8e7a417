"""Tables in memory as rows: a pandas or polars DataFrame, a datasets.Dataset, a list of dicts, a dict of lists.

They are known by what they can do, so none of these libraries is imported.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from trainers.data.rows import short

Row = dict[str, Any]


def is_table(value: Any) -> bool:
    """Whether `rows_of` reads this as a table: it is no list of dicts, no stream, and no single row."""
    if isinstance(value, Mapping):
        words = next((value[name] for name in ("tokens", "words") if name in value), None)
        is_sentence = isinstance(words, Sequence) and len(words) > 0 and isinstance(words[0], str)
        columns = value.values()
        return not is_sentence and len(columns) > 0 and all(isinstance(cells, (list, tuple)) for cells in columns)
    is_frame = hasattr(value, "to_dicts") or (hasattr(value, "to_dict") and hasattr(value, "columns"))
    return is_frame or (hasattr(value, "column_names") and hasattr(value, "__len__"))


def rows_of(table: Any, source: str) -> tuple[list[Row], dict[str, tuple[str, ...]]]:
    """The rows of a table, and for columns of label ids that have names these names.

    Args:
        table: with named columns.
        source: what messages call it.

    Raises:
        ValueError: it is something else, or its columns differ in length.
    """
    if hasattr(table, "to_dicts"):  # polars
        return list(table.to_dicts()), {}
    if hasattr(table, "to_dict") and hasattr(table, "columns"):  # pandas
        return list(table.to_dict("records")), _categories(table)
    if isinstance(table, Mapping):
        return _from_columns(table, source), {}
    if isinstance(table, str) or not hasattr(table, "__iter__"):
        raise ValueError(
            f"{source} is {short(table)}, expected a data set, a DataFrame, a list of dicts or a dict of lists."
        )
    rows = list(table)
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise ValueError(f"{source}, row {index}, is {short(row)}, expected a dict with a value for each column.")
    return [dict(row) for row in rows], _feature_names(table)


def column_of(rows: Sequence[Row], wanted: str, usual: Sequence[str], what: str, source: str) -> str:
    """The name of the column that holds something: the wanted one, or the first of the usual names that is there.

    Raises:
        ValueError: there is none. The message lists the columns.
    """
    columns = list(rows[0]) if rows else []
    found = next((name for name in ([wanted] if wanted else usual) if name in columns), None)
    if found is None:
        expected = repr(wanted) if wanted else f"one of {', '.join(usual)}"
        raise ValueError(f"{source} has the columns {columns}: expected {expected} for {what}.")
    return found


def _from_columns(table: Mapping[str, Any], source: str) -> list[Row]:
    columns = {name: list(values) for name, values in table.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{source}: its columns differ in length: {lengths}.")
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _feature_names(table: Any) -> dict[str, tuple[str, ...]]:
    """Names of label ids in the features of a datasets.Dataset, of a list of labels too."""
    found = {}
    for column, feature in dict(getattr(table, "features", None) or {}).items():
        names = getattr(feature, "names", None) or getattr(getattr(feature, "feature", None), "names", None)
        if names:
            found[column] = tuple(names)
    return found


def _categories(table: Any) -> dict[str, tuple[str, ...]]:
    """Categories of a DataFrame's columns, in their order; their values are names already."""
    found = {}
    for column in table.columns:
        categories = getattr(getattr(table[column], "cat", None), "categories", None)
        if categories is not None:
            found[column] = tuple(map(str, categories))
    return found
