"""Training losses for labels of unequal number: class weights, focal loss, label smoothing.

Shapes: N labels, L classes; positions without a label hold `IGNORED_LABEL`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from lora_core.models.host import send
from trainers.config import RunConfig
from trainers.data.tokens.windows import IGNORED_LABEL

Loss = Callable[[Tensor, Tensor], Tensor]
"""From logits and labels to a summed loss: what training minimises instead of the plain one."""


@dataclass(frozen=True)
class TrainingLoss:
    """Cross-entropy with weights, focus and smoothing, as a sum: what training minimises instead of the plain one.

    The loss of a label y is  w[y] (1 - p[y])^gamma (-log p[y]).  With smoothing e the last factor and its weight are
    those of torch: (1 - e) w[y] (-log p[y]) + e / L * sum over c of w[c] (-log p[c]).

    Focal loss: Lin et al. 2017 (https://arxiv.org/abs/1708.02002), equation 5. Smoothing: Szegedy et al. 2016
    (https://arxiv.org/abs/1512.00567), section 7.
    """

    class_weights: tuple[float, ...] | None = None
    """w, by label id; None: all 1."""
    focal_gamma: float = 0.0
    """gamma: at 2 a label with probability 0.9 counts a hundredth."""
    label_smoothing: float = 0.0
    """e: share of the target that is spread over all labels."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over the labelled positions of logits (..., L) and labels (...), a scalar in float32."""
        logits, labels = logits.flatten(0, -2).float(), labels.flatten()  # (N, L), (N,)
        cross_entropy = partial(F.cross_entropy, ignore_index=IGNORED_LABEL, reduction="none")  # 0 without a label
        weight = _on_device(self.class_weights, logits)
        losses = cross_entropy(logits, labels, weight, label_smoothing=self.label_smoothing)  # (N,)
        if self.focal_gamma:
            missing = -torch.expm1(-cross_entropy(logits, labels))  # (N,) 1 - p[y]
            # Below gamma 1 the power has no derivative at 0.
            losses = losses * missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.focal_gamma
        return losses.sum()


@dataclass(frozen=True)
class MultiLabelLoss:
    """Binary cross-entropy of each label with weights, focus and smoothing, as a sum: what training minimises instead
    of the plain one where an example may have several labels.

    The loss of a label with target y is  (1 - q)^gamma (w y (-log p) + (1 - y) (-log (1 - p))), in which q is the
    probability of what is true (p or 1 - p). With smoothing e the last factor has (1 - e) y + e / 2 for y.

    Focal loss of single labels: Lin et al. 2017 (https://arxiv.org/abs/1708.02002), equation 4.
    """

    positive_weights: tuple[float, ...] | None = None
    """w, by label id: what its presence counts against its absence; None: all 1."""
    focal_gamma: float = 0.0
    label_smoothing: float = 0.0
    """e: share of every target that is spread over presence and absence."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """The sum over logits (B, L) and labels (B, L) of 0 and 1, a scalar in float32."""
        logits = logits.float()
        weight = _on_device(self.positive_weights, logits)
        smoothed = labels * (1 - self.label_smoothing) + self.label_smoothing / 2
        losses = F.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weight, reduction="none")  # (B, L)
        if self.focal_gamma:
            missing = torch.sigmoid(torch.where(labels > 0.5, -logits, logits))  # (B, L) 1 - q
            # Below gamma 1 the power has no derivative at 0.
            losses = losses * missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.focal_gamma
        return losses.sum()


def _on_device(weights: tuple[float, ...] | None, logits: Tensor) -> Tensor | None:
    """The weights (L,) where the logits are, in their dtype."""
    return None if weights is None else send(torch.tensor(weights, dtype=logits.dtype), logits.device)


def multi_label_loss(config: RunConfig, targets: np.ndarray) -> MultiLabelLoss | None:
    """The loss of a run whose training targets are (N, L) of 0 and 1; None where it is plain binary cross-entropy."""
    if config.class_weights == "none" and not config.focal_gamma and not config.label_smoothing:
        return None
    weights = positive_weights(targets) if config.class_weights == "balanced" else None
    return MultiLabelLoss(weights, config.focal_gamma, config.label_smoothing)


def regression_loss(config: RunConfig, targets: np.ndarray | None = None) -> None:
    """The loss of a run that learns numbers is always the plain squared error.

    Raises:
        ValueError: the settings want labels weighted or smoothed.
    """
    for name in ("class_weights", "focal_gamma", "label_smoothing"):
        value = getattr(config, name)
        if value != getattr(RunConfig(), name):
            raise ValueError(f"{name} is {value}, but the run learns numbers (regression), not labels. Leave it out.")


def positive_weights(targets: np.ndarray) -> tuple[float, ...]:
    """Weights of each label's presence, with which it counts as much in total as its absence: examples without it by
    examples with it. A label that no example has, or every one, weighs 1."""
    present = targets.sum(0, dtype=np.float64)  # (L,)
    absent = len(targets) - present
    return tuple(float(no / yes) if yes and no else 1.0 for yes, no in zip(present, absent, strict=True))


def training_loss(config: RunConfig, labels: np.ndarray, num_labels: int) -> TrainingLoss | None:
    """The loss of a run whose training labels are `labels` (any shape); None where it is plain cross-entropy."""
    if config.class_weights == "none" and not config.focal_gamma and not config.label_smoothing:
        return None
    weights = balanced_weights(labels, num_labels) if config.class_weights == "balanced" else None
    return TrainingLoss(weights, config.focal_gamma, config.label_smoothing)


def balanced_weights(labels: np.ndarray, num_labels: int) -> tuple[float, ...]:
    """Weights inverse to the classes' frequencies, with which every class that occurs has the same total weight.

    Their mean over the labels is 1, so that a weighted sum divided by the number of labels stays a mean. They are
    scikit-learn's "balanced" weights; a class that does not occur weighs 1.
    """
    counts = np.bincount(labels[labels != IGNORED_LABEL], minlength=num_labels)  # (L,)
    total, occurring = counts.sum(), np.count_nonzero(counts)
    return tuple(float(total / (occurring * count)) if count else 1.0 for count in counts)
