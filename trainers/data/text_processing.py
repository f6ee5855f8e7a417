"""What inference must know of a text model beside its tokenizer: where long texts end, as the run's settings have it.

For images, preprocessor_config.json says the like (image_processing.py).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from trainers.data.texts import LongText

TEXT_PROCESSING_FILE = "text_processing.json"
"""The name beside a model's weights, and in the metadata of an ONNX file."""


@dataclass(frozen=True)
class TextProcessing:
    """The defaults are those of a checkpoint from elsewhere."""

    max_length: int | None = None
    """Longest input in tokens, special tokens included; None: the model's limit."""
    long_text: LongText = "head"
    """What is kept of a longer text that is classified as a whole. Texts whose words are labelled are windowed."""

    def to_json(self) -> str:
        """The content of text_processing.json."""
        return json.dumps(asdict(self), indent=2) + "\n"

    def save(self, folder: str | Path) -> None:
        """Write text_processing.json into a folder."""
        (Path(folder) / TEXT_PROCESSING_FILE).write_text(self.to_json(), encoding="utf-8")

    @classmethod
    def from_json(cls, text: str, where: str) -> "TextProcessing":
        """From the content of text_processing.json. ValueError, which begins with ``where``, for anything else."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where} is not JSON: {error}.") from error
        if not isinstance(values, Mapping):
            raise ValueError(f"{where} holds {type(values).__name__} instead of a JSON object.")
        return cls(_max_length(values.get("max_length"), where), _long_text(values.get("long_text", "head"), where))

    @classmethod
    def read(cls, folder: str | Path) -> "TextProcessing":
        """From text_processing.json in a model's folder; the defaults where there is none.

        Raises:
            ValueError: the file is damaged.
        """
        path = Path(folder) / TEXT_PROCESSING_FILE
        return cls.from_json(path.read_text(encoding="utf-8"), str(path)) if path.is_file() else cls()


def _max_length(value: Any, where: str) -> int | None:
    if value is None or (type(value) is int and value >= 1):
        return value
    raise ValueError(f"{where}: max_length is {value!r}, expected a number of tokens or null.")


def _long_text(value: Any, where: str) -> LongText:
    if value == "head" or value == "head_tail" or value == "windows":
        return value
    raise ValueError(f"{where}: long_text is {value!r}, expected 'head', 'head_tail' or 'windows'.")
