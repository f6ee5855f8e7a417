"""What the page is made of: sections, each with a title and its tables, pictures and examples; nothing of HTML."""

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

SHOWN_ROWS = 40
"""Rows of a table on the page, unless it says otherwise; the file beside it has them all."""
SHOWN_CHARACTERS = 160
"""Characters of a cell on the page."""


@dataclass(frozen=True)
class Table:
    """Numbers in rows, on the page rounded and in its CSV file in full."""

    name: str
    """Of its file, without the ending."""
    header: tuple[str, ...]
    """The columns' titles."""
    rows: Sequence[Sequence[Any]]
    """Texts, numbers or None where there is none; all rows as long as the header."""
    formats: tuple[str, ...] = ()
    """How the numbers of each column are shown, such as ".2f"; empty or missing: as they are."""
    caption: str = ""
    most: int = SHOWN_ROWS
    """Rows on the page."""

    kind: ClassVar[str] = "table"

    def shown(self) -> list[list[str]]:
        """The cells of the first rows, as the page shows them."""
        formats = [*self.formats, *[""] * len(self.header)][: len(self.header)]
        return [
            [_cell(value, form) for value, form in zip(row, formats, strict=True)] for row in self.rows[: self.most]
        ]

    def numeric(self) -> list[bool]:
        """Of each column whether it holds numbers, which stand to the right."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.header)
        return [
            any(value is not None for value in column)
            and all(value is None or isinstance(value, int | float) for value in column)
            for column in map(list, columns)
        ]

    @property
    def more(self) -> int:
        """Rows that the page leaves out."""
        return max(0, len(self.rows) - self.most)

    def csv(self) -> str:
        """All rows as the text of a CSV file."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(self.header)
        writer.writerows(self.rows)
        return text.getvalue()


@dataclass(frozen=True)
class Picture:
    """A picture, what it says in words, and its numbers."""

    numbers: Table
    """What is drawn; its name is the picture's too."""
    alt: str
    """What one who does not see it should know."""
    draw: Callable[[IO[bytes]], Any]
    """Writes it as a PNG in the colours that matplotlib is set to."""
    caption: str = ""
    wide: bool = False
    """Whether it needs the whole width of the page; on a phone it can then be moved sideways."""

    kind: ClassVar[str] = "picture"

    @property
    def name(self) -> str:
        """Of its files, without the ending."""
        return self.numbers.name


@dataclass(frozen=True)
class Part:
    """A stretch of a text."""

    text: str
    label: str = ""
    """Of an entity, its type; else nothing."""
    state: str = ""
    """Of an entity `right` or `wrong`; of a word that speaks for the wrong answer `speaks`; else nothing."""


@dataclass(frozen=True)
class Example:
    """An example that the model got wrong, or whose label is in doubt."""

    number: int
    """Its place in the split, from 1."""
    true: str
    """Its label; of a sentence what went wrong."""
    predicted: str
    """What the model said."""
    parts: tuple[Part, ...] = ()
    """Its text; of a sentence as it is labelled."""
    predicted_parts: tuple[Part, ...] = ()
    """Of a sentence, how the model labelled it."""
    picture: str = ""
    """Of an image, a small one as a data URI."""
    note: str = ""
    """What else is to say, such as how sure the model was."""


@dataclass(frozen=True)
class Examples:
    """Examples one below another."""

    examples: Sequence[Example]
    caption: str = ""

    kind: ClassVar[str] = "examples"


Block = Table | Picture | Examples


@dataclass(frozen=True)
class Section:
    """One subject of the page."""

    key: str
    """Its anchor in the page."""
    title: str
    note: str = ""
    """How it is to be read."""
    blocks: Sequence[Block] = field(default_factory=tuple)
    missing: str = ""
    """Why it has no numbers, and what to do for them."""

    def __post_init__(self) -> None:
        assert self.blocks or self.missing, f"the section {self.key} says nothing"

    @property
    def tables(self) -> list[Table]:
        """Its tables, those of its pictures included."""
        return [
            block.numbers if isinstance(block, Picture) else block
            for block in self.blocks
            if isinstance(block, Table | Picture)
        ]

    @property
    def pictures(self) -> list[Picture]:
        """Its pictures."""
        return [block for block in self.blocks if isinstance(block, Picture)]


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "–"
    text = format(value, form) if form and isinstance(value, int | float) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}…"
