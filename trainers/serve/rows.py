"""What is predicted from in a row of a table or of JSON: the columns that the user names, else those that the model was
trained on, else names that are usual; and the text of a row of an annotation tool's export.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from trainers.data.images.tables import PICTURE_COLUMNS
from trainers.data.reading import AS_FOUND, Reading
from trainers.data.rows import refuse_lone_surrogates, short
from trainers.data.spans.exports import text_or_words
from trainers.data.texts.columns import choose_columns, key
from trainers.data.tokens.head import WORD_KEYS

Input = str | list[str] | tuple[str, str]
"""A text, the words of a sentence, a pair of texts, or the path of a picture."""


@dataclass(frozen=True)
class InputColumns:
    """The columns that are predicted from, as the rows spell them."""

    first: tuple[str, ...]
    """Those of the text, joined by a space; or that of the words or the picture."""
    pair: tuple[str, ...] = ()
    """Those of a second text."""
    trained: bool = False
    """Whether they are known from training alone."""

    def __str__(self) -> str:
        named = ", ".join(self.first) + (f" with {', '.join(self.pair)}" if self.pair else "")
        return f"{named} (as in training)" if self.trained else named

    def input_of(self, row: Mapping[str, Any], words: bool) -> Input:
        """What is predicted from.

        Args:
            row: its values by column.
            words: whether a list of words will do.

        Raises:
            ValueError: a value is missing, or is something else.
        """
        first = _joined(row, self.first, words)
        if not self.pair or (self.pair == ("text_pair",) and row.get("text_pair") is None):
            return first
        pair = _joined(row, self.pair, False)
        assert isinstance(first, str)
        assert isinstance(pair, str)
        return first, pair


def choose_inputs(names: Sequence[str], fields: Sequence[str], given: Reading, trained: Reading) -> InputColumns | None:
    """The columns that are predicted from; None where nothing tells.

    Args:
        names: of all columns.
        fields: what the model's inputs are called (`Pipeline.fields`).
        given: what the user says.
        trained: how the files were read that the model was trained on.

    Raises:
        ValueError: the user names a column that is not there, or several could be meant.
    """
    if "image" in fields:
        by_key = {key(name): name for name in reversed(names)}
        found = next((by_key[name] for name in PICTURE_COLUMNS if name in by_key), None)
        return None if found is None else InputColumns((found,))
    asked = Reading(text_column=given.text_column, pair_column=given.pair_column)
    if asked != AS_FOUND:
        known = replace(asked, text_column=asked.text_column or trained.text_column)
        return _of_texts(names, known if has_columns(names, known) else asked)
    known = Reading(text_column=trained.text_column, pair_column=trained.pair_column)
    if known.text_column and has_columns(names, known):
        columns = _of_texts(names, known)
        usual = next((name for name in fields if name in names), None)
        return None if columns is None else replace(columns, trained=columns.first != (usual,))
    for name in (*fields, *(WORD_KEYS if "tokens" in fields else ())):
        if name in names:
            return InputColumns((name,), ("text_pair",) if name == "text" and "text_pair" in names else ())
    return _of_texts(names, Reading(label_column=trained.label_column))


def _of_texts(names: Sequence[str], reading: Reading) -> InputColumns | None:
    columns = choose_columns(names, reading, unlabelled=True)
    return None if columns is None else InputColumns(columns.text, columns.pair)


def has_columns(names: Sequence[str], reading: Reading) -> bool:
    """Whether the columns of text that are named are there."""
    try:
        columns = choose_columns(names, reading, unlabelled=True)
    except ValueError:
        return False
    return columns is not None


def _joined(row: Mapping[str, Any], parts: Sequence[str], words: bool) -> str | list[str]:
    """The value of one column, or those of several joined by a space."""
    if missing := [name for name in parts if name not in row]:
        raise ValueError(f"{missing[0]} is missing")
    values = [_checked(part, row[part], words) for part in parts]
    return values[0] if len(values) == 1 else " ".join(s for s in map(str.strip, map(str, values)) if s)


def _checked(name: str, value: Any, words: bool) -> str | list[str]:
    if words and name in WORD_KEYS and not isinstance(value, str):
        value = value.tolist() if hasattr(value, "tolist") else value  # as pandas reads lists from parquet
        if not isinstance(value, (list, tuple)) or not all(isinstance(word, str) for word in value):
            raise ValueError(f"{name} is {short(value)}, expected a list of strings")
        refuse_lone_surrogates("".join(value))
        return list(value)
    if not isinstance(value, str):
        raise ValueError(f"{name} is {short(value)}, expected a string")
    refuse_lone_surrogates(value)
    return value


class InputRows:
    """Makes inputs of rows whose columns may differ; which ones are read is found once for each set of columns."""

    def __init__(self, fields: Sequence[str], given: Reading, trained: Reading) -> None:
        self._fields, self._given, self._trained = fields, given, trained
        self._found: dict[tuple[str, ...], InputColumns | None] = {}

    def columns(self, names: Iterable[str]) -> InputColumns | None:
        """As `choose_inputs`."""
        names = tuple(names)
        if names not in self._found:
            self._found[names] = choose_inputs(names, self._fields, self._given, self._trained)
        return self._found[names]

    def input_of(self, row: Any) -> Input:
        """What is predicted from in a row: a JSON object, or the row of an export.

        Raises:
            ValueError: it holds nothing of the kind, or more than one.
        """
        takes_words = "tokens" in self._fields
        exported = None if "image" in self._fields else text_or_words(row)
        if exported is not None and (takes_words or isinstance(exported, str)):
            refuse_lone_surrogates(exported if isinstance(exported, str) else "".join(exported))
            return exported
        expected = f"expected a JSON object with {' or '.join(map(repr, self._fields))}"
        if not isinstance(row, Mapping):
            raise ValueError(f"{expected}, got {short(row)}")
        asked = self._given.text_column or self._trained.text_column
        if not asked and sum(name in row for name in self._fields) > 1:
            raise ValueError(f"{expected}, got both: {short(dict(row))}. Leave one out")
        columns = self.columns(row)
        if columns is None:
            raise ValueError(f"{expected}, got {short(dict(row))}")
        return columns.input_of(row, takes_words)
