"""One answer for each text or image: a label, several labels, or a number. The data must have `targets`, the true ones.

Legend: B texts or images, R rows (B, or the windows of B texts), L labels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, TypeVar

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from lora_core.models.task_model import ProblemType, scores_of_logits
from trainers.data.texts.encode import labels_of_texts, mean_of_windows
from trainers.tasks.decision import Decision
from trainers.tasks.label_scores import (
    best_thresholds,
    classification_metrics,
    multi_label_metrics,
    regression_metrics,
)
from trainers.training.losses import Loss

AnyTask = TypeVar("AnyTask", bound="Classification")


@dataclass(frozen=True)
class Classification:
    """One of L labels for each of B texts or images."""

    labels: tuple[str, ...]
    """Label names in the order of the logits."""
    loss: Loss | None = None
    """What training minimises; None: `loss_sum`."""
    windows: bool = False
    """Whether a text may have several rows, its windows: its logits are the means of theirs. The labels (R, ...) say
    which rows are one text (`EncodedTexts.collate`)."""

    problem_type: ClassVar[ProblemType] = "single_label_classification"

    def training_loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """As `loss_sum`, with the run's class weights, focus and smoothing."""
        if self.loss is None:
            return self.loss_sum(logits, labels)
        return self.loss(*self.by_example(logits, labels))

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed cross-entropy of logits (R, L) for labels (R,)."""
        logits, labels = self.by_example(logits, labels)
        return F.cross_entropy(logits.float(), labels, reduction="sum")

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The best label id of each example, (1,)."""
        logits, _ = self.by_example(logits, labels)
        return list(logits.argmax(-1, keepdim=True).cpu().numpy())

    def examples(self, predictions: list[np.ndarray], data: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label id of each example, (1,) each."""
        return predictions, list(data.targets[:, None])

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Accuracy, macro scores, scores by label and the confusion matrix."""
        return classification_metrics(data.targets, np.concatenate(predictions), self.labels)

    @property
    def decision(self) -> Decision:
        """How the logits become an answer, for those who serve the model."""
        return Decision(self.problem_type)

    def decided(self: AnyTask, predictions: list[np.ndarray], data: Any) -> AnyTask:
        """The task with what is chosen on validation data once training is over: here nothing."""
        return self

    def by_example(self, logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The logits (B, L) and the labels (B, ...) of each example."""
        if not self.windows:
            return logits, labels
        return mean_of_windows(logits, labels), labels_of_texts(labels)


@dataclass(frozen=True)
class MultiLabelClassification(Classification):
    """Any number of L labels for each example, none included. Targets and labels are (..., L) float32 of 0 and 1."""

    thresholds: Mapping[str, float] | None = None
    """By label, the probability above which it is given; None: 0.5 for all."""

    problem_type: ClassVar[ProblemType] = "multi_label_classification"

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed binary cross-entropy of logits (R, L) for labels (R, L): B times L terms."""
        logits, labels = self.by_example(logits, labels)
        return F.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The probability of each label, (L,) float32 for each example."""
        logits, _ = self.by_example(logits, labels)
        return list(scores_of_logits(logits.float(), self.problem_type).cpu().numpy())

    def examples(self, predictions: list[np.ndarray], data: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """1 for each label that is given, or true, and 0 for the others: (L,) uint8 for each example."""
        given = np.stack(predictions) > self.decision.of(self.labels)
        return list(given.astype(np.uint8)), list(data.targets.astype(np.uint8))

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Micro, macro and by-example scores of the labels that are given, and how well all are ranked."""
        return multi_label_metrics(data.targets, np.stack(predictions), self.labels, self.decision.of(self.labels))

    @property
    def decision(self) -> Decision:
        return Decision(self.problem_type, self.thresholds)

    def decided(self, predictions: list[np.ndarray], data: Any) -> "MultiLabelClassification":
        """With the threshold of each label that gives the best F1 on this data."""
        found = best_thresholds(data.targets, np.stack(predictions))
        return replace(self, thresholds=dict(zip(self.labels, found.tolist(), strict=True)))


@dataclass(frozen=True)
class Regression(Classification):
    """A number for each example: the one logit. Targets and labels are (...) float32."""

    problem_type: ClassVar[ProblemType] = "regression"

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Summed squared error of logits (R, 1) for labels (R,)."""
        logits, labels = self.by_example(logits, labels)
        return F.mse_loss(logits.float().squeeze(-1), labels, reduction="sum")

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The number, (1,) float32 for each example."""
        logits, _ = self.by_example(logits, labels)
        return list(logits.float().cpu().numpy())

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Correlations, errors and the share of the variance that is explained."""
        return regression_metrics(data.targets, np.concatenate(predictions))


TASKS: dict[ProblemType, type[Classification]] = {
    "single_label_classification": Classification,
    "multi_label_classification": MultiLabelClassification,
    "regression": Regression,
}
