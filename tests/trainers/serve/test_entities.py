import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.raw_text import split_text
from trainers.serve.entities import find_spans, word_labels


def brute_force(scores, counts, strategy):
    """Word by word, as the strategies are defined."""
    start = 0
    for count in counts:
        pieces = scores[start : start + count]
        start += count
        row = {
            "first": pieces[0],
            "average": pieces.mean(axis=0),
            "max": max(pieces, key=lambda piece: piece.max()),
        }[strategy]
        yield int(row.argmax()), row.max()


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
@given(st.lists(st.integers(1, 4), max_size=8), st.integers(0, 2**32 - 1))
def test_word_labels(strategy, counts, seed):
    # Few distinct values, so that there are ties, which go to the first.
    scores = np.random.default_rng(seed).integers(0, 5, (sum(counts), 3)) / 8
    ids, found = word_labels(scores.astype(np.float32), np.array(counts, dtype=np.int64), strategy)
    expected = list(brute_force(scores, counts, strategy))
    assert ids.tolist() == [label for label, _ in expected]
    np.testing.assert_allclose(found, [score for _, score in expected], rtol=1e-6)


def groups(tags, strict=False):
    text = "aa bb, cc"
    scores = [0.5, 0.7, 0.9, 0.3]
    return [
        (entity["entity_group"], entity["word"], entity["start"], entity["end"], round(entity["score"], 3), first, end)
        for first, end, entity in find_spans(text, split_text(text), tags, scores, strict=strict)
    ]


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (["O", "O", "O", "O"], []),
        (["B-X", "I-X", "I-X", "O"], [("X", "aa bb,", 0, 6, 0.7, 0, 3)]),
        (["B-X", "B-X", "O", "B-Y"],
         [("X", "aa", 0, 2, 0.5, 0, 1), ("X", "bb", 3, 5, 0.7, 1, 2), ("Y", "cc", 7, 9, 0.3, 3, 4)]),
        (["I-X", "I-Y", "O", "I-Y"],
         [("X", "aa", 0, 2, 0.5, 0, 1), ("Y", "bb", 3, 5, 0.7, 1, 2), ("Y", "cc", 7, 9, 0.3, 3, 4)]),
        (["B", "I", "O", "B"], [("_", "aa bb", 0, 5, 0.6, 0, 2), ("_", "cc", 7, 9, 0.3, 3, 4)]),
        (["B-X", "I-Y", "I-X", "O"],
         [("X", "aa", 0, 2, 0.5, 0, 1), ("Y", "bb", 3, 5, 0.7, 1, 2), ("X", ",", 5, 6, 0.9, 2, 3)]),
    ],
)  # fmt: skip
def test_entities(tags, expected):
    assert groups(tags) == expected


def test_strict_iob2_needs_a_beginning():
    assert groups(["I-X", "B-X", "I-X", "I-Y"], strict=True) == [("X", "bb,", 3, 6, 0.8, 1, 3)]
