"""Tags of any scheme, and the sentence's tags in BIO that they stand for.

Schemes differ in their letters: B begins an entity; I and M continue one; E and L end one; S, U and W are one of a
single word. They also differ in where the letter stands (`Notation`). A letter means the same in all of them, so a
corpus need not be read to its end before its tags can be converted; only letters that no scheme has together are an
error.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from trainers.data.rows import short
from trainers.data.tokens.bio import BIO_PREFIX, OUTSIDE

Notation = Literal["B-X", "B_X", "X-B", "X"]
"""Where the letter stands: before the type, behind it, or nowhere."""
Part = tuple[str, str]
"""The letter of a tag and the type of its entity, which is empty where letters stand alone; ("O", "") outside."""

SCHEMES = {"IOB": "BI", "IOBES": "BIES", "BILOU": "BILU", "BMEWO": "BMEW", "BMES": "BMES"}
"""The letters of each scheme, beside O."""
UNLABELLED = frozenset({"", "_", "-", "?", "-1", "-100"})
"""What stands for a tag in files whose tags are withheld."""

_LETTERS = "".join(BIO_PREFIX)
_PATTERNS: dict[Notation, re.Pattern[str]] = {
    "B-X": re.compile(rf"(?P<letter>[{_LETTERS}])(-(?P<type>.+))?"),
    "B_X": re.compile(rf"(?P<letter>[{_LETTERS}])_(?P<type>.+)"),
    "X-B": re.compile(rf"(?P<type>.+)[-_](?P<letter>[{_LETTERS}])"),
    "X": re.compile(r"(?P<letter>)(?P<type>(?![A-Za-z][-_])[^\W\d_][\w.:/&+-]+)"),
}
_EXPECTED: dict[Notation, str] = {
    "B-X": "is not in the IOB scheme: expected O, B-TYPE or I-TYPE, or the letters of IOBES, BILOU or BMEWO",
    "B_X": "is not like the others: expected O, B_TYPE or I_TYPE",
    "X-B": "is not like the others: expected O, TYPE-B or TYPE-I",
    "X": "is not like the others: expected O or the type of an entity, without B- or I-",
}


def tag_parts(tag: str, notation: Notation) -> Part | None:
    """The letter and the type of a tag; of a type alone, the letter is I. None: it is no tag in this notation."""
    if tag == OUTSIDE:
        return OUTSIDE, ""
    match = _PATTERNS[notation].fullmatch(tag)
    return (match["letter"] or "I", match["type"] or "") if match else None


def notation_of(tags: Mapping[str, int]) -> Notation | None:
    """The notation of most of these tags, by how often each occurs. None: none of them is a tag, or O alone.

    Types alone are tags only where no tag has a letter: almost any word would be one.
    """
    best: Notation | None = None
    most = 0
    for notation in _PATTERNS:
        if notation == "X" and most:
            break
        count = sum(number for tag, number in tags.items() if tag != OUTSIDE and tag_parts(tag, notation))
        if count > most:
            best, most = notation, count
    return best


class BadTag(ValueError):
    """What is wrong with one tag of a sentence."""

    def __init__(self, tag: str, index: int, problem: str) -> None:
        super().__init__(f"tag {short(tag)} {problem}")
        self.tag, self.index, self.problem = tag, index, problem


def expected(notation: Notation | None) -> str:
    """What is said of a tag that is none in this notation."""
    return _EXPECTED[notation or "B-X"]


def scheme_of(letters: Iterable[str], notation: Notation) -> str | None:
    """The name of the scheme with these letters, which may hold O. None: no scheme has them together."""
    used = set(letters) - {OUTSIDE}
    if notation == "X" or used == {"I"}:
        return "IO"
    if "E" in used and "B" not in used and used <= {"I", "E"}:
        return "IOE"
    return next((name for name, known in SCHEMES.items() if used <= set(known)), None)


def from_brackets(tags: Sequence[str]) -> list[str]:
    """Tags of a sentence in BIO, from those of CoNLL-2012: (PER* begins an entity, *) ends it, (PER) is a whole one.

    Raises:
        ValueError: a tag is none of these, or entities are nested.
    """
    found, inside = [], ""
    for tag in tags:
        match = re.fullmatch(r"(\((?P<type>[^()*]+))?(?P<star>\*)?(?P<end>\))?", tag)
        if not match or not tag or (match["type"] and inside) or (match["end"] and not (match["type"] or inside)):
            raise ValueError(f"tag {short(tag)} does not belong here: expected (TYPE*, *, *) or (TYPE), not nested")
        found.append(f"B-{match['type']}" if match["type"] else f"I-{inside}" if inside else OUTSIDE)
        inside = "" if match["end"] else match["type"] or inside
    return found
