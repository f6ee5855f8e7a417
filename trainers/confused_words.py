"""Which words lead a text classifier astray: those that set the confused texts of a label apart from its others.

Shapes: N texts, V words of the vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Directions = Literal["one", "both"]
WORD = r"(?u)\b[^\W\d_]{3,}\b"
"""Words that count: letters only, three at least."""


@dataclass(frozen=True)
class ConfusedPair:
    """Texts of one label that were taken for another."""

    true: str
    predicted: str
    errors: int
    """How many there are."""
    words: list[tuple[str, float]]
    """Their words, the most telling first, with the score that ranks them."""


def confused_pairs(
    texts: Sequence[str], gold: np.ndarray, predicted: np.ndarray, labels: Sequence[str], *,
    pairs: int = 1, directions: Directions = "both", words: int = 15,
) -> list[ConfusedPair]:  # fmt: skip
    """The most frequent confusions and their words.

    A word's score is its mean TF-IDF weight in the confused texts, minus that in the texts of the same true label that
    were recognised: what is frequent in the label anyway does not count. Only positive scores are kept.

    Args:
        texts: N texts that the model was not trained on.
        gold, predicted: (N,) label ids.
        pairs: how many pairs of labels to look at, the most confused first.
        directions: of a pair take only the more frequent direction, or both.
        words: most words for each direction.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(matrix, (gold, predicted), 1)
    np.fill_diagonal(matrix, 0)
    found = _most_confused(matrix, pairs, directions)
    if not found:
        return []
    vectorizer = TfidfVectorizer(token_pattern=WORD, stop_words="english", sublinear_tf=True)
    weights = vectorizer.fit_transform(texts)  # (N, V), sparse
    vocabulary = vectorizer.get_feature_names_out()
    result = []
    for true, guess in found:
        confused = np.flatnonzero((gold == true) & (predicted == guess))
        recognised = np.flatnonzero((gold == true) & (predicted == true))
        score = np.asarray(weights[confused].mean(0)).ravel()  # (V,)
        if len(recognised):
            score = score - np.asarray(weights[recognised].mean(0)).ravel()
        best = [index for index in np.argsort(-score, kind="stable")[:words] if score[index] > 0]
        result.append(ConfusedPair(labels[true], labels[guess], len(confused),
                                   [(str(vocabulary[index]), float(score[index])) for index in best]))  # fmt: skip
    return result


def word_list(pairs: Sequence[ConfusedPair]) -> list[str]:
    """The words of all pairs, each once, as `confusing_words` reads them from a file."""
    return list(dict.fromkeys(word for pair in pairs for word, _ in pair.words))


def _most_confused(errors: np.ndarray, pairs: int, directions: Directions) -> list[tuple[int, int]]:
    """(True label, predicted label) of the pairs of labels with most errors, the more frequent direction first."""
    both = np.triu(errors + errors.T, 1)
    order = np.argsort(-both, axis=None, kind="stable")[:pairs]
    found = []
    for low, high in zip(*np.unravel_index(order, both.shape), strict=True):
        ways = sorted([(int(low), int(high)), (int(high), int(low))], key=lambda way: -errors[way])
        found += [way for way in ways[: 1 if directions == "one" else 2] if errors[way]]
    return found
