"""Labelled texts a line each: with the label in the line (fastText, TREC, numbers, trees of words), in the file's name,
or on the same line of a file beside it.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from trainers.data.delimited import PEEK
from trainers.data.reading import Reading
from trainers.data.rows import BadRows, Lines, Row, numbered_lines, short
from trainers.data.tabular import Table

FASTTEXT_LABEL = "__label__"
CLASS_ENDS = (".pos", ".neg", ".objective", ".subjective")
"""Ends of the names of files whose texts are all of one class, as those of rt-polarity."""
UTTERANCES, INTENTS = "seq.in", "label"
"""Names of files of which each line is a text, and the label of that text: ATIS and SNIPS."""

_FASTTEXT = re.compile(rb"(^|\s)__label__\S")
_LABEL_FIRST = re.compile(rb"([A-Z]+:[A-Za-z]+|[+-]?\d+) +\S")
"""A label as TREC writes it (DESC:manner), or a number, then a text."""
_TREE = re.compile(rb"\(\d+ .*\)")
_LEAF = re.compile(r"\(\d+ ([^()]+)\)")
_BRACKETS = {"-LRB-": "(", "-RRB-": ")", "-LSB-": "[", "-RSB-": "]", "-LCB-": "{", "-RCB-": "}"}


def line_form_of(path: Path, lines: Lines) -> Table | None:
    """The table in a file with a text a line; None: it is none of these forms."""
    names = ["text", "label"]
    first = next((line for _, line in lines if line.strip()), b"")
    if path.suffix in CLASS_ENDS:
        return Table(path, "a file for each class", names, _ClassFile(path, lines))
    if is_fasttext(first):
        return Table(path, "fastText", names, _FastText(path, lines))
    if _TREE.fullmatch(first.strip()):
        return Table(path, "trees", names, _Trees(path, lines))
    if leading_labels(lines):
        return Table(path, "label first", names, _LabelFirst(path, lines))
    return None


def leading_labels(lines: Lines) -> frozenset[str]:
    """The labels that every one of the first lines begins with, before a text; none where they do not come again, or
    lines have columns."""
    head = [line.strip() for _, line in lines[: 10 * PEEK] if line.strip()]
    if len(head) < 2 or not all(map(_LABEL_FIRST.match, head)):
        return frozenset()
    labels = Counter(map(leading_label, head))
    if not 1 < len(labels) <= max(2, len(head) // 2) or all(b"\t" in line for line in head):
        return frozenset()
    return frozenset(labels)


def leading_label(line: bytes) -> str:
    """What may be a label at the beginning of a line: as TREC writes it, or a number; empty: there is none."""
    return line.split(b" ", 1)[0].decode() if _LABEL_FIRST.match(line) else ""


def is_fasttext(line: bytes) -> bool:
    """Whether a line has a label as fastText writes it, anywhere."""
    return _FASTTEXT.search(line) is not None


def _decoded(path: Path, lines: Lines, bad_rows: BadRows) -> Iterator[tuple[int, str]]:
    """Number and text of the lines that are not blank, without the blanks around them."""
    for number, line in lines:
        try:
            text = line.decode("utf-8").strip()
        except UnicodeDecodeError as error:
            bad_rows.add(path, number, f"not UTF-8 ({error})")
            continue
        if text:
            yield number, text


@dataclass(frozen=True)
class _FastText:
    """Lines such as `__label__pos A fine film.`; one with several labels has a list of them."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in _decoded(self.path, self.lines, bad_rows):
            words = line.split(" ")
            labels = [word.removeprefix(FASTTEXT_LABEL) for word in words if word.startswith(FASTTEXT_LABEL)]
            text = " ".join(word for word in words if not word.startswith(FASTTEXT_LABEL))
            yield number, {"text": text, "label": labels if len(labels) > 1 else "".join(labels)}


@dataclass(frozen=True)
class _LabelFirst:
    """Lines such as `DESC:manner How did serfdom develop?` and `1 a stirring , funny film`."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in _decoded(self.path, self.lines, bad_rows):
            if _LABEL_FIRST.match(line.encode()):
                label, _, text = line.partition(" ")
                yield number, {"text": text, "label": label}
            else:
                bad_rows.add(self.path, number, f"expected a label, a blank and a text, got {short(line)}")


@dataclass(frozen=True)
class _Trees:
    """Lines such as `(3 (2 It) (4 (2 's) (3 good)))`, a tree of a sentence whose root has its label."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in self.lines:
            text = line.decode("utf-8", "replace").strip()
            if not text:
                continue
            words: list[str] = _LEAF.findall(text)
            if not _TREE.fullmatch(line.strip()) or not words or text.count("(") != text.count(")"):
                bad_rows.add(self.path, number, f"expected a tree such as (3 (2 It) (4 works)), got {short(text)}")
                continue
            yield number, {"text": " ".join(_BRACKETS.get(word, word) for word in words), "label": text[1:].split()[0]}


@dataclass(frozen=True)
class _ClassFile:
    """A text a line, all of the class that the end of the file's name says."""

    path: Path
    lines: Lines

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        for number, line in self.lines:
            if line.strip():
                try:
                    yield number, {"text": line.decode("utf-8"), "label": self.path.suffix[1:]}
                except UnicodeDecodeError as error:
                    bad_rows.add(self.path, number, f"not UTF-8 ({error})")


@dataclass(frozen=True)
class ParallelLines:
    """A text a line, and in another file its label on the same line."""

    path: Path
    labels: Path
    reading: Reading

    def __call__(self, columns: Collection[str], bad_rows: BadRows) -> Iterator[Row]:
        """The rows.

        Raises:
            ValueError: the files differ in their numbers of lines.
        """
        texts = list(numbered_lines(self.path, encoding=self.reading.encoding))
        labels = [line for _, line in numbered_lines(self.labels, encoding=self.reading.encoding)]
        if len(texts) != len(labels):
            raise ValueError(f"{self.path} has {len(texts)} lines and {self.labels} {len(labels)}: expected as many.")
        for (number, text), label in zip(texts, labels, strict=True):
            try:
                yield number, {"text": text.decode("utf-8"), "label": label.decode("utf-8")}
            except UnicodeDecodeError as error:
                bad_rows.add(self.path, number, f"not UTF-8 ({error})")
