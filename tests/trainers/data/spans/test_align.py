"""Spans to words and tags: the rule at the ends of words, overlaps, units of offsets; random texts."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.raw_text import split_text
from trainers.data.spans.align import Document, Span, span, words_and_tags
from trainers.data.tokens.bio import find_entities

EMOJI = "\U0001f600"


def read(text, *spans, words=None):
    """Words, tags, and what was noted."""
    noted = []
    spans = [item if isinstance(item, Span) else span(*item) for item in spans]
    found = words_and_tags(Document(text, spans, words), lambda what, where: noted.append((what, where)))
    return *found, noted


def test_whole_words():
    text = "Barack Obama visited Paris."
    words, tags, noted = read(text, (0, 12, "PER"), (21, 26, "LOC"))
    assert words == ["Barack", "Obama", "visited", "Paris", "."]
    assert tags == ["B-PER", "I-PER", "O", "B-LOC", "O"]
    assert not noted


def test_neighbours_of_one_type_stay_two():
    assert read("Anna Bob", (0, 4, "PER"), (5, 8, "PER"))[1] == ["B-PER", "B-PER"]


def test_a_span_that_cuts_words_is_widened_and_said():
    _, tags, noted = read("the IL-2 genes bind", (7, 13, "DNA"))
    assert tags == ["O", "B-DNA", "I-DNA", "O"]
    ((what, where),) = noted
    assert "widened" in what
    assert where == "span 7-13 'DNA' '2 gene' is now 'IL-2 genes'"


def test_white_space_around_a_span_is_no_part_of_it():
    _, tags, noted = read("in  Paris \n now", (2, 11, "LOC"))
    assert tags == ["O", "B-LOC", "O"]
    assert [what for what, _ in noted] == ["spans lost the white space around them"]


@pytest.mark.parametrize("order", [1, -1])
def test_of_overlapping_spans_the_longest_stays_then_the_first(order):
    text = "University of New York Press today"
    nested = [(14, 22, "LOC"), (0, 28, "ORG"), (23, 34, "X")][::order]
    _, tags, noted = read(text, *nested)
    assert tags == ["B-ORG", *["I-ORG"] * 4, "O"]
    assert ["left out" in what for what, _ in noted] == [True, True]


def test_of_two_labels_on_one_span_the_first_in_the_file_stays():
    _, tags, noted = read("Paris", (0, 5, "LOC"), (0, 5, "PER"))
    assert (tags, len(noted)) == (["B-LOC"], 1)


def test_repeated_spans_count_once():
    _, tags, noted = read("Paris", (0, 5, "LOC"), (0, 5, "LOC"))
    assert tags == ["B-LOC"]
    assert [what for what, _ in noted] == ["spans stood there twice"]


def test_labels_with_spaces_and_of_other_scripts_are_kept():
    assert read("青岛 Anna", (0, 2, "组织 机构"), (3, 7, "Person Name"))[1] == [
        "B-组织 机构",
        "I-组织 机构",
        "B-Person Name",
    ]


@pytest.mark.parametrize(
    ("place", "problem"),
    [
        ((6, 6), "is empty: it starts at 6 and ends at 6"),
        ((5, 3), "is empty: it starts at 5 and ends at 3"),
        ((-1, 3), "lies outside of the text, which has 8 characters"),
        ((5, 9), "lies outside of the text, which has 8 characters"),
        ((4, 5), "holds white space alone"),
    ],
)
def test_places_that_cannot_be(place, problem):
    with pytest.raises(ValueError, match=re.escape(problem)):
        read("Anna ate", (*place, "X"))


@pytest.mark.parametrize("offset", [None, "3", True, 1.5, float("inf"), float("nan")])
def test_offsets_that_are_no_numbers(offset):
    with pytest.raises(ValueError, match="the start of a span is"):
        span(offset, 5, "X")


def test_whole_numbers_may_be_floats():
    assert span(1.0, 5.0, "X").parts == ((1, 5),)


@pytest.mark.parametrize("label", [None, "", "  ", 3, ["A"]])
def test_labels_that_are_no_names(label):
    with pytest.raises(ValueError, match="the label of the span 0-5 is"):
        span(0, 5, label)


def test_utf16_offsets_are_noticed_by_the_repeated_text():
    text = f"{EMOJI} Anna met Bob"
    _, tags, noted = read(text, (3, 7, "PER", "Anna"), (12, 15, "PER", "Bob"))
    assert tags == ["O", "B-PER", "O", "B-PER"]
    ((what, _),) = noted
    assert "UTF-16" in what


def test_byte_offsets_and_offsets_without_carriage_returns_too():
    assert read("é Anna", (3, 7, "PER", "Anna"))[1] == ["O", "B-PER"]
    assert read("a\r\nb\r\nAnna", (4, 8, "PER", "Anna"))[1] == ["O", "O", "B-PER"]


def test_a_repeated_text_that_fits_nowhere_is_an_error():
    with pytest.raises(ValueError, match=r"span 0-4 'PER' 'Anna' should be 'Anne', as the annotation says"):
        read("Anna ate", (0, 4, "PER", "Anne"))


def test_without_a_repeated_text_the_error_names_the_likely_unit():
    with pytest.raises(ValueError, match="it may count UTF-16 units"):
        read(f"{EMOJI}{EMOJI} Anna", (5, 9, "PER"))


def test_line_ends_in_a_repeated_text_may_be_spelled():
    assert read("New\nYork", (0, 8, "LOC", "New\\nYork"))[1] == ["B-LOC", "I-LOC"]


def test_several_parts_are_one_span_from_the_first_to_the_last():
    text = "left and right lung"
    _, tags, noted = read(text, Span(((0, 4), (15, 19)), "Organ", "left lung"))
    assert tags == ["B-Organ", "I-Organ", "I-Organ", "I-Organ"]
    assert [what for what, _ in noted] == ["spans have several parts and were taken from the first to the last"]
    assert not read("left\nlung", Span(((0, 4), (5, 9)), "Organ", "left lung"))[2]  # parts of one line each


def test_own_words_are_taken_but_for_white_space():
    words, tags, _ = read("don't  go", (0, 2, "X"), words=[(0, 2), (2, 5), (5, 6), (7, 9)])
    assert (words, tags) == (["do", "n't", "go"], ["B-X", "O", "O"])
    with pytest.raises(ValueError, match="the token 1-4 overlaps the one before it"):
        read("don't", words=[(0, 2), (1, 4)])


TEXTS = st.text(st.sampled_from(f"ab1é.- \n{EMOJI}́中‍'"), max_size=40)


@given(TEXTS, st.data())
def test_spans_of_whole_words_come_back(text, data):
    words = split_text(text)
    chosen, after = [], 0
    while after < len(words) and data.draw(st.booleans()):
        first = data.draw(st.integers(after, len(words) - 1))
        after = data.draw(st.integers(first + 1, len(words)))
        chosen.append((first, after, data.draw(st.sampled_from(["A", "B c"]))))
    spans = [(words[first][0], words[last - 1][1], label) for first, last, label in chosen]
    found, tags, noted = read(text, *data.draw(st.permutations(spans)))
    assert found == [text[start:end] for start, end in words]
    assert find_entities(tags, strict=True) == {(label, first, last) for first, last, label in chosen}
    assert not [what for what, _ in noted if "white space" not in what]  # marks that belong to no word may be blank


@given(TEXTS, st.data())
def test_any_span_becomes_the_words_that_it_touches(text, data):
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(0, len(text)))
    touched = [place for place, (first, last) in enumerate(split_text(text)) if first < end and last > start]
    if start >= end or not touched:
        with pytest.raises(ValueError, match="span"):
            read(text, (start, end, "X"))
        return
    for quoted in ("", text[start:end]):
        tags = read(text, (start, end, "X", quoted))[1]
        assert find_entities(tags, strict=True) == {("X", touched[0], touched[-1] + 1)}


@given(TEXTS, TEXTS)
def test_utf16_offsets_of_random_texts(before, after):
    text = f"{before} zebra {after}"
    start = len(f"{before} ".encode("utf-16-le")) // 2
    words, tags, noted = read(text, (start, start + 5, "X", "zebra"))
    assert [word for word, tag in zip(words, tags, strict=True) if tag != "O"] == ["zebra"]
    assert bool(noted) == (EMOJI in before)
