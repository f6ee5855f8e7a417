"""Files with a word a line (CoNLL and its many relatives): which column is the word, which the tag, by their content.

The layout is found in the first lines of the files (`find_columns`) and used on every line (`Columns`).
"""

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from trainers.data.rows import short
from trainers.data.tokens.bio import OUTSIDE
from trainers.data.tokens.schemes import UNLABELLED, Notation, notation_of, tag_parts

SEPARATORS = ("\t", " ", ",", ";", "|")
"""What may part columns, in the order in which it is tried."""
WORD_HEADERS = frozenset({"word", "words", "token", "tokens", "form", "text"})
TAG_HEADERS = frozenset({"tag", "tags", "label", "labels", "ner", "ner_tag", "ner_tags", "iob", "bio", "entity", "ne"})
SENTENCE_HEADER = re.compile(r"(sent|sentence|sequence|doc|document|id)\b.*|sent(ence)?[ _#-].*")
CHUNKS = frozenset(["NP", "VP", "PP", "ADVP", "ADJP", "SBAR", "PRT", "CONJP", "INTJ", "LST", "UCP"])
"""Types of phrases, which stand beside the entities in CoNLL-2003."""
CONLL_2012 = 2, 3, 10
"""The columns of the number of the word, of the word and of the entities, which stand in brackets."""
FAULTY = 0.1
"""Share of the lines of a column of tags that may hold something else: damage, named when the line is read."""
OUTSIDE_SHARE = 0.3
"""A column of types alone is one of tags where so many of its values are O."""

_INDEX = re.compile(r"(\d+)([-.]\d+)?")
_COMMENT = re.compile(r"#(\s|begin document|end document)")
_BRACKETS = re.compile(r"(?!$)(\([\w-]+)?\*?\)?")
_LETTERED: tuple[Notation, ...] = ("B-X", "B_X", "X-B")
_NAMED_TAG = re.compile(r"(?:^|\|)(NER|Ner|ner|NE|Entity|entity)=([^|]+)")


@dataclass(frozen=True)
class Columns:
    """How a line is read."""

    word: int = 0
    """The column of the word, from 0; negative ones count from the end."""
    tag: int = -1
    """The column of the tag."""
    separator: str = ""
    """The character between columns. Empty: in each line a tab if it has one, otherwise spaces."""
    count: int = 0
    """Columns of every line. 0: two or more."""
    index: int | None = None
    """The column that numbers the words of a sentence; lines of ranges (1-2) and empty nodes (1.1) are passed over."""
    starts: int | None = None
    """The column that tells sentences apart where no blank lines do: numbers that begin anew, or a name."""
    header: bool = False
    """Whether the first line names the columns."""
    key: str = ""
    """The name of the tag among others in its column: NER=B-PER|SpaceAfter=No."""
    notation: Notation | None = None
    """The notation of the tags, where the lines that were looked at tell."""

    def cells(self, text: str) -> list[str]:
        """The columns of a line."""
        return split_line(text, self.separator, self.count)

    def word_and_tag(self, text: str) -> tuple[str, str] | None:
        """What a line holds; None for a range or an empty node.

        Raises:
            ValueError: it has other columns, or one of the two is empty.
        """
        cells = self.cells(text)
        if len(cells) < 2 or (self.count and len(cells) != self.count):
            wanted = f"{self.count} columns" if self.count > 2 else "a word and a tag"
            parted = {"\t": "a tab", " ": "spaces", "": "a tab or a space"}.get(self.separator, repr(self.separator))
            many = f" ({len(cells)} columns)" if len(cells) > 1 else ""
            raise ValueError(f"expected {wanted}, parted by {parted}, got {short(text)}{many}")
        if self.index is not None and not cells[self.index].isdecimal() and _INDEX.fullmatch(cells[self.index]):
            return None
        try:
            word, tag = cells[self.word].strip(" "), cells[self.tag].strip(" ")
        except IndexError:
            raise ValueError(f"has no column {max(self.word, self.tag) + 1}: {short(text)}") from None
        if self.key:
            tag = next((value for name, value in _NAMED_TAG.findall(tag) if name == self.key), OUTSIDE)
        if not word or not tag:
            raise ValueError(f"expected a word and a tag, got {short(text)}")
        return word, tag

    def is_comment(self, text: str, first: bool) -> bool:
        """Whether a line that begins with # says something about the sentence; it may be a word with its tag.

        Args:
            text: the line.
            first: whether no word of its sentence comes before it.
        """
        cells = self.cells(text)
        has_tag = -len(cells) <= self.tag < len(cells)
        if len(cells) >= 2 and len(cells) == (self.count or len(cells)) and has_tag and not self.key:
            notations: Sequence[Notation] = ("X",) if self.notation == "X" else _LETTERED
            tag = cells[self.tag].strip(" ")
            if tag in UNLABELLED or any(tag_parts(tag, notation) for notation in notations):
                return False
        return first or _COMMENT.match(text) is not None


