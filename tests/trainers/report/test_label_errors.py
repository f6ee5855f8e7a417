import numpy as np

from trainers.report.label_errors import suspected


def test_the_off_diagonal_rule():
    probabilities = np.array(
        [
            [0.9, 0.1, 0.0],  # bears 0, is 0
            [0.7, 0.2, 0.1],  # bears 0, is 0: the threshold of 0 is the mean, (0.9 + 0.7 + 0.05) / 3 = 0.55
            [0.05, 0.9, 0.05],  # bears 0, but reaches the threshold of 1, (0.8 + 0.6) / 2 = 0.7
            [0.1, 0.8, 0.1],  # bears 1
            [0.4, 0.6, 0.0],  # bears 1, reaches no threshold: says nothing
        ]
    )
    assert suspected(probabilities, np.array([0, 0, 0, 1, 1])) == [(2, 1)]


def test_of_several_labels_above_their_thresholds_the_likeliest_counts():
    probabilities = np.array([[0.2, 0.5, 0.3], [0.3, 0.3, 0.4], [0.3, 0.4, 0.3], [0.34, 0.33, 0.33]])
    gold = np.array([0, 2, 1, 0])
    # Thresholds: 0.27, 0.4, 0.4. The first reaches 1 alone; the last reaches 0, its own.
    assert suspected(probabilities, gold) == [(0, 1)]


def test_swapped_labels_are_found_among_many():
    generator = np.random.default_rng(0)
    true = generator.integers(4, size=2000)
    logits = generator.normal(size=(2000, 4)) + 6 * np.eye(4)[true]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    gold = true.copy()
    swapped = generator.choice(2000, 100, replace=False)
    gold[swapped] = (true[swapped] + 1) % 4
    found = suspected(probabilities, gold)
    first = {place for place, _ in found[:100]}
    assert len(first & set(swapped.tolist())) >= 85
    assert all(label == true[place] for place, label in found if place in set(swapped[:20].tolist()) & first)
    margins = [probabilities[place, gold[place]] - probabilities[place, label] for place, label in found]
    assert margins == sorted(margins)


def test_where_no_label_is_contradicted_nothing_is_suspected():
    assert suspected(np.eye(3), np.arange(3)) == []
