"""Files with a word a line, tagged or not, that `lora-core predict` reads: which column is the word; the sentences."""

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

from trainers.data.reading import Reading
from trainers.data.rows import is_binary, numbered_lines, short
from trainers.data.sources import UNSPLIT
from trainers.data.tokens.columns import Columns, Sample, find_columns, read_sample, untagged_columns
from trainers.data.tokens.forms import FORMS
from trainers.data.tokens.head import HEAD_LINES, TaggedFile

logger = logging.getLogger("trainers")


@dataclass(frozen=True)
class WordFile:
    """A file with a word a line; blank lines, or a column, part sentences."""

    path: Path
    where: str
    """What messages call it."""
    given: Reading
    """What the user says of it."""
    trained: Reading
    """How the files were read that the model was trained on."""

    @property
    def is_tagged(self) -> bool:
        """Whether the content is tagged words for sure, whatever the file's name."""
        if is_binary(self.path):
            return False
        try:
            layout = find_columns([self._sample], "", self.where) if self._sample.sentences else None
        except ValueError:  # several columns could be tags
            return False
        return layout is not None and (layout.header or layout.notation not in (None, "X"))

    def sentences(self) -> Iterator[tuple[int, list[str], int, str]]:
        """(First line, words, bytes, what is wrong with it or nothing) of each sentence."""
        layout = self._columns()
        logger.info("%s is read as sentences, a word a line, in column %d", self.where, layout.word + 1)
        blocks, _ = FORMS["conll"]
        file = TaggedFile(self.path, "", UNSPLIT, "conll", layout, encoding=self.given.encoding)
        for first, (_, lines) in blocks(file, None):
            words, error = [], ""
            for behind, line in lines:
                try:
                    word = _word(decoded(line), layout)
                    words += [] if word is None else [word]
                except ValueError as problem:
                    error = error or f"line {first + behind}: {problem}"
            yield first, words, sum(len(line) + 1 for _, line in lines), error

    def _columns(self) -> Columns:
        """The columns: those that the user names, else those named in training, else what the content says."""
        sample = self._sample
        if asked := self.given.columns:
            if asked.isdecimal() and not 1 <= int(asked) <= max(1, sample.count):
                raise ValueError(f"--columns is {asked}, but {self.where} has {sample.count} columns.")
            return find_columns([sample], asked if "," in asked else f"{asked},{asked}", self.where) or Columns()
        for asked in dict.fromkeys((self.trained.columns, "")):
            try:
                if sample.sentences and (layout := find_columns([sample], asked, self.where)):
                    return layout
            except ValueError:  # the file has other columns; or several of tags, which do not count here
                continue
        return untagged_columns(sample)

    @cached_property
    def _sample(self) -> Sample:
        lines = islice(numbered_lines(self.path, encoding=self.given.encoding), HEAD_LINES)
        return read_sample([line.decode("utf-8", "replace") for _, line in lines], self.given.separator)


def _word(text: str, layout: Columns) -> str | None:
    """The word on a line; None for a range or an empty node."""
    cells = layout.cells(text)
    if layout.index is not None and len(cells) > layout.index and re.fullmatch(r"\d+[-.]\d+", cells[layout.index]):
        return None
    if not -len(cells) <= layout.word < len(cells) or not cells[layout.word].strip(" "):
        raise ValueError(f"there is no word in column {layout.word + 1}: {short(text)}")
    return cells[layout.word].strip(" ")


def decoded(line: bytes) -> str:
    """A line as text. Raises ValueError where it is not UTF-8."""
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
