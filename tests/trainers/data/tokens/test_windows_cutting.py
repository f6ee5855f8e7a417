import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.tokens.windows import cut_sentence


@st.composite
def long_sentences(draw):
    """(pieces before each word, capacity) of a sentence that exceeds one window; no word does."""
    capacity = draw(st.integers(1, 20))
    counts = draw(st.lists(st.integers(1, capacity), min_size=2, max_size=60))
    counts += [1] * max(0, capacity + 1 - sum(counts))
    before = draw(st.integers(0, 5))  # the sentence may stand anywhere in the text
    return before + np.cumsum([0, *counts]), capacity


@given(long_sentences())
def test_windows_fit_overlap_on_word_borders_and_own_every_word_once(case):
    cumulative, capacity = case
    cut = cut_sentence(cumulative, capacity)
    start, end, owned_start, owned_end = cut.T
    assert (cumulative[end] - cumulative[start] <= capacity).all()
    assert ((start <= owned_start) & (owned_start < owned_end) & (owned_end <= end)).all()
    owned = [word for first, last in zip(owned_start, owned_end, strict=True) for word in range(first, last)]
    assert owned == list(range(len(cumulative) - 1))


@given(long_sentences())
def test_a_word_is_owned_by_the_window_where_it_stands_most_central(case):
    cumulative, capacity = case
    cut = cut_sentence(cumulative, capacity)

    def context(word: int, start: int, end: int) -> int:
        return min(cumulative[word] - cumulative[start], cumulative[end] - cumulative[word + 1])

    for start, end, owned_start, owned_end in cut:
        for word in range(owned_start, owned_end):
            others = [context(word, first, last) for first, last, _, _ in cut if first <= word < last]
            assert context(word, start, end) == max(others)


def test_words_have_context_on_both_sides():
    """One piece a word, 60 a window: a word sees about 10 words on either side, or the sentence's end."""
    words, capacity = 1000, 60
    cut = cut_sentence(np.arange(words + 1), capacity)
    for start, end, owned_start, owned_end in cut:
        assert owned_start - start >= 9 or start == 0
        assert end - owned_end >= 9 or end == words
    assert (cut[:, 1] - cut[:, 0] == capacity).all()  # no window is left part empty, the last one neither
    assert len(cut) <= np.ceil((words - capacity) / (capacity * 2 / 3)) + 1


def test_a_long_document_is_cut_quickly():
    cut = cut_sentence(np.arange(1_000_001), 510)
    assert cut[-1, 3] == 1_000_000
