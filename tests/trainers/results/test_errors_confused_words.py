"""The oracle is scikit-learn's TF-IDF, pair by pair."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

from trainers.results.errors import WORD, confused_pairs, word_list

LABELS = ("business", "tech", "sport")
TEXTS = [
    "shares of the bank fell", "the bank raised its rates", "the chip maker's shares jumped, software sells",
    "a new chip for software", "software update with a chip", "shares of a software firm fell",
    "the match ended in a draw", "the coach praised the match",
]  # fmt: skip
GOLD = np.array([0, 0, 0, 1, 1, 1, 2, 2])
PREDICTED = np.array([0, 0, 1, 1, 1, 0, 2, 1])


def test_words_of_confused_texts_and_not_of_their_label():
    first, second = confused_pairs(TEXTS, GOLD, PREDICTED, LABELS, words=3)
    assert (first.true, first.predicted, first.errors) == ("business", "tech", 1)
    assert (second.true, second.predicted, second.errors) == ("tech", "business", 1)
    assert {"chip", "maker", "software", "sells", "jumped"} > {word for word, _ in first.words}
    assert {word for word, _ in second.words} == {"shares", "firm", "fell"}
    assert "the" not in word_list([first, second])


def test_scores_are_differences_of_mean_weights():
    (pair, *_) = confused_pairs(TEXTS, GOLD, PREDICTED, LABELS)
    weights = TfidfVectorizer(token_pattern=WORD, stop_words="english", sublinear_tf=True).fit(TEXTS)
    dense = weights.transform(TEXTS).toarray()
    expected = dict(zip(weights.get_feature_names_out(), dense[2] - dense[:2].mean(0), strict=True))
    positive = sorted((value for value in expected.values() if value > 0), reverse=True)
    assert [score for _, score in pair.words] == pytest.approx(positive)
    assert all(score == pytest.approx(expected[word]) for word, score in pair.words)


def test_directions_and_the_number_of_pairs():
    predicted = np.array([0, 1, 1, 1, 1, 0, 2, 1])  # business -> tech twice, tech -> business once, sport -> tech once

    def pairs_of(**options):
        return [(pair.true, pair.predicted, pair.errors) for pair in
                confused_pairs(TEXTS, GOLD, predicted, LABELS, **options)]  # fmt: skip

    assert pairs_of() == [("business", "tech", 2), ("tech", "business", 1)]
    assert pairs_of(directions="one") == [("business", "tech", 2)]
    assert pairs_of(pairs=3) == [("business", "tech", 2), ("tech", "business", 1), ("sport", "tech", 1)]


def test_no_errors_no_words():
    assert confused_pairs(TEXTS, GOLD, GOLD, LABELS) == []
    everything_wrong = confused_pairs(TEXTS, GOLD, (GOLD + 1) % 3, LABELS, pairs=2)
    assert [pair.errors for pair in everything_wrong] == [3, 3]
    assert all(pair.words for pair in everything_wrong)


def test_the_list_has_each_word_once():
    pairs = confused_pairs(TEXTS, GOLD, (GOLD + 1) % 3, LABELS, pairs=3)
    words = word_list(pairs)
    assert len(words) == len(set(words)) <= sum(len(pair.words) for pair in pairs)
    assert words[0] == pairs[0].words[0][0]
