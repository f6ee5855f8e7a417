"""What the labels of texts are: one of several names, several at once, or a number; and the targets that they become.

It is guessed from all labels of a data set together, and said where it is not the usual one name for each text.
"""

import logging
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import numpy as np

from trainers.data.labels import (
    NUMBER,
    SEPARATORS,
    THOUSANDS,
    LabelNames,
    say_alike,
    separator_of,
    sorted_names,
    spelled_list,
)
from trainers.data.rows import short

logger = logging.getLogger(__name__)

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
"""The names that a checkpoint's config.json uses."""
SINGLE, MULTI, REGRESSION = get_args(ProblemType)
_WITH_COMMA = re.compile(r"[+-]?\d+(,\d+)*")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def is_unlabelled(cell: Any, names: Sequence[str] | None) -> bool:
    """Whether a cell holds no label: nothing, no number, or the -1 that stands for none where labels have names."""
    if cell is None or type(cell).__name__ in ("NAType", "NaTType") or (isinstance(cell, str) and not cell.strip()):
        return True
    if isinstance(cell, float) and math.isnan(cell):
        return True
    return names is not None and _is_minus_one(cell) and "-1" not in names


MANY_DECIMALS = 10
"""Different labels with a decimal point from which on they are taken for numbers."""


def only_minus_one(cells: Iterable[Any]) -> bool:
    """Whether every label is -1, as in the test splits of GLUE: these have none."""
    return all(map(_is_minus_one, cells))


def _is_minus_one(cell: Any) -> bool:
    return (isinstance(cell, (int, float)) and cell == -1) or (isinstance(cell, str) and cell.strip() == "-1")


def problem_type_of(cells: Sequence[Any], names: Sequence[str] | None = None) -> tuple[ProblemType, str]:
    """What the labels of a whole data set are, and in words why, empty where they are single names.

    Args:
        cells: all labels, as they stand in the files; none that `is_unlabelled`.
        names: the declared names.

    Raises:
        ValueError: there are two readings.
    """
    if any(isinstance(cell, (list, tuple, dict, np.ndarray)) for cell in cells):
        return MULTI, "labels are lists: multi-label"
    if cells and all(spelled_list(cell) is not None for cell in cells):
        return MULTI, f"cells hold lists such as {short(cells[0])}: multi-label"
    if names is None:
        numbers = [number(cell) for cell in cells]
        if cells and all(value is not None for value in numbers):
            decimals = {value for value in numbers if value is not None}
            if not all(value.is_integer() for value in decimals):
                return REGRESSION, f"labels are {len(decimals)} different decimals: regression"
            return SINGLE, ""
        _refuse_all_but_numbers(cells, numbers)
        if (decimal := _decimal_with_comma(cells)) is not None:
            return REGRESSION, f"labels such as {short(decimal)} are taken for decimals with a comma: regression"
    separator = separator_of(cells, names)
    if separator:
        return MULTI, f"cells hold several labels with {separator!r} between: multi-label"
    return SINGLE, ""


def _refuse_all_but_numbers(cells: Sequence[Any], numbers: Sequence[float | None]) -> None:
    """Raises ValueError where the labels are decimals but for a few, which would make each of them a class."""
    decimals = {value for value in numbers if value is not None and not value.is_integer()}
    others = {str(cell) for cell, value in zip(cells, numbers, strict=True) if value is None}
    if others and len(decimals) >= max(MANY_DECIMALS, 2 * len(others)):
        raise ValueError(
            f"{len(decimals)} different labels are decimals, but {short(min(others))} is no number. Correct it; or "
            "empty its cell and leave such rows out (--on-bad-row skip); or --problem-type single_label_classification "
            "takes each label as a name"
        )


