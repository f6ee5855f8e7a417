"""Sentences that a user has in Python."""

import pytest

from trainers.data.tokens.reader import TokenDataset

WORDS = [["IL-2", "binds"], ["no", "change"]]


def test_names_become_ids_sorted_by_type():
    found = TokenDataset.from_lists(WORDS, [("B-protein", "I-DNA"), ("O", "O")])
    assert found.labels == ("O", "B-DNA", "I-DNA", "B-protein", "I-protein")
    assert (found.words, found.tags) == (WORDS, [[3, 2], [0, 0]])


def test_ids_are_those_of_the_names():
    found = TokenDataset.from_lists(WORDS, [[1, 0], [0, 0]], names=["O", "B-x"])
    assert (found.labels, found.tags) == (("O", "B-x"), [[1, 0], [0, 0]])
    assert TokenDataset.from_lists(WORDS, [["B-x", "O"], ["O", "O"]], names=["O", "B-x"]).tags == found.tags


@pytest.mark.parametrize(
    ("words", "tags", "names", "message"),
    [
        (WORDS, [["O", "O"]], None, "2 sentences and 1 lists of tags, expected one for each"),
        ([], [], None, "0 sentences"),
        (WORDS, [["O", "O"], ["O"]], None, "sentence 1: 2 tokens but 1 tags"),
        ([["a", 5]], [["O", "O"]], None, "sentence 0: token 1 is 5, expected a string"),
        (WORDS, [["O", "PER"], ["O", "O"]], None, r"the tag 'PER' is not in BIO\. Write B-PER"),
        (WORDS, [["O", "B-y"], ["O", "O"]], ["O", "B-x"], r"\('B-y',\) are not among the names \['O', 'B-x'\]"),
        (
            WORDS,
            [[0, 1], [0, 0]],
            None,
            "tags are ids, such as 0, but nothing names them. Write the names in their place",
        ),
        (WORDS, [[0, 7], [0, 0]], ["O", "B-x"], "sentence 0: tag 1 is 7, expected a label id from 0 to 1"),
    ],
)
def test_what_does_not_fit_is_named(words, tags, names, message):
    with pytest.raises(ValueError, match=message):
        TokenDataset.from_lists(words, tags, names=names, source="mine")
