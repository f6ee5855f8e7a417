"""Token classification: a label for each word."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from lora_core.models.heads import TaskModel
from lora_core.models.source import resolve
from trainers.config import RunConfig
from trainers.data.preprocess import Sentences, load_windows
from trainers.data.readers import token_files
from trainers.data.token_files import TokenFile
from trainers.data.tokenizer import check_vocabulary, load_tokenizer
from trainers.data.windows import IGNORED_LABEL, TokenWindows
from trainers.metrics import ner_metrics


@dataclass(frozen=True)
class TokenClassification:
    """Named entity recognition with BIO labels. Legend: B windows, T tokens, L labels."""

    labels: tuple[str, ...]
    """Label names in the order of the logits."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of logits (B, T, L) over the labelled positions of labels (B, T)."""
        return F.cross_entropy(
            logits.flatten(0, 1).float(), labels.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )

    def predict(self, logits: Tensor) -> list[np.ndarray]:
        """The best label id of every position, (T,) for each window."""
        return list(logits.argmax(-1).cpu().numpy())

    def examples(self, predictions: list[np.ndarray], data: TokenWindows) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label ids of each whole sentence's scored words, each word once."""
        gold = data.words_from(np.split(data.labels, data.offsets[1:-1]))
        predicted = data.words_from(predictions)
        scored = [words != IGNORED_LABEL for words in gold]
        return ([words[keep] for words, keep in zip(predicted, scored, strict=True)],
                [words[keep] for words, keep in zip(gold, scored, strict=True)])  # fmt: skip

    def metrics(self, predictions: list[np.ndarray], data: TokenWindows) -> dict[str, Any]:
        """Entity scores over whole sentences."""
        predicted, gold = self.examples(predictions, data)
        return ner_metrics([self._names(words) for words in gold], [self._names(words) for words in predicted])

    def _names(self, ids: np.ndarray) -> list[str]:
        return [self.labels[index] for index in ids]


def load(config: RunConfig) -> dict[str, TokenFile]:
    """The splits of the run's data."""
    return token_files(config.data, on_bad_row=config.on_bad_row)


def encode(dataset: Sentences, model: TaskModel, config: RunConfig) -> TokenWindows:
    """The data set in the model's tokens, cut into windows that the model can take."""
    tokenizer, max_length = tokenizer_and_length(model, config)
    return load_windows(dataset, tokenizer, max_length, model.config.pad_token_id, cache=config.cache)


def tokenizer_and_length(model: TaskModel, config: RunConfig) -> tuple[Tokenizer, int]:
    """The model's tokenizer, and the most tokens of one input. ValueError when the two do not fit the model."""
    tokenizer = load_tokenizer(resolve(config.model))
    check_vocabulary(tokenizer, model.config.vocab_size)
    longest = model.config.max_tokens
    if config.max_length is not None and config.max_length > longest:
        raise ValueError(f"max_length is {config.max_length}, but {config.model} has positions for {longest} tokens.")
    return tokenizer, longest if config.max_length is None else config.max_length


def task(labels: tuple[str, ...], config: RunConfig) -> TokenClassification:
    """The loss and the entity scores."""
    return TokenClassification(labels)


def save_preprocessing(config: RunConfig, folder: Path) -> None:
    """Write the model's tokenizer.json into ``folder``."""
    load_tokenizer(resolve(config.model)).save(str(folder / "tokenizer.json"))