def split_line(text: str, separator: str, count: int = 0) -> list[str]:
    """The columns of a line; empty ones behind the last of ``count`` are none."""
    # Only tabs or plain spaces part columns: words may hold other white space, such as a no-break space.
    separator = separator or ("\t" if "\t" in text else " ")
    if separator == " ":
        return [cell for cell in text.split(" ") if cell]
    cells = (
        text.split(separator)
        if separator in "\t " or '"' not in text
        else next(csv.reader([text], delimiter=separator))
    )
    while count and len(cells) > count and not cells[-1].strip():
        cells.pop()
    return cells


@dataclass(frozen=True)
class Sample:
    """The first lines of a file, cut into columns."""

    sentences: list[list[list[str]]]
    """Cells of each line of each sentence; lines with another number of columns are left out."""
    header: list[str]
    """The names of the columns; empty where the first line is no header."""
    separator: str
    count: int
    """Columns of most lines."""
    ragged: bool = False
    """Whether many lines have other numbers of columns, as in CoNLL-2012, which has one for each predicate."""

    def column(self, index: int) -> list[str]:
        """All values of a column."""
        return [cells[index].strip(" ") for sentence in self.sentences for cells in sentence]


def read_sample(lines: Sequence[str], separator: str = "") -> Sample:
    """The first lines of a file, parted by what gives them a column of tags, or most columns.

    Args:
        lines: the lines, with blank ones between sentences.
        separator: what parts the columns; empty: what their content says.
    """
    best = None
    for candidate in (separator,) if separator else SEPARATORS:
        sample = _cut(lines, candidate)
        if sample.count < 2:
            continue
        if candidate == " " and any("\t" in line for line in lines if not line.startswith("#")):
            sample = _cut(lines, "")  # some lines have tabs
        if sample.header or _tag_columns(sample):
            return sample
        best = best or sample
    return best or _cut(lines, separator or " ")


def _cut(lines: Sequence[str], separator: str) -> Sample:
    sentences: list[list[list[str]]] = [[]]
    for line in lines:
        if not line.strip() or line.startswith("-DOCSTART-"):
            sentences.append([])
        elif not line.startswith("#"):
            sentences[-1].append(split_line(line, separator))
    counts = Counter(len(cells) for sentence in sentences for cells in sentence)
    count = counts.most_common(1)[0][0] if counts else 0
    ragged = counts.total() - counts[count] > FAULTY * counts.total()
    while count > 2 and not any(cells[count - 1].strip() for own in sentences for cells in own if len(cells) == count):
        count -= 1  # every line ends in a separator
    kept = [[cells[:count] for cells in own if len(cells) == count or not any(cells[count:])] for own in sentences]
    kept = [[cells for cells in own if len(cells) == count] for own in kept]
    kept = [own for own in kept if own]
    header: list[str] = []
    if kept:
        names = [cell.strip().lower() for cell in kept[0][0]]
        if WORD_HEADERS & set(names) and TAG_HEADERS & set(names):
            header = kept[0].pop(0)
    return Sample([own for own in kept if own], header, separator, count, ragged)


