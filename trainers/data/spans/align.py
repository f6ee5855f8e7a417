"""Labelled spans of a text to words with tags in BIO. The one home of these rules.

Words are those that raw text is cut into when a model is used (trainers/data/raw_text.py), or the annotation's own. A
text stays whole: longer ones than the model takes are cut into windows later. Offsets count code points. White space
around a span is no part of it; a span that begins or ends inside a word is widened to the words that it touches; of
spans that share a word the longest stays, among equally long ones the first. All that is changed is counted.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from trainers.data.raw_text import split_text
from trainers.data.rows import short

Place = tuple[int, int]
"""(start, end): `text[start:end]`."""
Note = Callable[[str, str], None]
"""Takes what was changed, in words that a number can stand before, and where."""

TRIMMED = "spans lost the white space around them"
WIDENED = "spans began or ended inside a word and were widened to the words that they touch"
REPEATED = "spans stood there twice"
OVERLAPPED = "spans share words with a longer or an earlier one, which stays, and were left out"
JOINED = "spans have several parts and were taken from the first to the last"


@dataclass(frozen=True)
class Span:
    """A labelled part of a text."""

    parts: tuple[Place, ...]
    """One, or several with gaps."""
    label: str
    """The type of the entity."""
    quoted: str = ""
    """The text of the span, where the annotation repeats it; of several parts with a space between."""
    where: str = ""
    """What messages say before it, such as its line."""

    @property
    def start(self) -> int:
        """Where it begins."""
        return self.parts[0][0]

    @property
    def end(self) -> int:
        """Where it ends: one past its last character."""
        return self.parts[-1][1]


@dataclass(frozen=True)
class Document:
    """A text and its spans."""

    text: str
    spans: list[Span]
    words: list[Place] | None = None
    """The annotation's own words; None: those of `split_text`."""


def words_and_tags(document: Document, note: Note) -> tuple[list[str], list[str]]:
    """The words of a document and a tag in BIO for each.

    Args:
        document: the text, its spans and perhaps its words.
        note: told about every span that is changed or left out.

    Raises:
        ValueError: a span lies outside of the text, is empty or covers no word, or its text is not the one that the
            annotation repeats. The message says which.
    """
    text = document.text
    words = split_text(text) if document.words is None else _own_words(text, document.words)
    starts, ends = [start for start, _ in words], [end for _, end in words]
    found = []
    for order, span in enumerate(_in_code_points(text, document.spans, note)):
        start, end = _trimmed(text, span)
        first, last = bisect_right(ends, start), bisect_left(starts, end)  # the words touched, and one past them
        if first >= last:
            raise ValueError(f"{_named(text, span)} covers no word")
        if (start, end) != (span.start, span.end):
            note(TRIMMED, _named(text, span))
        if starts[first] < start or ends[last - 1] > end:
            note(WIDENED, f"{_named(text, span)} is now {short(text[starts[first] : ends[last - 1]])}")
        if any(text[gap:after].strip() for (_, gap), (after, _) in zip(span.parts, span.parts[1:], strict=False)):
            note(JOINED, _named(text, span))
        found.append((start - end, start, order, first, last, span))
    tags = ["O"] * len(words)
    known: set[tuple[int, int, str]] = set()
    for negative_length, start, _, first, last, span in sorted(found, key=_longest_first):
        same = (start, negative_length, span.label)
        if same in known:
            note(REPEATED, _named(text, span))
        elif any(tag != "O" for tag in tags[first:last]):
            note(OVERLAPPED, _named(text, span))
        else:
            tags[first:last] = [f"B-{span.label}"] + [f"I-{span.label}"] * (last - first - 1)
        known.add(same)
    return [text[start:end] for start, end in words], tags


def _longest_first(entry: tuple[int, int, int, int, int, Span]) -> tuple[int, int, int]:
    return entry[:3]


def _own_words(text: str, words: Sequence[Place]) -> list[Place]:
    """The annotation's words without those of white space alone.

    Raises:
        ValueError: they overlap, or lie outside of the text.
    """
    before = 0
    for start, end in words:
        if not before <= start <= end <= len(text):
            raise ValueError(
                f"the token {start}-{end} overlaps the one before it, or lies outside of the text, which has "
                f"{len(text)} characters"
            )
        before = end
    return [(start, end) for start, end in words if text[start:end].strip()]


def _trimmed(text: str, span: Span) -> Place:
    inner = text[span.start : span.end].strip()
    if not inner:
        raise ValueError(f"{_named(text, span)} holds white space alone")
    start = text.index(inner, span.start)
    return start, start + len(inner)


