"""Token classification: a label for each word."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

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

    def metrics(self, predictions: list[np.ndarray], data: TokenWindows) -> dict[str, Any]:
        """Entity scores over whole sentences, each word counted once."""
        gold = data.words_from(np.split(data.labels, data.offsets[1:-1]))
        predicted = data.words_from(predictions)
        scored = [words != IGNORED_LABEL for words in gold]
        return ner_metrics(
            [self._names(words[keep]) for words, keep in zip(gold, scored, strict=True)],
            [self._names(words[keep]) for words, keep in zip(predicted, scored, strict=True)],
        )

    def _names(self, ids: np.ndarray) -> list[str]:
        return [self.labels[index] for index in ids]
