"""One label for each text or image. The data must have `targets`, the true label ids (N,)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from trainers.classification_metrics import classification_metrics


@dataclass(frozen=True)
class Classification:
    """One of L labels for each of B texts or images."""

    labels: tuple[str, ...]
    """Label names in the order of the logits."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of logits (B, L) for labels (B,)."""
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def predict(self, logits: Tensor) -> list[np.ndarray]:
        """The best label id of each example, (1,)."""
        return list(logits.argmax(-1, keepdim=True).cpu().numpy())

    def examples(self, predictions: list[np.ndarray], data: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label id of each example, (1,) each."""
        return predictions, list(data.targets[:, None])

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Accuracy, macro scores, scores by label and the confusion matrix."""
        return classification_metrics(data.targets, np.concatenate(predictions), self.labels)
