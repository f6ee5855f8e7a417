"""One split of labelled texts in memory, from files or of your own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np

from trainers.data.labels import LabelNames, as_problem_type, labels_from_list, relabel
from trainers.data.reading import Reading
from trainers.data.rows import refuse_lone_surrogates, short
from trainers.data.table import rows_of
from trainers.data.texts.columns import Ambiguous, choose_columns, no_columns
from trainers.data.texts.targets import MULTI, SINGLE, ProblemType, Targets, is_unlabelled

NAMED = 1000
"""Rows of a list whose keys are looked at to tell its columns."""


@dataclass(frozen=True)
class TextDataset:
    """One split of a text classification data set: N texts, or pairs of texts.

    Of your own texts `from_lists` makes one, of your own table `from_table`.
    """

    texts: list[str]
    """The texts."""
    targets: np.ndarray
    """(N,) int64 label ids; of several labels at once (N, L) float32, 0 and 1; of numbers (N,) float32."""
    labels: tuple[str, ...]
    """Label names; the index is the id, or the column. Of numbers the name of what they are."""
    source: str
    """The file or folder that the split was read from."""
    pairs: list[str] | None = None
    """The second text of each pair; None: there are single texts."""
    problem_type: ProblemType = "single_label_classification"
    """What the targets are."""
    text_column: str = ""
    """The column that the texts were read from, or those of their parts ("title,body"); empty: it is not known."""
    pair_column: str = ""
    """The same of the second texts."""

    @classmethod
    def from_lists(
        cls,
        texts: Iterable[str],
        labels: Iterable[Any],
        *,
        pairs: Iterable[str] | None = None,
        names: Sequence[str] | None = None,
        source: str = "texts in memory",
        problem_type: str = "auto",
    ) -> TextDataset:
        """A split of your own texts, cleaned as those of a file: without white space around them.

        Args:
            texts: N strings.
            labels: N names of labels, or ids from 0; lists of them, which may be empty, or an array (N, L) of 0 and 1;
                or numbers that are no whole ones.
            pairs: the second text of each, where texts come in pairs.
            names: the names in order of their ids; None: those that occur, sorted as `load_text_datasets` sorts them.
            source: what messages call these texts.
            problem_type: "auto", or what the labels are.

        Raises:
            ValueError: there is not one label (and second text) for each text, or no text at all; a text is empty or no
                string; a label is neither name nor id, or not among ``names``.
        """
        cleaned = _cleaned(texts, "text", source)
        second = None if pairs is None else _cleaned(pairs, "second text", source)
        if second is not None and len(second) != len(cleaned):
            raise ValueError(f"{source}: {len(cleaned)} texts and {len(second)} second texts, expected one for each.")
        if isinstance(labels, np.ndarray) and labels.ndim == 2:
            names, labels = _columns(labels, names, source)
        labels = labels if isinstance(labels, str) else list(labels)
        targets, found, kind = _targets(labels, names, len(cleaned), source, problem_type)
        return cls(cleaned, targets, found, source, second, kind)

    @classmethod
    def from_table(
        cls,
        table: Any,
        *,
        text_column: str = "",
        label_column: str = "",
        pair_column: str = "",
        names: Sequence[str] | None = None,
        source: str = "table in memory",
        problem_type: str = "auto",
    ) -> TextDataset:
        """A split of your own table: a pandas or polars DataFrame, a datasets.Dataset, a list of dicts or dict of
        lists.

        Args:
            table: the rows; a datasets.Dataset may name its labels itself.
            text_column: the column of the text, or of its parts ("title,body"); empty: names that are usual.
            label_column: the column of the label; several ("toxic,insult") hold 0 and 1. Empty: names that are usual.
            pair_column: the column of a second text; empty: names that are usual.
            names: the label names in order of their ids; None: the table's own, or those that occur, sorted.
            source: what messages call the table.
            problem_type: "auto", or what the labels are.

        Raises:
            ValueError: which columns to read is not clear, or as `from_lists`.
        """
        rows, own_names = rows_of(table, source)
        columns = list(dict.fromkeys(name for row in islice(rows, NAMED) for name in row))
        reading = Reading(text_column=text_column, label_column=label_column, pair_column=pair_column)
        try:
            chosen = choose_columns(columns, reading)
        except Ambiguous as problem:
            raise no_columns(source, columns, str(problem)) from problem
        if chosen is None:
            raise no_columns(source, columns)
        labels = []
        first, *others = chosen.label
        names = names or (chosen.label if others else own_names.get(first))
        for index, row in enumerate(rows):
            label = {name: row.get(name) for name in chosen.label} if others else row.get(first)
            if is_unlabelled(label, names):
                raise ValueError(f"{source}, example {index}: it has no label ({first}). Leave such rows out.")
            labels.append(label)
        texts, pairs = (
            [_joined([row.get(name) for name in parts], noun, source, index) for index, row in enumerate(rows)]
            if parts
            else None
            for parts, noun in ((chosen.text, "text"), (chosen.pair, "second text"))
        )
        assert texts is not None
        found = cls.from_lists(texts, labels, pairs=pairs, names=names, source=source, problem_type=problem_type)
        return replace(found, text_column=chosen.text_column, pair_column=chosen.pair_column)

    def __len__(self) -> int:
        return len(self.texts)

    @property
    def noun(self) -> str:
        """What messages call the examples."""
        return "texts" if self.pairs is None else "pairs of texts"

    @property
    def groups(self) -> np.ndarray:
        """(N,) a number for each text or pair, the same for equal ones."""
        numbers: dict[Any, int] = {}
        keys: Iterable[Any] = self.texts if self.pairs is None else zip(self.texts, self.pairs, strict=True)
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys], dtype=np.int64)

    def in_memory(self) -> TextDataset:
        """Itself: the texts are here already."""
        return self

    def with_labels(self, labels: tuple[str, ...]) -> TextDataset:
        """The same texts with the ids of ``labels``.

        Raises:
            ValueError: a text's label is not among them.
        """
        targets = relabel(self.targets, self.labels, labels, self.source)
        return replace(self, targets=targets, labels=labels)

    def with_problem_type(self, problem_type: ProblemType) -> TextDataset:
        """The same texts with their labels read as this.

        Raises:
            ValueError: there is no such reading of the labels.
        """
        targets, labels = as_problem_type(self.targets, self.labels, problem_type, self.source)
        return replace(self, targets=targets, labels=labels, problem_type=problem_type)


def text_of(parts: Sequence[Any], noun: str = "the text") -> str:
    """The parts of a text, joined by a space.

    Raises:
        ValueError: a part is no string, none holds a word, or one holds half of a character.
    """
    for part in parts:
        if type(part) is not str:
            raise ValueError(f"{noun} is {short(part)}, expected a string")
    text = " ".join(part.strip() for part in parts if part.strip())
    if not text:
        raise ValueError("an empty text" if noun == "the text" else f"{noun} is empty")
    refuse_lone_surrogates(text)
    return text


def _cleaned(texts: Iterable[str], noun: str, source: str) -> list[str]:
    if isinstance(texts, str):
        raise ValueError(f"{source}: the {noun}s are the string {short(texts)}, expected a list of strings.")
    return [_joined([text], noun, source, index) for index, text in enumerate(texts)]


def _joined(parts: Sequence[Any], noun: str, source: str, index: int) -> str:
    try:
        return text_of(parts, f"the {noun}")
    except ValueError as problem:
        raise ValueError(f"{source}, example {index}: {problem}.") from problem


def _columns(flags: np.ndarray, names: Sequence[str] | None, source: str) -> tuple[Sequence[str], list[dict[str, Any]]]:
    """The label names of an array of 0 and 1, by default the numbers of its columns, and its rows by name."""
    names = [str(column) for column in range(flags.shape[1])] if names is None else names
    if len(names) != flags.shape[1]:
        raise ValueError(f"{source}: {flags.shape[1]} columns of labels, but {len(names)} names.")
    return names, [dict(zip(names, row.tolist(), strict=True)) for row in flags]


def _refuse_repeated(labels: Any) -> None:
    """Raise ValueError for a list that names a label twice: it may be meant as 0 and 1 for each label."""
    if isinstance(labels, (list, tuple)) and len(set(map(str, labels))) < len(labels):
        raise ValueError(
            f"the labels are {short(labels)}, where one stands twice. Give each once; 0 and 1 for every label are to "
            "be a NumPy array (N, L)"
        )


def _targets(
    labels: Any, names: Sequence[str] | None, count: int, source: str, problem_type: str
) -> tuple[np.ndarray, tuple[str, ...], ProblemType]:
    """The targets of labels that are given as a list, the names that they stand for, and what they are."""
    if isinstance(labels, str):
        return *labels_from_list(labels, names, count, source), SINGLE
    cells = [label.item() if isinstance(label, np.generic) else label for label in labels]
    known = [cell for cell in cells if not is_unlabelled(cell, None)]
    kind = Targets(known, LabelNames(None if names is None else tuple(names)), problem_type)
    if kind.problem_type == SINGLE:
        return *labels_from_list(cells, names, count, source), SINGLE
    parsed = []
    for index, cell in enumerate(cells):
        try:
            _refuse_repeated(cell)
            parsed.append(kind.parse(cell))
        except ValueError as problem:
            raise ValueError(f"{source}, example {index}: {problem}.") from problem
    if len(parsed) != count or not count:
        raise ValueError(f"{source}: {count} examples and {len(parsed)} labels, expected examples with a label each.")
    columns = tuple(names or ()) if kind.problem_type == MULTI else ()
    found = kind.names(parsed, columns)
    return kind.array(parsed, found), found, kind.problem_type
