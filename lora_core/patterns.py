"""Which modules the names in a config mean: ends of paths, or one regular expression for a whole path.

Expressions come in files that others wrote, and Python's `re` can need longer than a life for one of a few characters
(`(a*)*b`), which nothing can interrupt. So they are parsed by `re` and matched here, as a machine that follows all ways
through the expression at once (Thompson 1968, https://doi.org/10.1145/363347.363387): the time is bounded by the
expression's length times the path's. What cannot be matched so is refused: groups that refer back, atomic groups,
possessive repeats, flags.
"""

import functools
import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

try:
    from re import _parser  # pyright: ignore[reportAttributeAccessIssue]
except ImportError:  # Python 3.10
    import sre_parse as _parser

LONGEST = 4000
"""Characters of one expression."""
MOST_STEPS = 20_000
"""Steps of matching one path; an expression that people write takes as many as it has characters."""


class Pattern:
    """Which paths of modules the names in a config mean.

    Args:
        names: one string is a regular expression that must match a whole path. Several are ends of paths: "query" and
            "self.query" both match "layer.0.attention.self.query". None, or an empty tuple, matches nothing.

    Raises:
        ValueError: the string is no regular expression, or one that is not matched here.
    """

    def __init__(self, names: str | Iterable[str] | None) -> None:
        self._parsed = _parse(names) if isinstance(names, str) else None
        self._ends = frozenset() if names is None or isinstance(names, str) else frozenset(names)
        self._after_dot = tuple(f".{end}" for end in self._ends)

    @classmethod
    def at_end(cls, expression: str) -> "Pattern":
        """The paths that a regular expression matches as a whole or from after a dot on, as in rank_pattern."""
        return cls(rf"(.*\.)?({expression})")

    def matches(self, path: str) -> bool:
        """Whether the module at ``path`` is meant.

        Raises:
            ValueError: the expression takes too many steps.
        """
        if self._parsed is None:
            return path in self._ends or path.endswith(self._after_dot)
        machine = _Machine(path)
        return bool(machine.after(self._parsed, machine.start) & machine.end)

    def matches_any(self, paths: Iterable[str]) -> bool:
        """Whether any of the modules at ``paths`` is meant."""
        return any(self.matches(path) for path in paths)

    def contains(self, path: str) -> bool:
        """Whether ``path`` is, or lies in, a module that is meant."""
        parts = path.split(".")
        return self.matches_any(".".join(parts[:depth]) for depth in range(1, len(parts) + 1))


def ends_of(path: str) -> Iterator[str]:
    """``path``, and what is left of it after each dot."""
    yield path
    at = path.find(".")
    while at >= 0:
        yield path[at + 1 :]
        at = path.find(".", at + 1)


@functools.lru_cache(maxsize=4096)
def _parse(expression: str) -> list[tuple[Any, Any]]:
    """The expression as `re` parses it: operators, each with its argument.

    Raises:
        ValueError: as `Pattern`.
    """
    if len(expression) > LONGEST:
        raise ValueError(f"a regular expression of {len(expression):,} characters; the longest allowed has {LONGEST:,}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what later versions of Python may read otherwise
            parsed: Any = _parser.parse(expression)
        flags = parsed.state.flags & ~re.UNICODE.value
        refused = "flags" if flags else _refused(parsed)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"{shown(expression)} is not a regular expression: {error}") from error
    if refused:
        raise ValueError(f"{shown(expression)} uses {refused}, which names of modules do not need; write it without")
    return list(parsed)


def _refused(items: Iterable[tuple[Any, Any]]) -> str | None:
    """What in an expression the machine does not match; None: it matches all."""
    for operator, argument in items:
        name = str(operator)
        if name == "SUBPATTERN" and (argument[1] or argument[2]):
            return "flags"
        if name not in _STEPS and name not in _SINGLE:
            return f"{name.lower().replace('_', ' ')} (a group that refers back, or one that keeps what it took)"
        if name == "BRANCH":
            inner = [item for branch in argument[1] for item in branch]
        else:
            inner = argument[-1] if name in ("SUBPATTERN", "MAX_REPEAT", "MIN_REPEAT", "ASSERT", "ASSERT_NOT") else ()
        if found := _refused(inner):
            return found
    return None