def _named(text: str, span: Span) -> str:
    parts = ";".join(f"{start}-{end}" for start, end in span.parts)
    return f"{span.where}span {parts} {span.label!r} {short(text[max(span.start, 0) : max(span.end, 0)])}"


def _in_code_points(text: str, spans: list[Span], note: Note) -> list[Span]:
    """The spans with offsets that count code points. Other units are noticed where the annotation repeats its text.

    Raises:
        ValueError: a span lies outside of the text, is empty, or has another text than the one that is repeated.
    """
    if all(_is_quoted(text, span) for span in spans):
        for span in spans:
            _check(text, span)
        return spans
    for unit, widths in _UNITS.items():
        code_point = {}
        for index, offset in enumerate(accumulate(map(widths, text), initial=0)):
            code_point.setdefault(offset, index)
        try:
            read = [_converted(span, code_point) for span in spans]
        except KeyError:
            continue
        if all(_is_quoted(text, span) for span in read):
            for span in read:
                _check(text, span)
            note(f"texts have offsets that count {unit}: they were converted", _named(text, read[0]))
            return read
    for span in spans:
        _check(text, span)
    wrong = next(span for span in spans if not _is_quoted(text, span))
    raise ValueError(
        f"{_named(text, wrong)} should be {short(wrong.quoted)}, as the annotation says: its offsets are not those of "
        "this text"
    )


def _utf16_width(character: str) -> int:
    return 1 + (character > "\uffff")


def _utf8_width(character: str) -> int:
    return len(character.encode("utf-8", "surrogatepass"))


def _width_without_returns(character: str) -> int:
    return int(character != "\r")


_UNITS: dict[str, Callable[[str], int]] = {
    "UTF-16 units, as JavaScript does": _utf16_width,
    "UTF-8 bytes": _utf8_width,
    "no carriage returns": _width_without_returns,
}
"""What offsets can count besides code points: how much of it a character is."""


def _converted(span: Span, code_point: dict[int, int]) -> Span:
    parts = tuple((code_point[start], code_point[end]) for start, end in span.parts)
    return Span(parts, span.label, span.quoted, span.where)


def _is_quoted(text: str, span: Span) -> bool:
    """Whether the span's text is what the annotation says, but for white space, or it says nothing."""
    if not span.quoted:
        return True
    inside = all(0 <= start <= end <= len(text) for start, end in span.parts)
    own = " ".join(text[start:end] for start, end in span.parts)
    return inside and _without_space(own) == _without_space(span.quoted)


def _without_space(text: str) -> str:
    # Label Studio and brat spell line ends in what they repeat, and brat joins the parts of a span with a space.
    return "".join(text.replace("\\n", " ").split())


def _check(text: str, span: Span) -> None:
    for start, end in span.parts:
        if start >= end:
            raise ValueError(f"{_named(text, span)} is empty: it starts at {start} and ends at {end}")
        if start < 0 or end > len(text):
            wide = any(character > "\uffff" for character in text)
            hint = "; it may count UTF-16 units, as JavaScript does: offsets must count code points" if wide else ""
            raise ValueError(f"{_named(text, span)} lies outside of the text, which has {len(text)} characters{hint}")


def span(start: Any, end: Any, label: Any, quoted: Any = None, where: str = "") -> Span:
    """A span of what a file holds.

    Raises:
        ValueError: the offsets are no whole numbers, or the label is no text.
    """
    for name, value in (("start", start), ("end", end)):
        whole = value.is_integer() if isinstance(value, float) else type(value) is int
        if not whole:
            raise ValueError(f"{where}the {name} of a span is {short(value)}, expected a number of characters")
    if not isinstance(label, str) or not label.strip():
        raise ValueError(f"{where}the label of the span {start}-{end} is {short(label)}, expected a name")
    return Span(((int(start), int(end)),), label.strip(), quoted if isinstance(quoted, str) else "", where)


def place_of_words(words: Any) -> tuple[str, list[Place]]:
    """A text of these words with a space between, and the place of each.

    Raises:
        ValueError: they are no list of strings.
    """
    if not isinstance(words, list):
        raise ValueError(f"the words are {short(words)}, expected a list")
    for index, word in enumerate(words):
        if not isinstance(word, str):
            raise ValueError(f"token {index} is {short(word)}, expected a string")
    ends = accumulate(len(word) + 1 for word in words)
    return " ".join(words), [(end - 1 - len(word), end - 1) for word, end in zip(words, ends, strict=True)]


def quoted_in(text: str, spans: list[Span]) -> bool:
    """Whether the spans, which repeat their texts, are of this text, in whatever unit their offsets count."""
    try:
        _in_code_points(text, spans, _no_note)
    except ValueError:
        return False
    return all(own.quoted for own in spans)


def _no_note(what: str, where: str) -> None:
    pass
