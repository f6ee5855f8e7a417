"""A model ready to predict, whatever it was loaded from: arrays in, logits out, and what its inputs must look like."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainers.data.reading import AS_FOUND, Reading

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from lora_core.models.labels import ProblemType
    from trainers.data.texts.encode import LongText


@dataclass(frozen=True)
class Served:
    """A model ready to predict, and what its inputs must look like."""

    source: str
    """What the user named."""
    model: Any
    """An `OnnxSession`, or a module of torch in eval mode, adapters merged."""
    logits: Callable[..., np.ndarray]
    """From arrays input_ids and attention_mask, or pixel_values, by keyword, to logits in float32."""
    task: str
    labels: tuple[str, ...]
    device: str
    """Where it computes, such as cpu or cuda:1; an ONNX file, whose arrays come from there, always says cpu."""
    folder: Path | None
    """Where tokenizer.json or preprocessor_config.json is; None: in `metadata`."""
    metadata: dict[str, str]
    """File name -> content, of an ONNX file."""
    max_length: int
    """Longest input in tokens, special tokens included; 0 for images."""
    pad_token_id: int
    vocab_size: int
    """Embeddings of the model; 0 for images."""
    long_text: LongText = "head"
    """What is kept of a text that exceeds `max_length`, where it is classified as a whole."""
    pairs: bool | None = None
    """Whether the model was trained on pairs of texts; None: it is not known."""
    segments: int = 1
    """Texts of a pair that the model tells apart by token_type_ids; 1: it takes none."""
    problem_type: ProblemType | None = None
    """What the logits of a text or an image are for; None: nothing tells, so it follows from their number."""
    reading: Reading = AS_FOUND
    """How the files that it was trained on were read."""
    thresholds: Mapping[str, float] | None = None
    """By label, the score from which on it is given; None: the default's. For multi_label_classification."""

    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer."""
        from trainers.data.tokenizer import TOKENIZER_FILE, load_tokenizer, tokenizer_of_json

        if self.folder is not None:
            return load_tokenizer(self.folder)
        if TOKENIZER_FILE not in self.metadata:
            raise ValueError(f"{self.source} holds no tokenizer. Export it again: lora-core export RUN")
        tokenizer = tokenizer_of_json(self.metadata[TOKENIZER_FILE], f"{self.source}: its {TOKENIZER_FILE}")
        tokenizer.no_padding()  # as `load_tokenizer`: a published tokenizer.json may pad every text, and so every word
        tokenizer.no_truncation()
        return tokenizer
