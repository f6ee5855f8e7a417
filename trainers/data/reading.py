"""How the files of a data set are read, where a user says so."""

import codecs
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trainers.data.rows import OnBadRow

if TYPE_CHECKING:
    from trainers.config import DataSettings


@dataclass(frozen=True)
class Reading:
    """What a user says about the files; empty: what their content suggests."""

    columns: str = ""
    """Words: the columns of the word and of the tag, "2,4" from 1, or names in a header."""
    text_column: str = ""
    """Texts: the column of the text, or of its parts."""
    pair_column: str = ""
    """Texts: the column of a second text."""
    label_column: str = ""
    """Texts, images: the column of the label."""
    delimiter: str = ""
    """What stands between columns; "tab" is a tab."""
    encoding: str = ""
    """Of text files, a name that Python knows."""
    on_bad_row: OnBadRow = "error"
    """Whether a damaged row stops the reader, or is counted and left out."""

    def __post_init__(self) -> None:
        if len(self.delimiter) != 1 and self.delimiter not in ("", "tab"):
            raise ValueError(f"--delimiter is {self.delimiter!r}, expected one character, or tab.")
        try:
            codecs.lookup(self.encoding or "utf-8")
        except LookupError as error:
            raise ValueError(
                f"--encoding is {self.encoding!r}: {error}. Usual are utf-8, cp1252 and utf-16."
            ) from error

    @property
    def separator(self) -> str:
        """The character between columns; empty: what the content says."""
        return "\t" if self.delimiter == "tab" else self.delimiter

    @classmethod
    def of(cls, config: "DataSettings") -> "Reading":
        """What the settings of a run say."""
        return cls(**{name: getattr(config, name) for name in cls.__dataclass_fields__})


AS_FOUND = Reading()
"""Nothing is said: the files are read as their content suggests."""
