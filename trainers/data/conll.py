"""CoNLL files: a word a line, first column the word, last its tag; blank lines between sentences."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from trainers.data.rows import BadRows, numbered_lines, short

TAG = re.compile(r"O|[BI]-.+")


def read_conll_file(path: Path, bad_rows: BadRows) -> Iterator[tuple[list[str], list[str]]]:
    """Words and tag names of every usable sentence, one after another; a bad line makes its whole sentence unusable."""
    sentence: list[tuple[str, str]] = []
    usable = True
    # One more blank line closes a file that does not end in one.
    for number, line in chain(numbered_lines(path), [(0, b"")]):
        if not line.strip() or line.startswith(b"-DOCSTART-"):
            if sentence and usable:
                yield [word for word, _ in sentence], [tag for _, tag in sentence]
            sentence, usable = [], True
        elif usable:
            try:
                sentence.append(parse_conll_line(line))
            except ValueError as problem:
                bad_rows.add(path, number, str(problem))
                usable = False


def conll_labels(sentences: Iterable[list[str]]) -> tuple[str, ...]:
    """O, then B-X and I-X for every type X that occurs, sorted by type."""
    types = sorted({tag[2:] for sentence in sentences for tag in sentence if tag != "O"})
    return ("O", *(f"{prefix}-{kind}" for kind in types for prefix in "BI"))


def as_iob2(tags: list[str]) -> list[str]:
    """Tags in IOB2: an I- that continues no entity of its type opens one, as it does in IOB1."""
    repaired = []
    previous = "O"
    for tag in tags:
        opens = tag.startswith("I-") and previous[2:] != tag[2:]
        repaired.append(f"B-{tag[2:]}" if opens else tag)
        previous = tag
    return repaired


def parse_conll_line(line: bytes) -> tuple[str, str]:
    """Word and tag of one line; ValueError says what is wrong with it."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 ({error})") from error
    # Only tabs or plain spaces part columns: words may hold other white space, such as a no-break space.
    columns = text.split("\t") if "\t" in text else text.strip(" ").split(" ")
    word, tag = columns[0].strip(" "), columns[-1].strip(" ")
    if len(columns) < 2 or not word or not tag:
        raise ValueError(f"expected a word and a tag, parted by a tab or a space, got {short(text)}")
    if not TAG.fullmatch(tag):
        raise ValueError(f"tag {short(tag)} of {short(word)} is not in the IOB scheme: expected O, B-TYPE or I-TYPE")
    return word, tag
