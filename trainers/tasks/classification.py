"""One label for each text or image. The data must have `targets`, the true label ids (N,)."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from trainers.data.texts.encode import mean_of_windows
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.tasks.label_scores import classification_metrics
from trainers.training.losses import TrainingLoss


@dataclass(frozen=True)
class Classification:
    """One of L labels for each of B texts or images."""

    labels: tuple[str, ...]
    """Label names in the order of the logits."""
    loss: TrainingLoss | None = None
    """What training minimises; None: `loss_sum`."""

    def training_loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As `loss_sum`, with the run's class weights, focus and smoothing."""
        return self.loss_sum(logits, labels) if self.loss is None else self.loss(logits, labels)

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of logits (B, L) for labels (B,)."""
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The best label id of each example, (1,)."""
        return list(logits.argmax(-1, keepdim=True).cpu().numpy())

    def examples(self, predictions: list[np.ndarray], data: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label id of each example, (1,) each."""
        return predictions, list(data.targets[:, None])

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Accuracy, macro scores, scores by label and the confusion matrix."""
        return classification_metrics(data.targets, np.concatenate(predictions), self.labels)


@dataclass(frozen=True)
class WindowedClassification(Classification):
    """The same for texts of several windows: a text's logits are the means of its windows' logits (R, L).

    The labels (R,) say which windows are one text (`EncodedTexts.collate`).
    """

    def training_loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        if self.loss is None:
            return self.loss_sum(logits, labels)
        return self.loss(mean_of_windows(logits, labels), labels[labels != IGNORED_LABEL])

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return super().loss_sum(mean_of_windows(logits, labels), labels[labels != IGNORED_LABEL])

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        return super().predict(mean_of_windows(logits, labels), labels[labels != IGNORED_LABEL])
