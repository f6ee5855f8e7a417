"""How the logits of a text or an image become an answer, kept beside the weights: decision.json.

An adapter has no config.json that could tell its problem type; and thresholds have no place in one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lora_core.files import json_object, read_json_object, write_json
from lora_core.models.task_model import ProblemType, problem_type_of_config

DECISION_FILE = "decision.json"
"""The name beside a model's weights, and in the metadata of an ONNX file."""
DEFAULT_THRESHOLD = 0.5
"""Of a label that nothing is known of."""


@dataclass(frozen=True)
class Decision:
    """What the logits are for, and from which score on a label is given."""

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
    def read(cls, folder: str | Path) -> "Decision":
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
    def from_json(cls, text: str, where: str) -> "Decision":
        """From the content of decision.json.

        Raises:
            ValueError: it is damaged. The message begins with ``where``.
        """
        try:
            values = json_object(text)
        except ValueError as error:
            raise ValueError(f"{where} {error}.") from error
        return cls._from_dict(values, where)

    @classmethod
    def _from_dict(cls, values: Mapping[str, Any], where: str) -> "Decision":
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
