import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, precision_recall_fscore_support

from trainers.tasks.label_scores import classification_metrics

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
