"""Lines of a data file, and what becomes of the ones that cannot be used."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "skip"]

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
