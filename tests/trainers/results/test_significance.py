"""Oracles: binomial coefficients for McNemar, seqeval and scikit-learn for F1, a plain bootstrap for the interval."""

import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from seqeval.metrics import f1_score as seqeval_f1
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as sklearn_f1

from trainers.results.significance import (
    bootstrap_interval,
    compare_predictions,
    counts_of_run,
    mcnemar,
)
from trainers.run_folder import Run, save_predictions
from trainers.tasks.entity_scores import entity_counts
from trainers.tasks.intervals import f1_score
from trainers.tasks.label_scores import label_counts

LABELS = ("O", "B-X", "I-X", "B-Y", "I-Y")


@pytest.mark.parametrize(("one", "other"), [(0, 0), (1, 0), (3, 9), (40, 22), (0, 12), (700, 611), (5, 5)])
def test_mcnemar_is_the_binomial_test(one, other):
    both = one + other
    tail = sum(math.comb(both, count) for count in range(min(one, other) + 1))
    assert mcnemar(one, other) == pytest.approx(float(min(Fraction(1), Fraction(2 * tail, 2**both))), rel=1e-9)
    assert mcnemar(one, other) == mcnemar(other, one)


def sentences(seed, error):
    """Predicted and true tag ids of 60 sentences; the gold is the same for every seed above 0."""
    gold = [np.random.default_rng(0).integers(0, 5, size=12) for _ in range(60)]
    generator = np.random.default_rng(seed)
    gold = [np.roll(tags, shift) for shift, tags in enumerate(gold)]
    noise = [np.where(generator.random(12) < error, generator.integers(0, 5, size=12), tags) for tags in gold]
    return noise, gold


def test_f1_of_the_counts():
    predicted, gold = sentences(1, 0.3)
    names = [[[LABELS[tag] for tag in tags] for tags in side] for side in (gold, predicted)]
    assert f1_score(entity_counts(predicted, gold, LABELS).sum(0), macro=False) == pytest.approx(seqeval_f1(*names))
    flat = [tags[:1] for tags in predicted], [tags[:1] for tags in gold]
    expected = sklearn_f1(np.concatenate(flat[1]), np.concatenate(flat[0]), average="macro")
    assert f1_score(label_counts(*flat, LABELS).sum(0), macro=True) == pytest.approx(expected)


def test_interval_is_that_of_a_plain_bootstrap():
    (good, gold), (poor, _) = sentences(1, 0.1), sentences(2, 0.25)
    low, high = bootstrap_interval(entity_counts(good, gold, LABELS), entity_counts(poor, gold, LABELS), macro=False)
    generator = np.random.default_rng(5)
    names = [[[LABELS[tag] for tag in tags] for tags in side] for side in (gold, good, poor)]
    differences = []
    for _ in range(300):
        drawn = generator.integers(len(gold), size=len(gold))
        truth, one, other = ([side[index] for index in drawn] for side in names)
        differences.append(seqeval_f1(truth, one) - seqeval_f1(truth, other))
    assert 0 < low < high
    assert [low, high] == pytest.approx(np.percentile(differences, [2.5, 97.5]).tolist(), abs=0.02)
    alike = entity_counts(good, gold, LABELS)
    assert bootstrap_interval(alike, alike, macro=True) == (0.0, 0.0)


def saved_run(folder, predicted, gold, labels=LABELS, **config):
    folder.mkdir()
    save_predictions(folder, "test", predicted, gold)
    return Run(folder, folder.name, config, [], {"labels": list(labels)})


def test_two_saved_runs(tmp_path):
    (good, gold), (poor, _) = sentences(1, 0.02), sentences(2, 0.3)
    one, other = saved_run(tmp_path / "good", good, gold), saved_run(tmp_path / "poor", poor, gold)
    found = compare_predictions(one, other, "test")
    right = [np.array([np.array_equal(*pair) for pair in zip(side, gold, strict=True)]) for side in (good, poor)]
    assert found.only_this_right == (right[0] & ~right[1]).sum() > 0
    assert found.only_baseline_right == (right[1] & ~right[0]).sum()
    assert found.p == mcnemar(found.only_this_right, found.only_baseline_right)
    assert 1 < found.f1_low < found.f1_high < 100
    back = compare_predictions(other, one, "test")
    assert (back.f1_low, back.f1_high) == pytest.approx((-found.f1_high, -found.f1_low))


def test_texts_use_the_macro_score(tmp_path):
    gold = [np.array([label]) for label in [0] * 80 + [1] * 20]
    lazy = [np.array([0])] * 100
    settings = {"task": "text-classification", "labels": ("a", "b")}
    found = compare_predictions(saved_run(tmp_path / "exact", gold, gold, **settings),
                                saved_run(tmp_path / "lazy", lazy, gold, **settings), "test")  # fmt: skip
    assert (found.only_this_right, found.only_baseline_right) == (20, 0)
    assert found.f1_low < 100 * (1 - sklearn_f1([0] * 80 + [1] * 20, [0] * 100, average="macro")) < found.f1_high


def test_other_examples_are_refused(tmp_path):
    predicted, gold = sentences(1, 0.1)
    one = saved_run(tmp_path / "one", predicted, gold)
    other = saved_run(tmp_path / "other", predicted[1:], gold[1:])
    with pytest.raises(ValueError, match="predicted other examples of the test split"):
        compare_predictions(one, other, "test")


@pytest.mark.parametrize("task", ["token-classification", "text-classification"])
def test_accuracy_of_the_counts(task):
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 6, 40) if task.startswith("token") else np.ones(40, dtype=int)
    gold, predicted = ([generator.integers(0, 3, length) for length in lengths] for _ in range(2))
    run = Run(Path(), "run", {"task": task}, [], {"labels": list("abc")})
    counts = counts_of_run(run, "accuracy")(predicted, gold, list("abc"))
    assert f1_score(counts.sum(0), macro=False) == accuracy_score(np.concatenate(gold), np.concatenate(predicted))


def test_an_example_with_several_labels_is_right_as_a_whole():
    run = Run(Path(), "run", {"task": "text-classification"}, [], {"problem_type": "multi_label_classification"})
    gold, predicted = [np.array([1, 0]), np.array([1, 1])], [np.array([1, 0]), np.array([1, 0])]
    assert counts_of_run(run, "accuracy")(predicted, gold, ["a", "b"]).tolist() == [[[1, 1, 1]], [[0, 1, 1]]]
