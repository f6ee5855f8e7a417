import numpy as np
import pytest
from sklearn.metrics import f1_score as sklearn_f1

from trainers.tasks.intervals import f1_interval, f1_score
from trainers.tasks.label_scores import label_counts


def test_f1_of_counts_is_scikit_learns():
    random = np.random.default_rng(0)
    gold, predicted = random.integers(0, 3, 200), random.integers(0, 3, 200)
    counts = label_counts(list(predicted[:, None]), list(gold[:, None]), ["a", "b", "c"]).sum(0)
    assert f1_score(counts, macro=True) == pytest.approx(sklearn_f1(gold, predicted, average="macro"))
    assert f1_score(counts, macro=False) == pytest.approx(sklearn_f1(gold, predicted, average="micro"))


def test_the_interval_covers_the_true_score_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(100):
        right = random.random(150) < 0.8
        counts = np.stack([right, np.ones(150), np.ones(150)], axis=1)[:, None, :]  # F1: the share of right ones
        low, high = f1_interval(counts, samples=200, seed=trial)
        covered += low <= 0.8 <= high
    assert 88 <= covered <= 100


def test_no_interval_where_nothing_varies():
    assert f1_interval(np.ones((5, 1, 3))) == (1.0, 1.0)