def _tag_columns(sample: Sample) -> list[int]:
    """The columns whose values are tags: with letters and types if there are any, else types alone, else phrases."""
    lettered, phrases, alone = [], [], []
    for index in range(sample.count):
        values = Counter(sample.column(index))
        for value in UNLABELLED:
            del values[value]
        notation = notation_of(values)
        if notation is None:
            continue
        bare = all(len(tag) == 1 for tag in values if tag_parts(tag, notation))  # B and I alone are also words
        allowed = max(1, FAULTY * values.total())
        if sum(number for tag, number in values.items() if not tag_parts(tag, notation)) > allowed:
            continue
        if bare and OUTSIDE not in values:
            continue
        types = {parts[1] for tag in values if tag != OUTSIDE and (parts := tag_parts(tag, notation))}
        if notation != "X":
            (phrases if types <= CHUNKS else lettered).append(index)
        elif values[OUTSIDE] >= OUTSIDE_SHARE * values.total():
            alone.append(index)
    return lettered or alone or phrases


def _outside_column(sample: Sample) -> list[int]:
    """The last column that holds O, for samples without any entity."""
    return [index for index in range(sample.count) if OUTSIDE in sample.column(index)][-1:]


def _index_column(sample: Sample) -> int | None:
    """The first column that counts the words of each sentence."""
    for index in range(sample.count):
        longest = 0
        for sentence in sample.sentences:
            cells = [cells[index] for cells in sentence]
            if not all(map(_INDEX.fullmatch, cells)):
                break
            numbers = [int(cell) for cell in cells if cell.isdecimal()]
            if any(b != a + 1 and not b == numbers[0] != a for a, b in pairwise(numbers)):
                break
            longest = max(longest, len(numbers))
        else:
            # Where all sentences are of one word, all of them must be the first.
            if longest > 1 or (sample.count > 2 and set(sample.column(index)) in ({"0"}, {"1"})):
                return index
    return None


def _is_constant(sample: Sample, index: int) -> bool:
    """Whether a column holds the same in all lines of a sentence, such as the name of its document."""
    return any(len(own) > 1 for own in sample.sentences) and all(
        len({cells[index] for cells in own}) == 1 for own in sample.sentences
    )


def _is_conll_2012(sample: Sample) -> bool:
    """Whether the columns are those of CoNLL-2012, of which the sixth has the brackets of the parse."""
    number, _, entities = CONLL_2012
    return (
        sample.count > entities
        and all(map(str.isdecimal, sample.column(number)))
        and all(map(_BRACKETS.fullmatch, sample.column(entities)))
        and all("*" in value for value in sample.column(5))
    )


def find_columns(samples: Sequence[Sample], asked: str, where: str) -> Columns | None:
    """How files of one layout are read. None: they have no column of tags.

    The tag is in the one column that holds tags of a known scheme, and the word in the first that is neither a number
    of the word, nor the same throughout a sentence, nor a tag.

    Args:
        samples: the first lines of the files, with the same number of columns.
        asked: the columns that the user names: two numbers from 1, negative ones from the end, or names in a header.
        where: what messages call the files.

    Raises:
        ValueError: several columns hold tags, or what the user asks for is not there.
    """
    first = samples[0]
    pool = replace(first, sentences=[own for sample in samples for own in sample.sentences])
    index = _index_column(pool)
    if index is not None:  # ranges and empty nodes are no words
        kept = [[cells for cells in own if cells[index].isdecimal()] for own in pool.sentences]
        pool = replace(pool, sentences=kept)
    starts = _starts_column(pool, index)
    layout = Columns(separator=pool.separator, count=pool.count, index=index, starts=starts, header=bool(pool.header))
    if asked:
        layout = _asked_columns(asked, pool, layout, where)
    elif _is_conll_2012(pool):
        layout = replace(layout, word=CONLL_2012[1], tag=CONLL_2012[2], count=0, index=CONLL_2012[0])
    elif pool.header:
        layout = replace(layout, word=_named(pool.header, WORD_HEADERS), tag=_named(pool.header, TAG_HEADERS))
        if layout.tag not in (*_tag_columns(pool), *_outside_column(pool)):
            return None
    else:
        tags, key = _tag_columns(pool), ""
        if not tags and (named := _named_tags(pool)):
            tags, key = [named[0]], named[1]
        tags = tags or _outside_column(pool)
        others = [place for place in range(pool.count) if place not in (index, starts, *tags)]
        words = [place for place in others if not _is_constant(pool, place)] or others
        if not words or not tags:
            return None
        if len(tags) > 1:
            shown = "; ".join(f"column {tag + 1} has {_examples(pool, tag)}" for tag in tags)
            choices = " or ".join(f"--columns {words[0] + 1},{tag + 1}" for tag in tags)
            raise ValueError(f"{where}: several columns hold tags: {shown}. Say which to learn: {choices}.")
        layout = replace(layout, word=words[0], tag=tags[0], key=key)
    return replace(layout, notation=notation_of(Counter(_tags(pool, layout))))


