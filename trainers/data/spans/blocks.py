"""Texts with spans in blocks of lines: PubTator, and the TSV 3 of WebAnno and INCEpTION.

A block is a document of PubTator, `1|t|Title`, `1|a|Abstract` and a line `1<TAB>start<TAB>end<TAB>text<TAB>TYPE` for
each span; or a sentence of WebAnno, `1-1<TAB>0-4<TAB>Anna<TAB>PER[1]` for each word, whose columns a head of lines
`#T_SP=layer|feature` names.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from trainers.data.rows import short
from trainers.data.spans.align import WIDENED, Document, Note, Span, place_of_words, span

Form = Literal["PubTator", "WebAnno"]
Numbered = tuple[int, str]
"""A line and its number."""

RELATIONS = "lines of PubTator that are no span, such as relations, were passed over"
NO_VALUE = "spans of WebAnno have no value (*) and were passed over"
NO_ENTITIES = (".type.pos.", "lemma", "morpholog", "stem", "tokenform", "surfaceform")
"""What names of WebAnno's layers hold that say something of every word."""

_TEXT = re.compile(r"([^|\s]+)\|([at])\|(.*)", re.DOTALL)
_TOKEN = re.compile(r"\d+-(\d+)(\.\d+)?")
_PART = re.compile(r"((?:[^\\|]|\\.)+)(?:\||$)")
_EMPTY = re.compile(r"([_*|]|\[\d+\])*")
_VALUE = re.compile(r"(.*?)(?:\[(\d+)\])?", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """The lines of one document or sentence."""

    form: Form
    lines: tuple[Numbered, ...]
    column: int = 0
    """Of WebAnno, the column of the entities, from 0."""


def form_of(first: str, where: object) -> Form | None:
    """The form of a file by its first line that is not blank.

    Raises:
        ValueError: it is an older form of WebAnno's.
    """
    if first.startswith("#FORMAT=WebAnno TSV 3"):
        return "WebAnno"
    if first.startswith(("#FORMAT=WebAnno", "# webanno.custom.", "# de.tudarmstadt.ukp.dkpro")):
        raise ValueError(f"{where} is an older TSV of WebAnno. Export the project again as WebAnno TSV v3.3.")
    match = _TEXT.match(first)
    return "PubTator" if match and match[2] == "t" else None


def blocks(form: Form, lines: Iterable[Numbered], where: object) -> Iterator[tuple[int, Block]]:
    """The blocks of a file, each with the number of its first line.

    Raises:
        ValueError: no column of WebAnno holds entities, or several do.
    """
    column = 0
    if form == "WebAnno":
        lines = list(lines)
        column = _entity_column(lines, where)
    block: list[Numbered] = []
    for number, line in lines:
        is_text = form == "PubTator" and block and _TEXT.match(line) and f"{line.split('|')[0]}|" not in block[0][1]
        if (not line.strip() or is_text) and block:
            yield block[0][0], Block(form, tuple(block), column)
            block = []
        if line.strip() and not (form == "WebAnno" and line.startswith("#")):
            block.append((number, line))
    if block:
        yield block[0][0], Block(form, tuple(block), column)


def read_block(block: Block, note: Note) -> Document:
    """The document of a block.

    Raises:
        ValueError: a line is damaged. The message has its number.
    """
    return (_pubtator if block.form == "PubTator" else _webanno)(block, note)


def _pubtator(block: Block, note: Note) -> Document:
    texts, spans = [], []
    for number, line in block.lines:
        cells = line.split("\t")
        if match := _TEXT.fullmatch(line):
            texts.append(match[3])
        elif len(cells) >= 5 and cells[1].isdecimal() and cells[2].isdecimal():
            spans.append(span(int(cells[1]), int(cells[2]), cells[4], cells[3], f"line {number}: "))
        elif len(cells) >= 4:
            note(RELATIONS, f"line {number}")
        else:
            raise ValueError(f"line {number}: expected PMID<TAB>START<TAB>END<TAB>TEXT<TAB>TYPE, got {short(line)}")
    return Document(" ".join(texts), spans)


def _webanno(block: Block, note: Note) -> Document:
    """The words of a sentence, and a span for each entity: `PER[1]` at several words, or `PER` at one."""
    words: list[str] = []
    places: dict[tuple[str, str], list[int]] = defaultdict(list)
    for number, line in block.lines:
        cells = line.split("\t")
        token = _TOKEN.fullmatch(cells[0])
        if not token or len(cells) <= max(block.column, 2):
            raise ValueError(f"line {number}: expected a word with {block.column + 1} columns, got {short(line)}")
        if token[2]:
            place = int(token[1]) - 1  # a part of the word before it
        else:
            place = len(words)
            words.append(cells[2])
        for part in _PART.findall(cells[block.column]):
            match = _VALUE.fullmatch(part)
            assert match
            label, several = re.sub(r"\\(.)", r"\1", match[1]), match[2]
            if label == "*":
                note(NO_VALUE, f"line {number}")
            elif label != "_":
                if token[2]:
                    note(WIDENED, f"line {number}: {short(words[place] if place < len(words) else cells[2])}")
                places[label, several or f"line {number}"].append(place)
    text, ends = place_of_words(words)
    if any(place >= len(words) for own in places.values() for place in own):
        raise ValueError(f"line {block.lines[0][0]}: a part of a word stands before the word")
    spans = [
        Span(((ends[min(own)][0], ends[max(own)][1]),), label, where=f"line {block.lines[min(own)][0]}: ")
        for (label, _), own in places.items()
    ]
    return Document(text, spans, ends)


def _entity_column(lines: list[Numbered], where: object) -> int:
    """The column with values of the only feature of a layer of spans that says more than what every word is.

    Raises:
        ValueError: there is none, or there are several.
    """
    features: dict[int, str] = {}
    column = 3  # behind the number, the place and the word
    for _, line in lines:
        match = re.match(r"#T_(SP|CH|RL)=([^|]+)\|?(.*)", line)
        if match:
            for name in match[3].split("|"):
                if match[1] == "SP" and not any(part in match[2].lower() for part in NO_ENTITIES):
                    features[column] = f"{match[2]}|{name}"
                column += 1
    rows = [cells for _, line in lines if _TOKEN.fullmatch((cells := line.split("\t"))[0])]
    filled = {
        place: name
        for place, name in features.items()
        if any(len(cells) > place and not _EMPTY.fullmatch(cells[place]) for cells in rows)
    }
    named = [place for place, name in filled.items() if name.lower().endswith("namedentity|value")]
    chosen = list(filled) if len(filled) == 1 else named
    if len(chosen) != 1:
        several = f"several layers of spans have values: {', '.join(filled.values())}"
        found = several if filled else "no layer of spans has a value"
        raise ValueError(f"{where}: {found}. Export the project as WebAnno TSV v3.3 with one layer of entities.")
    return chosen[0]
