"""seqeval is the oracle."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB1, IOB2, Entities

from trainers.data.tokens.bio import (
    bio_labels,
    entity_type,
    entity_types,
    find_entities,
    iob2_transitions,
    is_tag,
    open_stray,
    openings,
    paired_labels,
)

TAGS = st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=12)


def entities(tags: list[str], scheme) -> set[tuple[str, int, int]]:
    return {(entity.tag, entity.start, entity.end) for entity in Entities([tags], scheme).entities[0]}


def in_iob2(tags: list[str]) -> list[str]:
    return open_stray(tags, {"I-X": "B-X", "I-Y": "B-Y"})


@given(TAGS)
def test_repair_keeps_the_entities_and_makes_them_valid_iob2(tags):
    repaired = in_iob2(tags)
    assert get_entities(repaired) == get_entities(tags)
    assert entities(repaired, IOB2) == {(kind, start, end + 1) for kind, start, end in get_entities(tags)}
    assert in_iob2(repaired) == repaired


def test_iob1_becomes_iob2():
    iob1 = ["I-X", "I-X", "B-X", "O", "I-Y", "I-X"]
    repaired = in_iob2(iob1)
    assert repaired == ["B-X", "I-X", "B-X", "O", "B-Y", "B-X"]
    assert entities(iob1, IOB1) == entities(repaired, IOB2)


def test_labels_are_o_then_pairs_sorted_by_type():
    assert paired_labels(["I-b", "O", "B-a-c", "B-B"]) == (
        "O",
        "B-B",
        "I-B",
        "B-a-c",
        "I-a-c",
        "B-b",
        "I-b",
    )
    assert paired_labels(["O"]) == ("O",)


@given(TAGS)
def test_names_and_ids_are_repaired_alike(tags):
    labels = ("B-Y", "O", "I-X", "B-X", "I-Y")
    ids = open_stray([labels.index(tag) for tag in tags], openings(labels))
    assert [labels[index] for index in ids] == in_iob2(tags)


@given(TAGS)
def test_entities_equal_those_of_seqeval(tags):
    assert find_entities(tags, strict=False) == {(kind, start, end + 1) for kind, start, end in get_entities(tags)}
    assert find_entities(tags, strict=True) == entities(tags, IOB2)


def test_a_stray_inside_tag_counts_only_leniently():
    assert find_entities(["I-P", "I-P"], strict=False) == {("P", 0, 2)}
    assert find_entities(["I-P", "I-P"], strict=True) == set()


def test_what_is_a_tag_and_its_type():
    tags = {"O": None, "B": "_", "I": "_", "B-a": "a", "I-a-b": "a-b"}
    assert {tag: entity_type(tag) for tag in tags} == tags
    assert all(map(is_tag, tags))
    assert not any(map(is_tag, ("", "B-", "b-a", "S-a", "PER", "O-a", "IN")))
    assert entity_types(["O", "I-b", "B", "B-a", "B-b", "I"]) == ["b", "_", "a"]
    assert paired_labels(["B-a", "I"]) == ("O", "B", "I", "B-a", "I-a")
    assert openings(("O", "I-a", "B", "I", "B-b", "INTERJ")) == {3: 2}


@given(TAGS)
def test_iob2_allows_exactly_what_has_the_same_entities_strictly_and_leniently(tags):
    labels = ("O", "B-X", "I-X", "B-Y", "I-Y")
    allowed = iob2_transitions(labels)
    ids = [labels.index(tag) for tag in tags]
    fine = not tags[0].startswith("I") and allowed[ids[:-1], ids[1:]].all()
    assert fine == (in_iob2(tags) == tags)


def test_iob2_allows_an_inside_after_its_own_type_only():
    labels = ("O", "B-a", "I-a", "B-b", "I-b")
    allowed = iob2_transitions(labels)
    wrong = {(before, after) for i, before in enumerate(labels) for j, after in enumerate(labels) if not allowed[i, j]}
    assert wrong == {("O", "I-a"), ("O", "I-b"), ("B-a", "I-b"), ("I-a", "I-b"), ("B-b", "I-a"), ("I-b", "I-a")}


def test_iob2_of_tags_without_a_type():
    assert iob2_transitions(("O", "B", "I", "B-a")).tolist() == [
        [True, True, False, True],
        [True, True, True, True],
        [True, True, True, True],
        [True, True, False, True],
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (("O", "B-DNA", "I-DNA"), ("O", "B-DNA", "I-DNA")),
        (("B-A", "I-A", "E-A", "S-A", "O"), ("B-A", "I-A", "I-A", "B-A", "O")),
        (("O", "L-A", "U-A-x"), ("O", "I-A", "B-A-x")),
        (("O", "PER", "E-mail"), ("O", "I-PER", "I-E-mail")),
        (("O", "B", "I"), ("O", "B", "I")),
        (("LABEL_0", "LABEL_1"), ("I-LABEL_0", "I-LABEL_1")),
    ],
)
def test_labels_of_other_schemes(labels, expected):
    assert bio_labels(labels) == expected