def _decimal_with_comma(cells: Sequence[Any]) -> str | None:
    """A label that shows that numbers with commas are decimals; None: they are several ids, or other labels.

    Ids stand in some cells by themselves; there may be three in a cell, and none begins with 0. Where the only thing
    behind the comma is 5, or no cell has an id by itself, nothing tells.

    Raises:
        ValueError: they may be either.
    """
    texts = {cell.strip() for cell in cells if isinstance(cell, str)}
    parts = {text: text.lstrip("+-").split(",") for text in texts if "," in text}
    if not parts or not all(map(_WITH_COMMA.fullmatch, texts)) or any(len(own) > 2 for own in parts.values()):
        return None
    behind = {own[1] for own in parts.values()}
    if not all(map(THOUSANDS.fullmatch, parts)):
        for text, own in sorted(parts.items()):
            if text[0] in "+-" or (own[1][0] == "0" and own[1] != "0"):
                return text
        if len(parts) < len(texts) and separator_of(cells) and (len(parts) == 1 or len(behind) > 1):
            return None
    raise ValueError(
        f"labels such as {short(min(parts))} can be numbers with a comma, or several labels at once. Say which: "
        "--problem-type regression or multi_label_classification (or single_label_classification, for names)"
    )


def _said_separator(cells: Iterable[Any], names: Sequence[str] | None) -> str:
    """What stands between labels where a user says that cells hold several; empty: every cell is one label."""
    counts = Counter(cell.strip() for cell in cells if isinstance(cell, str) and (names is None or cell not in names))
    for separator in (*SEPARATORS, " "):
        parts = {part.strip() for cell in counts for part in cell.split(separator)} - {""}
        if any(separator in cell for cell in counts) and (separator != " " or len(parts) < len(counts)):
            logger.warning("cells are cut at %r: they hold %d different labels", separator, len(parts))
            return separator
    return ""


def number(cell: Any) -> float | None:
    """The number that a cell holds; None: it holds something else."""
    if isinstance(cell, (bool, np.bool_)):
        return None
    if isinstance(cell, (int, float, np.integer, np.floating)):
        return float(cell)
    if isinstance(cell, str) and _NUMBER.fullmatch(cell.strip()):
        return float(cell)
    return None


def _decimal(cell: Any) -> float | None:
    """The number that a cell holds, perhaps with a comma for the point; None: it holds something else."""
    if isinstance(cell, str) and THOUSANDS.fullmatch(cell.strip()):
        raise ValueError(f"the label is {short(cell)}, a decimal or thousands. Write a point, or no comma")
    return number(cell.replace(",", ".") if isinstance(cell, str) and cell.count(",") == 1 else cell)


