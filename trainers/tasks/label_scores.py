"""Scores for one label per text or image. L labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

LABEL_METRICS: tuple[str, ...] = ("f1", "accuracy", "precision", "recall")
"""The scores of `classification_metrics` that are one number."""


def classification_metrics(gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str]) -> dict[str, Any]:
    """Accuracy, macro precision, recall and F1, the same for each label, and the confusion matrix.

    `gold` and `predicted` are label ids (N,). The result has, as floats from 0 to 1: `accuracy`, and `precision`,
    `recall` and `f1`, the plain means over the labels that occur in either. `types` maps each label to its
    `precision`, `recall`, `f1` and `support` (number of gold examples). `confusion` has a row for each gold label
    and a column for each predicted one, in the order of `labels`. A ratio without a denominator is 0.

    The figures are those of scikit-learn.

    Raises:
        ValueError: the numbers of gold and predicted labels differ or are zero, or an id is not that of a label.
    """
    gold, predicted = np.asarray(gold), np.asarray(predicted)
    if gold.shape != predicted.shape or gold.ndim != 1 or not len(gold):
        raise ValueError(
            f"gold labels have the shape {gold.shape} and predictions {predicted.shape}: expected one of each for "
            "the same examples, and at least one example."
        )
    for ids in (gold, predicted):
        if ids.min() < 0 or ids.max() >= len(labels):
            raise ValueError(f"label ids run from {ids.min()} to {ids.max()}, but there are {len(labels)} labels.")
    confusion = np.bincount(gold * len(labels) + predicted, minlength=len(labels) ** 2).reshape(len(labels), -1)
    right, in_gold, in_predicted = confusion.diagonal(), confusion.sum(1), confusion.sum(0)  # (L,) each
    scores = {
        "precision": right / np.maximum(1, in_predicted),
        "recall": right / np.maximum(1, in_gold),
        "f1": 2 * right / np.maximum(1, in_gold + in_predicted),
    }
    occurs = in_gold + in_predicted > 0
    return {
        "accuracy": float(right.sum() / len(gold)),
        **{name: float(by_label[occurs].mean()) for name, by_label in scores.items()},
        "types": {
            label: {**{name: float(by_label[row]) for name, by_label in scores.items()}, "support": int(in_gold[row])}
            for row, label in enumerate(labels)
        },
        "confusion": confusion.tolist(),
    }


def label_counts(predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(N, L, 3) right, predicted and true examples of each label: ones and zeros."""
    guess, truth = (np.concatenate(ids)[:, None] == np.arange(len(labels)) for ids in (predicted, gold))  # (N, L)
    return np.stack((guess & truth, guess, truth), axis=2).astype(np.int64)
