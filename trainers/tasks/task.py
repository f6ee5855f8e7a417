"""What differs between tasks: how data becomes batches, the loss, predictions and scores; the loop knows the rest."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from lora_core.models.labels import ProblemType
from trainers.config import RunConfig
from trainers.data.labels import Decision


class Task(Protocol):
    """One kind of prediction."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names in the order of the logits."""
        ...

    def loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum (not mean) of the loss over the batch's labels, a scalar: the loss that evaluation reports."""
        ...

    def training_loss_sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Sum of what training minimises: `loss_sum`, unless the run weighs, focuses or smooths its labels.

        Runs that do still report the plain loss on validation data, so that they can be compared.
        """
        ...

    def predict(self, logits: Tensor, labels: Tensor) -> list[np.ndarray]:
        """The prediction of each example of the batch. Of ``labels`` only what has one counts, not which it is."""
        ...

    def examples(self, predictions: list[np.ndarray], data: Any) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Predicted and true label ids of each sentence, text or image, given the predictions for all of ``data``."""
        ...

    def metrics(self, predictions: list[np.ndarray], data: Any) -> dict[str, Any]:
        """Scores of the predictions for all examples of ``data``, in order."""
        ...

    def decided(self, predictions: list[np.ndarray], data: Any) -> "Task":
        """The task with what is chosen on validation data once training is over; itself where nothing is.

        This and `decision` a whole run asks for, the loop does not.
        """
        ...

    @property
    def decision(self) -> Decision:
        """How the logits become an answer, as it is kept beside the weights."""
        ...


class Dataset(Protocol):
    """One split as it was read."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Label names; the index is the id."""
        ...

    def in_memory(self) -> Any:
        """The same examples as a dataclass of lists or arrays with an entry for each, and their number as ``len``."""
        ...

    def with_labels(self, labels: tuple[str, ...]) -> Any:
        """The same examples with the ids of ``labels``. Raises ValueError for a label that is not among them."""
        ...


class Kind(Protocol):
    """All that a run must know about its task: a module of this package, or any object with these names.

    `trainers.tasks.KINDS` lists them.
    """

    SETTINGS: frozenset[str]
    """The settings that not every task uses, and this one does."""
    METRICS: tuple[str, ...]
    """The validation scores that can select the best epoch, beside the loss; of all problem types together."""
    ONE_LABEL: bool
    """Whether an example is labelled as a whole; else each of its words is."""
    PROBLEM_TYPES: tuple[ProblemType, ...]
    """What such a label can be in training; none where each word has one."""

    def label_ids(self, dataset: Any) -> np.ndarray:
        """The true label ids of all that is scored in a data set in memory, one example after another."""
        ...

    def counts(self, predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
        """(N, K, 3) right, predicted and true items in each example, from label ids of each: what F1 is made of.

        K is 1 where F1 is over all items, and the number of labels where it is the mean over them.
        """
        ...

    def shown(self, dataset: Any, index: int) -> Any:
        """What people look at of an example: a text, a list of words, or a picture (a file, or its pixels)."""
        ...

    def load(self, config: RunConfig) -> dict[str, Any]:
        """The splits of the run's data, each a Dataset."""
        ...

    def encode(self, dataset: Any, model: Any, config: RunConfig, saved: Path | None = None) -> Any:
        """A split as the model takes it: a Data, with a `content` that tells it from others (trainers/inputs.py).

        ``saved`` is the folder into which `save_preprocessing` has written how a finished run's model takes its inputs;
        None: a new run, for which the checkpoint says it.
        """
        ...

    def task(self, labels: tuple[str, ...], config: RunConfig, train: Any = None) -> Task:
        """The loss and the scores. Training gives its encoded split, whose labels `class_weights` counts."""
        ...

    def save_preprocessing(self, config: RunConfig, folder: Path, pairs: bool = False) -> None:
        """Write what inference needs beside the weights, among it whether the inputs are pairs of texts."""
        ...
