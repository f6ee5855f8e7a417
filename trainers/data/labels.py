"""Labels of examples: what files and lists call them, the ids that they get, the ids of another data set, and how the
logits become an answer, kept beside the weights (decision.json).
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import json_object, read_json_object, write_json
from lora_core.models.labels import ProblemType, problem_type_of_config
from trainers.data.rows import short

logger = logging.getLogger(__name__)

NUMBER = "score"
"""The name of what a regression predicts, where the data has none."""


DECISION_FILE = "decision.json"
"""The name beside a model's weights, and in the metadata of an ONNX file."""
DEFAULT_THRESHOLD = 0.5
"""Of a label that nothing is known of."""
SEPARATORS = ",|;"
"""Characters that can stand between labels in one cell."""
THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+")
"""A number as English writes thousands."""


@dataclass(frozen=True)
class LabelNames:
    """What the labels in a file or a list mean."""

    names: tuple[str, ...] | None
    """Declared names in order of their ids. None: whatever labels there are, are names."""
    first_id: int = 0
    """The id of the first name, where the labels are ids."""

    def name_of(self, label: Any) -> str:
        """The name of a label: itself, or what its id stands for.

        A number without decimals is an id (pandas makes 1.0 of 1 where a column has gaps), True and False are names.

        Raises:
            ValueError: it is not declared, or neither id nor name.
        """
        if type(label) is float and label.is_integer():
            label = int(label)
        elif type(label) is bool:
            label = int(label) if self.names is not None and str(label) not in self.names else str(label)
        if type(label) is str:
            label = label.strip()
            if label and (self.names is None or label in self.names):
                return label
        elif type(label) is int and self.names is None and label >= 0:
            return str(label)
        if self.names is None:
            raise ValueError(f"the label is {short(label)}, expected a name, or an id from 0")
        if type(label) is int or (type(label) is str and re.fullmatch(r"\d+(\.0+)?", label)):
            index = int(float(label)) - self.first_id
            if 0 <= index < len(self.names):
                return self.names[index]
        ids = f"{self.first_id} to {self.first_id + len(self.names) - 1}"
        raise ValueError(f"the label is {short(label)}, expected one of {', '.join(self.names)}, or an id from {ids}")


def read_label_names(path: Path) -> tuple[str, ...]:
    """The names in a file {"O": 0, "B-X": 1, ...}, in order of their ids.

    Raises:
        ValueError: it holds something else, or the ids are not 0, 1, ..., each once.
    """
    wanted = 'Expected label names with their ids: {"O": 0, "B-X": 1, ...}.'
    ids = read_json_object(path, wanted)
    if not ids or any(type(index) is not int for index in ids.values()):
        raise ValueError(f"{path} holds {short(ids)}. {wanted}")
    if sorted(ids.values()) != list(range(len(ids))):
        raise ValueError(
            f"{path} gives the ids {short(sorted(ids.values()))}, expected 0 to {len(ids) - 1}, each once."
        )
    return tuple(sorted(ids, key=ids.__getitem__))


def sorted_names(names: Iterable[str]) -> tuple[str, ...]:
    """Different names in a fixed order: ids by their size, names by the alphabet."""
    different = sorted(set(names))  # first by the alphabet: 1 and 01 are one number
    return tuple(sorted(different, key=int) if all(map(str.isdecimal, different)) else different)


def say_alike(names: Iterable[str], noun: str) -> None:
    """Log names, such as "classes", that differ only in case or blanks."""
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(" ".join(name.lower().split()), []).append(name)
    for own in alike.values():
        if len(own) > 1:
            logger.warning(
                "the %s %s differ only in case or blanks, and count as different %s. Rename them if they are one.",
                noun,
                " and ".join(map(repr, own)),
                noun,
            )


def spelled_list(cell: Any) -> list[str] | None:
    """The items of a list that is spelled in a cell, as pandas writes it to CSV: ['a', 'b'], ["a"], [2 7]; None: the
    cell is none."""
    if not isinstance(cell, str) or not (cell.strip().startswith("[") and cell.strip().endswith("]")):
        return None
    items = re.findall(r"'([^']*)'|\"([^\"]*)\"|([^\s,'\"]+)", cell.strip()[1:-1])
    return ["".join(item).strip() for item in items]


