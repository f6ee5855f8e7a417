"""Which columns of a table are the text, a second text, and the label: as the user says, or by names that are usual.

A guess is made only where one reading is plausible; which columns are read, and which are not, is said.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from trainers.data.reading import Reading

LABEL_COLUMNS = (
    "label", "labels", "class", "classes", "category", "sentiment", "target", "intent", "stars", "star_rating",
    "rating", "gold_label", "polarity", "score", "class_index", "emotion", "topic", "overall",
    "quality",
)  # fmt: skip
"""Names of columns that hold the label. The first two are taken before all others."""
LABEL_PATTERN = re.compile(r"is_.+|.+_(sentiment|label|class|category)")
"""Other such names."""
TEXT_COLUMNS = (
    "text", "sentence", "review", "content", "tweet", "comment", "comment_text", "headline", "question", "utterance",
    "document", "body", "message", "phrase", "description", "review_text", "review_body", "reviewtext", "tweet_text",
    "full_text", "query", "premise", "title",
)  # fmt: skip
"""Names of columns that hold the text. The first is taken before all others."""
PAIRS = (
    ("text", "text_pair"),
    ("text_a", "text_b"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("context", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("query", "passage"),
    ("query", "document"),
    ("claim", "evidence"),
    ("#1_string", "#2_string"),
)
"""Names of two columns that hold a pair of texts."""
TITLED = ("description", "content", "body", "abstract", "review")
"""Names of columns that make up the text together with a column title, joined by a space."""
ID_PATTERN = re.compile(r"|(?i:id|ids|idx|index|.*_id|#|unnamed.*|row|row_?number|guid|uuid)|.*[a-z](Id|ID)")
"""Names of columns that number the rows."""
FLAGS = "--text-column, --label-column and, for pairs, --pair-column"


@dataclass(frozen=True)
class Columns:
    """The columns that are read, as the table spells them."""

    text: tuple[str, ...]
    """Those of the text, joined by a space."""
    pair: tuple[str, ...] = ()
    """Those of the second text, joined by a space; empty: there is none."""
    label: tuple[str, ...] = ()
    """That of the label; several hold 0 and 1, a column for each label; empty: the table has none."""

    @property
    def used(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self.text + self.pair + self.label)

    @property
    def text_column(self) -> str:
        """What the setting text_column would be to have this text read; empty where no setting can say it."""
        return _setting(self.text)

    @property
    def pair_column(self) -> str:
        """The same for the second text."""
        return _setting(self.pair)

    def said(self, names: Sequence[str]) -> str:
        """One line on what is read of a table's columns, and what is not."""
        parts = [f"text {_listed(self.text)}"]
        if self.pair:
            parts.append(f"second text {_listed(self.pair)}")
        parts.append(f"label {_listed(self.label)}" if self.label else "no label")
        left = [name or "(without a name)" for name in names if name not in self.used]
        return f"{', '.join(parts)}; NOT used: {', '.join(left)}" if left else ", ".join(parts)


def choose_columns(names: Sequence[str], reading: Reading | None = None, *, unlabelled: bool = False) -> Columns | None:
    """The columns of the text and of the label; None where names that are usual do not tell.

    Args:
        names: of all columns.
        reading: what the user says; its columns may also be numbers, from 1, negative ones from the end.
        unlabelled: the table may lack the label, as that of a test split does.

    Raises:
        ValueError: the user names a column that is not there, or several readings are plausible.
    """
    reading = reading or Reading()
    text = _named(names, reading.text_column, "--text-column")
    pair = _named(names, reading.pair_column, "--pair-column")
    label = () if unlabelled and not _has(names, reading.label_column) else _named(
        names, reading.label_column, "--label-column"
    )  # fmt: skip
    if label is None:
        label = _guess_label([name for name in names if name not in {*(text or ()), *(pair or ())}])
    left = [name for name in names if name not in {*(text or ()), *(pair or ()), *(label or ())}]
    if text is None and pair is None:
        text, pair = _guess_texts(left)
    elif text is None:
        text = _guess_texts(left)[0]
    plain = [name for name in names if name not in {*(text or ()), *(pair or ()), *(label or ())} and not is_id(name)]
    if text and not pair and not label and len(plain) == 1 and len(names) == 2 and not unlabelled:
        label = (plain[0],)
    if not text and label and len(plain) == 1:
        text = (plain[0],)
    if not text or (not label and not unlabelled):
        return None
    return Columns(text, pair or (), label or ())