class _Machine:
    """Matches expressions with one path. A set of positions in it is a whole number, whose bit i stands for position i
    (before character i), so that a step from all of them is one shift.

    Attributes:
        start, end: the sets of the first and of the last position.
    """

    def __init__(self, path: str) -> None:
        self.path, self.left = path, MOST_STEPS
        self.start, self.end = 1, 1 << len(path)
        self._places: dict[str, int] = {}
        for at, character in enumerate(path):
            self._places[character] = self._places.get(character, 0) | 1 << at

    def after(self, items: Iterable[tuple[Any, Any]], at: int) -> int:
        """The positions after ``items``, begun at each position of ``at``."""
        for operator, argument in items:
            if not at:
                return 0
            self.left -= 1
            if self.left < 0:
                raise ValueError(f"takes more than {MOST_STEPS:,} steps for the module {self.path}; write it simpler")
            name = str(operator)
            if name == "LITERAL":
                at = (at & self._places.get(chr(argument), 0)) << 1
            elif name in _SINGLE:
                fits = _SINGLE[name]
                at = (at & sum(places for char, places in self._places.items() if fits(argument, char))) << 1
            else:
                at = _STEPS[name](self, argument, at)
        return at

    def _group(self, argument: Any, at: int) -> int:
        return self.after(argument[-1], at)

    def _branch(self, argument: Any, at: int) -> int:
        found = 0
        for items in argument[1]:
            found |= self.after(items, at)
        return found

    def _repeat(self, argument: Any, at: int) -> int:
        least, most, items = argument
        for _ in range(least):
            before, at = at, self.after(items, at)
            if at in (0, before):  # once it stays, it stays
                break
        found = at
        for _ in range(most - least):
            at = self.after(items, at) & ~found
            if not at:
                break
            found |= at
        return found

    def _assert(self, argument: Any, at: int) -> int:
        """The positions at which what follows (or, backwards, what precedes) matches."""
        direction, items = argument
        width = 0 if direction > 0 else items.getwidth()[1]
        positions = [position for position in range(width, len(self.path) + 1) if at >> position & 1]
        kept = 0
        for position in positions:
            reached = self.after(items, 1 << position - width)
            if reached if direction > 0 else reached >> position & 1:
                kept |= 1 << position
        return kept

    def _assert_not(self, argument: Any, at: int) -> int:
        return at & ~self._assert(argument, at)

    def _place(self, argument: Any, at: int) -> int:
        name = str(argument)
        if name in ("AT_BEGINNING", "AT_BEGINNING_STRING"):
            return at & self.start
        if name in ("AT_END", "AT_END_STRING"):
            newline = self.end >> 1 if name == "AT_END" and self.path.endswith("\n") else 0
            return at & (self.end | newline)
        word = sum(places for char, places in self._places.items() if _is_word(char))
        borders = word ^ word << 1
        return at & (borders if name == "AT_BOUNDARY" else ~borders)


_STEPS: dict[str, Callable[[_Machine, Any, int], int]] = {
    "SUBPATTERN": _Machine._group,
    "BRANCH": _Machine._branch,
    "MAX_REPEAT": _Machine._repeat,
    "MIN_REPEAT": _Machine._repeat,
    "ASSERT": _Machine._assert,
    "ASSERT_NOT": _Machine._assert_not,
    "AT": _Machine._place,
}
"""How the machine goes on by each operator of `re`, if not by one character."""


def _is_word(character: str) -> bool:
    return character.isalnum() or character == "_"


def _in_set(items: Any, character: str) -> bool:
    """Whether a set such as [a-z] has a character."""
    negated = str(items[0][0]) == "NEGATE"
    return negated != any(_SINGLE[str(operator)](argument, character) for operator, argument in items[negated:])


_CATEGORIES: dict[str, Callable[[str], bool]] = {
    "DIGIT": str.isdecimal,
    "SPACE": str.isspace,
    "WORD": _is_word,
}


def _in_category(name: Any, character: str) -> bool:
    kind = str(name).removeprefix("CATEGORY_")
    return _CATEGORIES[kind.removeprefix("NOT_")](character) != kind.startswith("NOT_")


_SINGLE: dict[str, Callable[[Any, str], bool]] = {
    "LITERAL": lambda code, character: ord(character) == code,
    "NOT_LITERAL": lambda code, character: ord(character) != code,
    "RANGE": lambda ends, character: ends[0] <= ord(character) <= ends[1],
    "ANY": lambda _, character: character != "\n",
    "IN": _in_set,
    "CATEGORY": _in_category,
}
"""Whether each operator that takes one character takes this one."""


def shown(value: Any) -> str:
    """How a message shows a value from a file, which may be of any length."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:97]}..."