def separator_of(cells: Iterable[Any], names: Sequence[str] | None = None) -> str:
    """What stands between several labels in one cell; empty: no cell holds several.

    Names may hold such characters themselves ("Portland, OR"). So the parts must be labels elsewhere too: fewer
    different parts than different cells, and one of them in a cell of its own unless all cells have several.
    """
    counts = Counter(cell.strip() for cell in cells if isinstance(cell, str) and (names is None or cell not in names))
    lists = [cell for cell in counts if cell.count(",") > 1]
    if lists and all(map(re.compile(r"\d+(,\d+)*").fullmatch, counts)) and not all(map(THOUSANDS.fullmatch, lists)):
        return ","  # ids, of which some stand nowhere by themselves
    for separator in SEPARATORS:
        several = [cell for cell in counts if separator in cell.strip(separator)]
        alone = {cell for cell in counts if separator not in cell} | set(names or ())
        parts = {part.strip() for cell in several for part in cell.split(separator)} - {""}
        shared = parts & alone if alone else parts
        if several and shared and len(parts | alone) < len(counts) + len(names or ()) and (not names or parts <= alone):
            return separator
    return ""


def labels_from_list(
    labels: Iterable[Any], names: Sequence[str] | None, count: int, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The ids of labels that are given as a list, (N,) int64, and the names that they stand for.

    Args:
        labels: a name or an id from 0 for each example.
        names: the names in order of their ids; None: those that occur, sorted.
        count: how many examples there are.
        source: what messages call the examples.

    Raises:
        ValueError: a label is neither name nor id, or not among the names; the names are not different strings; or
            there is not one label for each example, or no example.
    """
    if isinstance(labels, str):
        raise ValueError(f"{source}: the labels are the string {short(labels)}, expected a list with one for each.")
    if names is not None and (
        isinstance(names, str)
        or not all(isinstance(name, str) and name.strip() == name != "" for name in names)
        or len(set(names)) < len(names)
    ):
        raise ValueError(f"{source}: the label names are {short(names)}, expected a list of different names.")
    declared = LabelNames(None if names is None else tuple(names))
    given = []
    for index, label in enumerate(labels):
        try:
            given.append(declared.name_of(label.item() if isinstance(label, np.generic) else label))
        except ValueError as problem:
            raise ValueError(f"{source}, example {index}: {problem}.") from problem
    if len(given) != count or not count:
        raise ValueError(f"{source}: {count} examples and {len(given)} labels, expected examples with a label each.")
    found = sorted_names(given) if declared.names is None else declared.names
    ids = {name: index for index, name in enumerate(found)}
    return np.array([ids[name] for name in given], dtype=np.int64), found


def problem_type_of(targets: np.ndarray) -> ProblemType:
    """What these targets are: (N,) label ids, (N, L) float32 of 0 and 1 for each label, or (N,) float32 numbers."""
    if targets.dtype.kind != "f":
        return "single_label_classification"
    return "regression" if targets.ndim == 1 else "multi_label_classification"


def as_problem_type(
    targets: np.ndarray, labels: tuple[str, ...], problem_type: ProblemType, source: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """The targets and label names that these are under another problem type: one label as a list of one, or names that
    are numbers as these.

    Raises:
        ValueError: there is no such reading of the labels.
    """
    own = problem_type_of(targets)
    if own == problem_type:
        return targets, labels
    if own == "single_label_classification" and problem_type == "multi_label_classification":
        return (targets[:, None] == np.arange(len(labels))).astype(np.float32), labels
    if own == "single_label_classification":
        try:
            numbers = np.array([float(label) for label in labels], dtype=np.float32)
        except ValueError as error:
            raise ValueError(f"{source} has labels that are no numbers, for a regression: {error}.") from error
        return numbers[targets], (NUMBER,)
    raise ValueError(
        f"{source} is data for {own}, which cannot be read as {problem_type}. Leave --problem-type out, or give one "
        "label for each text."
    )


def label_ids(own_labels: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """For each of a data set's own labels its id among ``labels``, and -1 if it is not there: (own labels,) int64."""
    ids = {name: index for index, name in enumerate(labels)}
    return np.array([ids.get(name, -1) for name in own_labels], dtype=np.int64)


def relabel(targets: np.ndarray, own_labels: Sequence[str], labels: Sequence[str], source: object) -> np.ndarray:
    """Label ids of ``own_labels`` as ids of ``labels``, in an array of the same shape, int64.

    Labels that do not occur in ``targets`` need not be among the new ones. Targets of several labels have the columns
    of the new ones; numbers stay, whatever their name is.

    Raises:
        ValueError: a label that occurs is not among the new ones. The message names it and begins with ``source``.
    """
    problem_type = problem_type_of(targets)
    if problem_type == "regression":
        return targets
    if problem_type == "multi_label_classification":
        ids, occurs = label_ids(own_labels, labels), targets.max(axis=0, initial=0) > 0  # (own labels,) each
        unknown = sorted(own_labels[int(index)] for index in np.flatnonzero((ids < 0) & occurs))
        if unknown:
            raise ValueError(f"{source} has labels that are not among {list(labels)}: {unknown}.")
        columns = np.zeros((len(targets), len(labels)), dtype=np.float32)
        columns[:, ids[ids >= 0]] = targets[:, ids >= 0]
        return columns
    new = label_ids(own_labels, labels)[targets] if len(targets) else np.zeros(targets.shape, dtype=np.int64)
    if (new < 0).any():
        unknown = sorted(own_labels[int(target)] for target in np.unique(targets[new < 0]))
        raise ValueError(f"{source} has labels that are not among {list(labels)}: {unknown}.")
    return new


@dataclass(frozen=True)
class Decision:
    """What the logits are for, and from which score on a label is given.

    An adapter has no config.json that could tell its problem type; and thresholds have no place in one.
    """

    problem_type: ProblemType | None = None
    """None: it is not known, or the model's config.json says it."""
    thresholds: Mapping[str, float] | None = None
    """By label, for labels that are there or not each for itself; None: DEFAULT_THRESHOLD for all."""

    def of(self, labels: tuple[str, ...]) -> np.ndarray:
        """The thresholds of these labels, (L,) float64."""
        given = self.thresholds or {}
        return np.array([given.get(label, DEFAULT_THRESHOLD) for label in labels], dtype=np.float64)

    @property
    def is_usual(self) -> bool:
        """Whether the best label is given, which goes without saying."""
        return self.problem_type in (None, "single_label_classification")

    def to_dict(self) -> dict[str, Any]:
        """What is known, as JSON has it."""
        thresholds = None if self.thresholds is None else dict(self.thresholds)
        values = {"problem_type": self.problem_type, "thresholds": thresholds}
        return {name: value for name, value in values.items() if value is not None}

    def save(self, folder: str | Path) -> None:
        """Write decision.json into a folder."""
        write_json(Path(folder) / DECISION_FILE, self.to_dict())

    @classmethod
    def read(cls, folder: str | Path) -> Decision:
        """From decision.json in a model's folder; the defaults where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder) / DECISION_FILE
        if not path.is_file():
            return cls()
        remedy = f"Restore it, or delete it to have all thresholds at {DEFAULT_THRESHOLD}."
        return cls._from_dict(read_json_object(path, remedy), str(path))

    @classmethod
    def from_json(cls, text: str, where: str) -> Decision:
        """From the content of decision.json.

        Raises:
            ValueError: it is damaged. The message begins with ``where``.
        """
        return cls._from_dict(json_object(text, where), where)

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any], where: str) -> Decision:
        try:
            problem_type = problem_type_of_config(values)
        except ValueError as error:
            raise ValueError(f"{where}: {error}.") from error
        thresholds = values.get("thresholds")
        named = thresholds if isinstance(thresholds, dict) else {}
        wrong = [number for number in named.values() if type(number) not in (int, float) or not 0 <= number <= 1]
        if wrong or (thresholds is not None and named is not thresholds):
            raise ValueError(f"{where}: thresholds is {thresholds!r}, expected a number from 0 to 1 for each label.")
        return cls(problem_type, thresholds)