class Targets:
    """Turns the labels of one data set, cell by cell, into what its targets are made of."""

    def __init__(
        self, cells: Sequence[Any], declared: LabelNames, problem_type: str = "auto", noun: str = "labels"
    ) -> None:
        """
        Args:
            cells: the labels of all splits, as they stand; they tell the problem type.
            declared: their names.
            problem_type: "auto", or what the user says that they are.
            noun: what the labels are called in the message that says the guess.

        Raises:
            ValueError: the problem type is unknown.
        """
        if problem_type not in ("auto", *get_args(ProblemType)):
            raise ValueError(f"problem_type is {problem_type!r}, expected auto, {', '.join(get_args(ProblemType))}.")
        self.declared = declared
        if problem_type == "auto":
            found, reason = problem_type_of(cells, declared.names)
            if reason:
                logger.warning("%s. --problem-type says otherwise.", reason)
        self.problem_type: ProblemType = found if problem_type == "auto" else problem_type  # type: ignore[assignment]
        self.separator = ""
        self._spelled = bool(cells) and all(spelled_list(cell) is not None for cell in cells)
        if self.problem_type == MULTI and not self._spelled:
            self.separator = separator_of(cells, declared.names) or _said_separator(cells, declared.names)
        numbers = {number(cell) for cell in cells} if declared.names is None else {None}
        self._ids_only = bool(numbers) and None not in numbers
        self._minus_is_a_name = numbers == {-1.0, 1.0}

    def parse(self, cell: Any) -> Any:
        """The name of the label, the tuple of the names of the labels, or the number in a cell.

        Raises:
            ValueError: it is not what the problem type wants.
        """
        if isinstance(cell, np.generic):
            cell = cell.item()
        if self.problem_type == REGRESSION:
            value = _decimal(cell)
            if value is None or not math.isfinite(value):
                raise ValueError(f"the label is {short(cell)}, expected a number")
            return value
        if self.problem_type == SINGLE:
            return self._single(cell)
        if isinstance(cell, dict):  # a column for each label
            return tuple(name for name, value in cell.items() if flag(name, value))
        if self._spelled and (items := spelled_list(cell)) is not None:
            cell = items
        if isinstance(cell, str):
            own = self.declared.names is not None and cell.strip() in self.declared.names
            cell = [cell] if own or not self.separator else cell.split(self.separator)
            cell = [part for part in cell if part.strip()]
        parts = list(cell) if isinstance(cell, (list, tuple, np.ndarray)) else [cell]
        names = [self.declared.name_of(part.item() if isinstance(part, np.generic) else part) for part in parts]
        return tuple(dict.fromkeys(names))

    def _single(self, cell: Any) -> str:
        value = number(cell)
        if value == -1:
            if self._minus_is_a_name:
                return "-1"
            raise ValueError(f"the label is {short(cell)}, which stands for none; where it is a class, write a name")
        if self._ids_only and value is not None and value.is_integer() and not str(cell).strip().isdecimal():
            return self.declared.name_of(int(value))  # 1.0 is the id 1, and no name
        return self.declared.name_of(cell)

    def names(self, parsed: Iterable[Any], columns: Sequence[str]) -> tuple[str, ...]:
        """The names of the labels in the order of their ids, from all that was parsed.

        Args:
            parsed: of all splits.
            columns: of the label: those of 0 and 1 are the names; that of a number is its name.
        """
        if self.problem_type == REGRESSION:
            return (columns[0] if columns else NUMBER,)
        if self.problem_type == MULTI and len(columns) > 1:
            return tuple(columns)
        if self.declared.names is not None:
            return self.declared.names
        if self.problem_type == SINGLE:
            found = sorted_names(parsed)
            say_alike(found, "labels")
            _say_blanks(found)
            if "-" in found and "+" not in found:
                logger.warning(
                    "one of the labels is '-', which is taken for a class. If it is none, take its rows out."
                )
            return found
        found = sorted_names(name for names in parsed for name in names)
        say_alike(found, "labels")
        return found

    def array(self, parsed: Sequence[Any], names: Sequence[str]) -> np.ndarray:
        """The targets: (N,) int64 ids, (N, L) float32 of 0 and 1, or (N,) float32 numbers."""
        if self.problem_type == REGRESSION:
            return np.array(parsed, dtype=np.float32)
        ids = {name: index for index, name in enumerate(names)}
        if self.problem_type == SINGLE:
            return np.array([ids[name] for name in parsed], dtype=np.int64)
        targets = np.zeros((len(parsed), len(names)), dtype=np.float32)
        for row, labels in enumerate(parsed):
            targets[row, [ids[label] for label in labels]] = 1
        return targets


def _say_blanks(names: Sequence[str]) -> None:
    """Log names whose words are labels by themselves: they may be several labels at once."""
    joined = [name for name in names if " " in name]
    if len(joined) > 1 and {word for name in joined for word in name.split()} <= {*names}:
        logger.warning(
            "labels such as %r are made of words that are labels themselves. If they are several at once, say so: "
            "--problem-type multi_label_classification.",
            joined[0],
        )


def is_flag(cell: Any) -> bool:
    """Whether a cell can be one of a column for each label: 0 or 1, or true or false."""
    return number(cell) in (0.0, 1.0) or isinstance(cell, (bool, np.bool_)) or _is_word(cell)


def _is_word(cell: Any) -> bool:
    return isinstance(cell, str) and cell.strip().lower() in ("true", "false")


def flag(name: str, cell: Any) -> bool:
    """Whether a cell of a column for one label says that the text has it.

    Raises:
        ValueError: it is neither 0 nor 1, nor such a word.
    """
    if not is_flag(cell):
        raise ValueError(f"{name} is {short(cell)}, expected 0 or 1")
    if _is_word(cell):
        return cell.strip().lower() == "true"
    return bool(cell if not isinstance(cell, str) else float(cell))
