"""Training losses for labels of unequal number: class weights, focal loss, label smoothing.

Shapes: N labels, L classes; positions without a label hold `IGNORED_LABEL`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from trainers.config import RunConfig
from trainers.data.tokens.windows import IGNORED_LABEL


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
        labelled = labels != IGNORED_LABEL
        logits, labels = logits[labelled].float(), labels[labelled]  # (N, L), (N,)
        weight = None if self.class_weights is None else logits.new_tensor(self.class_weights)
        losses = F.cross_entropy(logits, labels, weight, reduction="none", label_smoothing=self.label_smoothing)  # (N,)
        if self.focal_gamma:
            missing = -torch.expm1(-F.cross_entropy(logits, labels, reduction="none"))  # (N,) 1 - p[y]
            # Below gamma 1 the power has no derivative at 0.
            losses = losses * missing.clamp_min(torch.finfo(missing.dtype).tiny) ** self.focal_gamma
        return losses.sum()


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
