"""Lines of a data file, and what becomes of the ones that cannot be used."""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

# DOC """Tagged sentences in parquet files, read with pyarrow: the only module that needs it."""

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]

TAG_COLUMNS = ("ner_tags", "tags")
"""Columns that can hold the tags of words, the first that is there."""

NAMED_ROWS = 5
"""Bad rows that the report names; the rest it only counts."""


@dataclass
class BadRows:
    """Rows that cannot be used: `on_bad_row` "error" raises at the first, "skip" counts them."""

    on_bad_row: OnBadRow
    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, file: Path | str, line: int | None, problem: str) -> None:
        """A bad line of a file, or with `line` None a file that is bad as a whole."""
        where = f"{file}: {problem}" if line is None else f"{file}:{line}: {problem}"
        if self.on_bad_row == "error":
            raise ValueError(f"{where}. Correct the file, or pass on_bad_row='skip' to leave such rows out.")
        self.count += 1
        if len(self.first) < NAMED_ROWS:
            self.first.append(where)

    def report(self) -> None:
        if self.count:
            more = "; ..." if self.count > len(self.first) else ""
            logger.warning("left out %d bad rows: %s%s", self.count, "; ".join(self.first), more)


def numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1, as bytes, without byte order mark and line end.

    Bytes, so that only a newline ends a line (str.splitlines also breaks at characters that stand in texts),
    and so that a byte that is not UTF-8 spoils one row and not the file.
    """
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            yield number, line.rstrip(b"\r\n")


def short(value: object) -> str:
    """A value for an error message, cut to a readable length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


def refuse_lone_surrogates(text: str) -> None:
    """Raise ValueError for half of a surrogate pair: JSON can spell it, no tokenizer takes it."""
    if text.isascii():
        return
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"the text holds {text[error.start]!r}, half of a character") from error


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