def untagged_columns(sample: Sample) -> Columns:
    """How a file of words without tags is read: the word is in the first column that is not the number of the word."""
    if sample.count < 2:
        return Columns()
    index = _index_column(sample)
    others = [place for place in range(sample.count) if place != index]
    word = next((place for place in others if not _is_constant(sample, place)), others[0])
    header = bool(sample.sentences) and sample.sentences[0][0][word].strip().lower() in WORD_HEADERS
    return Columns(word, separator=sample.separator, count=sample.count, index=index, header=header)


def _tags(sample: Sample, layout: Columns) -> list[str]:
    """The values of the column of the tag that are tags, not blanks."""
    values = sample.column(layout.tag) if -sample.count <= layout.tag < sample.count else []
    if layout.key:
        values = [value for text in values for name, value in _NAMED_TAG.findall(text) if name == layout.key]
    return [value for value in values if value not in UNLABELLED]


def is_unlabelled(sample: Sample, layout: Columns) -> bool:
    """Whether a file has words, but blanks for all tags."""
    return bool(sample.sentences) and not layout.key and not _tags(sample, layout)


def unused(sample: Sample, layout: Columns) -> str:
    """What is not read of the lines, for a message; empty if nothing that says anything."""
    used = {layout.word % sample.count, layout.tag % sample.count, layout.starts}
    left = []
    for place in range(sample.count):
        if place not in used and len(set(sample.column(place))) > 1:
            name = sample.header[place] if sample.header else _examples(sample, place)
            left.append(f"{place + 1} ({'number of the word' if place == layout.index else name})")
    return ", ".join(left)


def _named(header: Sequence[str], names: frozenset[str]) -> int:
    """The first column of these names."""
    return next(place for place, name in enumerate(header) if name.strip().lower() in names)


def _asked_columns(asked: str, sample: Sample, layout: Columns, where: str) -> Columns:
    """The columns that a user names, by number or by name in the first line."""
    names = [name.strip() for name in asked.split(",")]
    first = sample.header or next((cells for own in sample.sentences for cells in own), [])
    shown = f"{where} has {sample.count} columns: {short(' | '.join(first))}"
    if len(names) != 2 or not all(names):
        raise ValueError(
            f"--columns is {asked!r}, expected the columns of the word and of the tag, such as 1,4. {shown}."
        )
    if not all(name.lstrip("-").isdecimal() for name in names):
        stripped = [cell.strip() for cell in first]
        if missing := [name for name in names if name not in stripped]:
            raise ValueError(f"--columns is {asked!r}, but the first line names no column {missing[0]!r}. {shown}.")
        return replace(layout, word=stripped.index(names[0]), tag=stripped.index(names[1]), header=True)
    word, tag = (int(name) - (int(name) > 0) for name in names)
    if "0" in names or not all(-sample.count <= place < sample.count for place in (word, tag)):
        raise ValueError(f"--columns is {asked!r}, expected two numbers from 1 to {sample.count}. {shown}.")
    return replace(layout, word=word, tag=tag, count=0 if min(word, tag) < 0 or sample.ragged else layout.count)


def _starts_column(sample: Sample, index: int | None) -> int | None:
    """What tells sentences apart in a file without blank lines."""
    if len(sample.sentences) != 1:
        return None
    if index is not None:
        values = [cells[index] for cells in sample.sentences[0]]
        return index if values.count(values[0]) > 1 else None
    return next(
        (place for place, name in enumerate(sample.header) if SENTENCE_HEADER.match(name.strip().lower())), None
    )


def _named_tags(sample: Sample) -> tuple[int, str] | None:
    """The column in which tags stand under a name, and that name."""
    for place in range(sample.count):
        names = Counter(name for value in sample.column(place) for name, _ in _NAMED_TAG.findall(value))
        if names:
            return place, names.most_common(1)[0][0]
    return None


def _examples(sample: Sample, place: int) -> str:
    """The most frequent values of a column."""
    return ", ".join(value for value, _ in Counter(sample.column(place)).most_common(3))
