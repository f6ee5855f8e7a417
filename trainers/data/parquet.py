"""Tagged sentences in parquet files, read with pyarrow: the only module that needs it."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

from trainers.data.finer import TAG_COLUMNS

BATCH = 1024
"""Rows in memory at a time."""


def metadata(path: Path) -> Any:
    """What the hub's libraries wrote about the columns; None where they did not."""
    schema = open_parquet(path).schema_arrow
    return json.loads((schema.metadata or {}).get(b"huggingface", b"null"))


def parquet_rows(path: Path) -> Iterator[tuple[int, "ParquetRow", float]]:
    """Number, row, and the share of the file that is read, for every row. Lists are made when a row is parsed."""
    file = open_parquet(path)
    columns = ["tokens", next((name for name in TAG_COLUMNS if name in file.schema_arrow.names), TAG_COLUMNS[0])]
    if missing := [name for name in columns if name not in file.schema_arrow.names]:
        raise ValueError(f"{path} has the columns {file.schema_arrow.names}, but lacks {missing}.")
    number, total = 0, max(file.metadata.num_rows, 1)
    for batch in file.iter_batches(batch_size=BATCH, columns=columns):
        words, tags = _Lists(batch.column("tokens")), _Lists(batch.column(columns[1]))
        for row in range(batch.num_rows):
            number += 1
            yield number, ParquetRow(words, tags, row), number / total


class ParquetRow:
    """One row of a batch."""

    __slots__ = ("_row", "_tags", "_words")

    def __init__(self, words: "_Lists", tags: "_Lists", row: int) -> None:
        self._words, self._tags, self._row = words, tags, row

    def lists(self) -> tuple[Any, Any]:
        """Words and tags; None for a list that is missing."""
        return self._words.get(self._row), self._tags.get(self._row)


class _Lists:
    """A column of lists, turned into Python objects for the whole batch when the first row is asked for."""

    def __init__(self, column: Any) -> None:
        self._column = column

    @cached_property
    def _rows(self) -> list[Any]:
        return self._column.to_pylist()

    def get(self, row: int) -> Any:
        return self._rows[row]


def open_parquet(path: Path) -> Any:
    """A pyarrow ParquetFile. Raises ValueError for a damaged file, ModuleNotFoundError with the remedy."""
    try:
        import pyarrow
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is parquet, which needs pyarrow: pip install 'lora-core[parquet]'", name=error.name
        ) from error
    try:
        return ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise ValueError(f"{path} is not a parquet file, or is cut short: {error}") from error
