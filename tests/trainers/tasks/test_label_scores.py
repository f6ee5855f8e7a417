import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    confusion_matrix,
    f1_score,
    label_ranking_average_precision_score,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    r2_score,
)

from trainers.results.significance import f1_score as f1_of_counts
from trainers.tasks.label_scores import (
    best_thresholds,
    classification_metrics,
    multi_label_counts,
    multi_label_metrics,
    regression_metrics,
)

LABELS = ("a", "b", "c", "d", "e")


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("in_gold", [1, 3, 5])
@pytest.mark.parametrize("in_predicted", [1, 2, 5])
def test_the_figures_are_those_of_scikit_learn(seed, in_gold, in_predicted):
    random = np.random.default_rng(seed)
    count = random.integers(1, 40)
    gold, predicted = random.integers(0, in_gold, count), random.integers(0, in_predicted, count) + 5 - in_predicted
    found = classification_metrics(gold, predicted, LABELS)
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    macro = precision_recall_fscore_support(gold, predicted, average="macro", zero_division=0)[:3]
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(macro)
    by_label = precision_recall_fscore_support(gold, predicted, labels=range(5), zero_division=0)
    for row, label in enumerate(LABELS):
        scores = [found["types"][label][name] for name in ("precision", "recall", "f1", "support")]
        assert scores == pytest.approx([column[row] for column in by_label])
    assert found["confusion"] == confusion_matrix(gold, predicted, labels=range(5)).tolist()


def test_rows_of_the_confusion_matrix_are_true_labels():
    found = classification_metrics(np.array([0, 0, 1]), np.array([1, 1, 1]), ("cat", "dog"))
    assert found["confusion"] == [[0, 2], [0, 1]]
    assert found["types"]["cat"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2}


@pytest.mark.parametrize(("gold", "predicted", "problem"), [
    ([0, 1], [0], "shape"), ([], [], "at least one"), ([0, 5], [0, 0], "run from 0 to 5, but there are 5"),
    ([0, 0], [-1, 0], "run from -1 to 0"), ([[0]], [[0]], "shape"),
])  # fmt: skip
def test_what_cannot_be_scored(gold, predicted, problem):
    with pytest.raises(ValueError, match=problem):
        classification_metrics(np.array(gold, dtype=int), np.array(predicted, dtype=int), LABELS)


@pytest.mark.parametrize("seed", range(6))
def test_figures_of_several_labels_are_those_of_scikit_learn(seed):
    random = np.random.default_rng(seed)
    gold = (random.random((30, 5)) < [0.5, 0.3, 0.1, 0.0, 0.9]).astype(np.float32)
    scores = np.clip(0.5 * gold + 0.7 * random.random((30, 5)), 0, 1).astype(np.float32)
    thresholds = random.random(5)
    given = (scores > thresholds).astype(int)
    found = multi_label_metrics(gold, scores, LABELS, thresholds)
    micro = precision_recall_fscore_support(gold, given, average="micro", zero_division=0)[:3]
    assert [found[name] for name in ("precision", "recall", "f1")] == pytest.approx(micro)
    assert found["macro_f1"] == pytest.approx(f1_score(gold, given, average="macro", zero_division=0))
    assert found["samples_f1"] == pytest.approx(f1_score(gold, given, average="samples", zero_division=0))
    assert found["accuracy"] == accuracy_score(gold, given)
    assert found["ranking_precision"] == pytest.approx(label_ranking_average_precision_score(gold, scores))
    by_label = precision_recall_fscore_support(gold, given, zero_division=0)
    for row, label in enumerate(LABELS):
        types = [found["types"][label][name] for name in ("precision", "recall", "f1", "support")]
        assert types == pytest.approx([column[row] for column in by_label])
    counts = multi_label_counts(list(given), list(gold), LABELS)
    assert f1_of_counts(counts.sum(0), macro=False) == pytest.approx(found["f1"])


def test_a_single_label_that_is_there_or_not():
    gold, scores = np.array([[1], [0], [1], [0]], np.float32), np.array([[0.9], [0.8], [0.1], [0.2]], np.float32)
    found = multi_label_metrics(gold, scores, ("a",), np.array([0.5]))
    assert [found[name] for name in ("precision", "recall", "f1", "accuracy")] == [0.5, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("seed", range(6))
def test_thresholds_are_the_best_that_there_are(seed):
    random = np.random.default_rng(seed)
    gold = (random.random((25, 3)) < [0.4, 0.1, 0.0]).astype(np.float32)
    scores = (random.random((25, 3)) * [1, 0.3, 1]).astype(np.float32)
    scores[:5] = scores[5:10]  # equal scores
    found = best_thresholds(gold, scores)
    assert found[2] == 0.5  # no positive example
    for label in range(2):
        tried = [f1_score(gold[:, label], scores[:, label] > t, zero_division=0) for t in [-1, *scores[:, label]]]
        own = f1_score(gold[:, label], scores[:, label] > found[label], zero_division=0)
        assert own == pytest.approx(max(tried))
    assert best_thresholds(np.array([[1.0], [0.0]]), np.array([[0.8], [0.3]])).tolist() == [0.5]


def test_figures_of_numbers_are_those_of_scipy_and_scikit_learn():
    random = np.random.default_rng(0)
    gold = random.integers(0, 6, 40).astype(np.float32)
    predicted = (gold + random.normal(0, 2, 40)).astype(np.float32)
    found = regression_metrics(gold, predicted)
    assert found == pytest.approx(
        {
            "pearson": pearsonr(gold, predicted).statistic,
            "spearman": spearmanr(gold, predicted).statistic,
            "mse": mean_squared_error(gold, predicted),
            "mae": mean_absolute_error(gold, predicted),
            "r2": r2_score(gold, predicted),
        },
        rel=1e-5,
    )
    same = regression_metrics(gold, np.full(40, 2.5, np.float32))
    assert (same["pearson"], same["spearman"]) == (0.0, 0.0)
    assert regression_metrics(gold[:1], predicted[:1])["r2"] == 0.0
