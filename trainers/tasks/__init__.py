"""What differs between tasks: a task knows its loss, predictions and scores; the loop knows the rest."""

from typing import Any, Protocol

import numpy as np
from torch import Tensor


class Data(Protocol):
    """What the loop asks of a data set of N examples."""

    @property
    def lengths(self) -> np.ndarray:
        """(N,) positions of each example; examples of similar length share a batch."""
        ...

    @property
    def label_counts(self) -> np.ndarray:
        """(N,) labels of each example: the number of terms it adds to the summed loss."""
        ...

    def collate(self, indices: np.ndarray) -> tuple[dict[str, Tensor], Tensor]:
        """The model's keyword arguments and the labels of a batch."""
        ...


class Task(Protocol):
    """One kind of prediction."""

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum (not mean) of the loss over the batch's labels, a scalar."""
        ...

    def predict(self, logits: Tensor) -> list[np.ndarray]:
        """The prediction of each example of the batch."""
        ...

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Scores of the predictions for all examples of ``data``, in order."""
        ...
