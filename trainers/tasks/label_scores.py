"""Scores of texts and images: for one label each, for several, and for numbers. N examples, L labels."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lora_core.models.labels import ProblemType
from trainers.data.labels import DEFAULT_THRESHOLD

LABEL_METRICS: tuple[str, ...] = ("f1", "accuracy", "precision", "recall")
"""The scores of `classification_metrics` that are one number."""
MULTI_LABEL_METRICS: tuple[str, ...] = (
    *("f1", "accuracy", "precision", "recall", "macro_f1", "samples_f1", "ranking_precision"),
)
"""Those of `multi_label_metrics`."""
REGRESSION_METRICS: tuple[str, ...] = ("pearson", "spearman", "r2")
"""Those of `regression_metrics` of which more is better; the squared error is the loss."""
METRICS_OF: dict[ProblemType, tuple[str, ...]] = {
    "single_label_classification": LABEL_METRICS,
    "multi_label_classification": MULTI_LABEL_METRICS,
    "regression": REGRESSION_METRICS,
}
"""The first is what selects the best epoch unless the run says otherwise."""


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


def multi_label_metrics(
    gold: np.ndarray, scores: np.ndarray, labels: Sequence[str], thresholds: np.ndarray
) -> dict[str, Any]:
    """Scores of the labels above their thresholds, and of the ranking of all.

    `gold` (N, L) is 0 and 1, `scores` (N, L) are probabilities, `thresholds` (L,). The result has, as floats from 0 to
    1: `precision`, `recall` and `f1` over all labels of all examples together (micro); `macro_f1`, the mean over the
    labels; `samples_f1`, the mean over the examples; `accuracy`, the share of examples with exactly their labels;
    `ranking_precision`, the label ranking average precision. `types` maps each label to its scores and its `support`.
    A ratio without a denominator is 0.

    The figures are those of scikit-learn.
    """
    from sklearn.metrics import label_ranking_average_precision_score

    truth, given = gold > 0, scores > thresholds  # (N, L)
    found = np.stack([truth & given, given, truth])  # (3, N, L) right, predicted, true
    support = truth.sum(0)  # (L,)
    micro, by_label, by_example = _ratios(found.sum((1, 2))), _ratios(found.sum(1)), _ratios(found.sum(2))
    return {
        **{name: float(score) for name, score in micro.items()},
        "macro_f1": float(by_label["f1"].mean()),
        "samples_f1": float(by_example["f1"].mean()),
        "accuracy": float((truth == given).all(1).mean()),
        "ranking_precision": float(label_ranking_average_precision_score(truth, scores)),
        "types": {
            label: {
                **{name: float(score[row]) for name, score in by_label.items()},
                "support": int(support[row]),
            }
            for row, label in enumerate(labels)
        },
    }


def _ratios(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Precision, recall and F1 of counts (3, ...) of right, predicted and true items."""
    right, predicted, true = counts
    return {
        "precision": right / np.maximum(1, predicted),
        "recall": right / np.maximum(1, true),
        "f1": 2 * right / np.maximum(1, predicted + true),
    }


def best_thresholds(gold: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """For each label the threshold above which it has the best F1 on these examples, (L,) float64.

    It lies in the middle between two scores that occur; of equally good ones it is the nearest to 0.5, which a label
    without a positive example keeps. Lipton, Elkan, Narayanaswamy 2014 (https://arxiv.org/abs/1402.1892): it is to be
    chosen by the data, for F1 is seldom best at 0.5.
    """
    found = np.full(gold.shape[1], DEFAULT_THRESHOLD)
    for label, (true, own) in enumerate(zip(gold.T > 0, scores.T.astype(np.float64), strict=True)):
        if not true.any():
            continue
        different = np.unique(own)
        candidates = np.array([DEFAULT_THRESHOLD, *(different[1:] + different[:-1]) / 2, different[0] / 2])
        given, right = (len(part) - np.searchsorted(np.sort(part), candidates, "right") for part in (own, own[true]))
        f1 = 2 * right / (given + true.sum())
        best = candidates[f1 == f1.max()]
        found[label] = best[np.abs(best - DEFAULT_THRESHOLD).argmin()]
    return found


def regression_metrics(gold: np.ndarray, predicted: np.ndarray) -> dict[str, Any]:
    """Correlations `pearson` and `spearman`, errors `mse` and `mae`, and `r2`, of numbers (N,).

    The figures are those of SciPy and scikit-learn. A correlation with what does not vary is 0.
    """
    from scipy.stats import rankdata
    from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score

    gold, predicted = gold.astype(np.float64), predicted.astype(np.float64)
    varies = len(gold) > 1 and np.ptp(gold) > 0 and np.ptp(predicted) > 0
    return {
        "pearson": float(np.corrcoef(gold, predicted)[0, 1]) if varies else 0.0,
        "spearman": float(np.corrcoef(rankdata(gold), rankdata(predicted))[0, 1]) if varies else 0.0,
        "mse": float(mean_squared_error(gold, predicted)),
        "mae": float(mean_absolute_error(gold, predicted)),
        "r2": float(r2_score(gold, predicted)) if len(gold) > 1 else 0.0,
    }


def multi_label_counts(predicted: list[np.ndarray], gold: list[np.ndarray], labels: Sequence[str]) -> np.ndarray:
    """(N, 1, 3) right, predicted and true labels of each example, of which micro F1 is made."""
    guess, truth = np.stack(predicted) > 0, np.stack(gold) > 0  # (N, L)
    return np.stack([(guess & truth).sum(1), guess.sum(1), truth.sum(1)], axis=1)[:, None].astype(np.int64)