def _setting(names: tuple[str, ...]) -> str:
    return names[0] if len(names) == 1 else "" if any("," in name for name in names) else ",".join(names)


def _has(names: Sequence[str], wanted: str) -> bool:
    """Whether the columns that the user names are there; so is what is not named."""
    try:
        return _named(names, wanted, "") != ()
    except ValueError:
        return False


def _named(names: Sequence[str], wanted: str, flag: str) -> tuple[str, ...] | None:
    """The columns that the user names; None where the user names none.

    Raises:
        ValueError: one is not there.
    """
    if not wanted:
        return None
    if wanted in names:
        return (wanted,)
    found = []
    for part in map(str.strip, wanted.split(",")):
        same = [name for name in names if name == part] or [name for name in names if key(name) == key(part)]
        if not same and part.lstrip("-").isdecimal() and 1 <= abs(int(part)) <= len(names):
            same = [names[int(part) - (int(part) > 0)]]
        if len(same) != 1:
            raise ValueError(f"there is no column {part!r} ({flag}) among {_listed(names)}")
        found += same
    return tuple(found)


def key(name: str) -> str:
    """A name as it is compared: in any case, with underscores for spaces and dashes."""
    return re.sub(r"[\s-]+", "_", name.strip().lower())


def _guess_label(names: Sequence[str]) -> tuple[str, ...] | None:
    by_key = {key(name): name for name in reversed(names)}
    for best in LABEL_COLUMNS[:2]:
        if best in by_key:
            return (by_key[best],)
    found = [name for name in names if name in by_key.values() and _names_label(key(name))]
    if {"v1", "v2"} <= by_key.keys() and not found:
        found = [by_key["v1"]]
    if len(found) > 1:
        raise Ambiguous("label", found)
    return tuple(found) or None


def _names_label(short: str) -> bool:
    return short in LABEL_COLUMNS or LABEL_PATTERN.fullmatch(short) is not None


def _guess_texts(names: Sequence[str]) -> tuple[tuple[str, ...] | None, tuple[str, ...] | None]:
    """(Columns of the text, columns of the second text)."""
    by_key = {key(name): name for name in reversed(names)}
    pairs = [pair for pair in PAIRS if by_key.keys() >= set(pair)]
    if len(pairs) > 1:
        raise Ambiguous("pair of texts", [f"{by_key[one]} and {by_key[other]}" for one, other in pairs])
    if pairs:
        one, other = pairs[0]
        more = [by_key[name] for name in TEXT_COLUMNS if name in by_key and name not in (one, other, "title")]
        if more:
            raise Ambiguous("text", [f"{by_key[one]} with {by_key[other]}", *more])
        return (by_key[one],), (by_key[other],)
    if TEXT_COLUMNS[0] in by_key:
        return (by_key[TEXT_COLUMNS[0]],), None
    found = [by_key[name] for name in TEXT_COLUMNS if name in by_key and name != "title"]
    if "v2" in by_key and "v1" not in by_key and not found:
        found = [by_key["v2"]]
    if len(found) > 1:
        raise Ambiguous("text", found)
    titled = [name for name in TITLED if name in by_key]
    if "title" in by_key and (titled or not found):
        return ((by_key["title"], by_key[titled[0]]) if titled else (by_key["title"],)), None
    return tuple(found) or None, None


class Ambiguous(ValueError):
    """Several columns could be meant."""

    def __init__(self, what: str, found: Sequence[str]) -> None:
        super().__init__(f"several columns could be the {what}: {', '.join(found)}")


def is_id(name: str) -> bool:
    """Whether a column of this name numbers the rows."""
    return ID_PATTERN.fullmatch(name.strip()) is not None


def no_columns(where: object, names: Sequence[str], problem: str = "", examples: str = "") -> ValueError:
    """The error of a table whose text or label is not found.

    Args:
        where: the file.
        names: its columns.
        problem: what is wrong; by default that they are not clear.
        examples: of a file without a header line, its columns by number with what the first row holds.
    """
    if not problem:
        problem = "which of them hold the text and the label is not clear"
        problem += "" if len(names) > 1 else " (nothing parts them: put a tab between, or say what does: --delimiter)"
    columns = f"{examples} and no header line" if examples else _listed(names)
    return ValueError(f"{where} has the columns {columns}, and {problem}. Name them: {FLAGS}; or by number, from 1.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
