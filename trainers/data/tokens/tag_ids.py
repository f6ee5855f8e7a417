"""The ids that tags get, whatever scheme they are of."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainers.data.rows import short
from trainers.data.tokens.bio import BIO_PREFIX, OUTSIDE
from trainers.data.tokens.schemes import BadTag, Notation, Part, expected, notation_of, scheme_of, tag_parts


class UnnamedTags(ValueError):
    """The tags are ids that nothing names: not one row is at fault but the corpus."""


class TagIds:
    """The ids of tags in BIO: those of the declared names, and behind them names that only the sentences have.

    Tags of other schemes get the ids of the tags in BIO that they stand for. Legend: a code is a tag as it stands in
    the files, by its place among all that were met; as long as all of them are in BIO, codes are ids.
    """

    def __init__(self, declared: tuple[str, ...] | None, notation: Notation | None = None) -> None:
        """The ids of declared names.

        Args:
            declared: the names of the ids that stand in the files, in any scheme; None: names stand there.
            notation: how names are written that stand there; None: as the declared ones, or the first.
        """
        names = declared or (OUTSIDE,)
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"the tag names have {twice[0]!r} twice: every id needs a name of its own.")
        if OUTSIDE not in names:
            raise ValueError(f"the tag names {short(declared)} lack 'O', the tag of words outside all entities.")
        self._notation: Notation | None = notation_of(Counter(names))
        self._declared = len(declared) if declared else None
        self._codes: dict[str, int] = {}
        self._parts: list[Part] = []
        self._letters: set[str] = set()
        self._in_bio: list[tuple[int, int, bool, bool]] | None = None
        self._ids: dict[str, int] = {}
        self.names: tuple[str, ...] = ()
        """All names in BIO met so far; the index is the id."""
        wrong = [name for name in names if not tag_parts(name, self._notation or "B-X")]
        if wrong:
            raise ValueError(f"the tag name {short(wrong[0])} {expected(self._notation)}.")
        if {name[0] for name in names} == {OUTSIDE, "I"}:  # no name says where an entity begins
            self._in_bio = []
        self._learn(list(names))
        self._notation = notation or self._notation
        self.outside = self._ids[OUTSIDE]

    @property
    def scheme(self) -> str | None:
        """The name of the scheme that tags were converted from; None: they are in BIO already."""
        return scheme_of(self._letters, self._notation or "B-X") if self._in_bio is not None else None

    def ids(self, tags: list[Any]) -> list[int]:
        """One id per tag.

        Raises:
            ValueError: a tag is neither a name nor an id. The message says which.
        """
        kinds = set(map(type, tags))
        if kinds == {int}:
            if self._declared is None:
                raise UnnamedTags(
                    'the tags are ids, but nothing names them: put label.json ({"O": 0, "B-X": 1, ...}) into the '
                    "folder of the data."
                )
            if min(tags) < 0 or max(tags) >= self._declared:
                index, tag = next((index, tag) for index, tag in enumerate(tags) if not 0 <= tag < self._declared)
                raise ValueError(f"tag {index} is {tag}, expected a label id from 0 to {self._declared - 1}")
            return tags if self._in_bio is None else self._converted(tags)
        if kinds != {str}:
            for index, tag in enumerate(tags):
                if type(tag) not in (int, str):
                    raise ValueError(f"tag {index} is {short(tag)}, expected a name, or a label id")
            raise ValueError(f"the tags are {short(tags)}, expected names, or ids")
        known = self._codes
        try:
            codes = [known[tag] for tag in tags]
        except KeyError:
            self._learn(tags)
            codes = [known[tag] for tag in tags]
        return codes if self._in_bio is None else self._converted(codes)

    def _learn(self, tags: Sequence[str]) -> None:
        """Give codes to tags; ValueError where one is none, or does not go with those that were met before."""
        notation = self._notation or notation_of(Counter(tag for tag in tags if tag != OUTSIDE)) or "B-X"
        new: dict[str, Part] = {}
        letters = set(self._letters)
        for index, tag in enumerate(tags):
            if tag in self._codes or tag in new:
                continue
            parts = tag_parts(tag, notation)
            if parts is None:
                raise BadTag(tag, index, expected(notation))
            letters |= {parts[0]} - {OUTSIDE}
            if scheme_of(letters, notation) is None:
                others = ", ".join(sorted(self._letters))
                raise BadTag(tag, index, f"does not go with tags of the letters {others} before it: no scheme has both")
            new[tag] = parts
        if letters:
            self._notation = notation
        self._letters = letters
        for tag, parts in new.items():
            self._codes[tag] = len(self._parts)
            self._parts.append(parts)
            if self._in_bio is None and (parts[0] == OUTSIDE or (notation == "B-X" and parts[0] in "BI")):
                self._id(tag)
            else:
                self._convert()

    def _id(self, name: str) -> int:
        index = self._ids.setdefault(name, len(self._ids))
        self.names = tuple(self._ids)
        return index

    def _convert(self) -> None:
        """From now on codes are not ids: what each stands for."""
        known = self._in_bio or []
        for letter, kind in self._parts[len(known) :]:
            ending = f"-{kind}" if kind else ""
            if letter == OUTSIDE:
                begin = inside = self._id(OUTSIDE)
            else:
                begin, inside = self._id(f"B{ending}"), self._id(f"I{ending}")
            known.append((begin, inside, BIO_PREFIX.get(letter) != "I", letter in "ESLUWO"))
        self._in_bio = known

    def _converted(self, codes: list[int]) -> list[int]:
        """Ids of tags in BIO: a tag that continues nothing, or stands behind the end of an entity, begins one."""
        assert self._in_bio is not None
        found = []
        open_type = -1
        for code in codes:
            begin, inside, begins, ends = self._in_bio[code]
            found.append(begin if begins or open_type != inside else inside)
            open_type = -1 if ends else inside
        return found
