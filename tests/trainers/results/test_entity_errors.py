import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainers.data.tokens.bio import find_entities
from trainers.results.entity_errors import judge

TAGS = ["O", "B-A", "I-A", "B-B", "I-B"]


@pytest.mark.parametrize(
    ("true", "predicted", "expected"),
    [
        ("B-A I-A O", "B-A I-A O", ["right"]),
        ("B-A I-A O", "B-B I-B O", ["wrong type"]),
        ("B-A I-A O", "B-A O O", ["wrong boundary"]),
        ("B-A I-A O", "O B-B I-B", ["wrong type and boundary"]),
        ("B-A I-A O", "O O O", ["missed"]),
        ("O O O", "O B-B O", ["spurious"]),
        ("B-A I-A I-A", "B-A B-A B-B", ["wrong boundary", "spurious", "spurious"]),
        ("B-A I-A I-A", "B-B B-A I-A", ["wrong boundary", "spurious"]),  # the same type comes first
        ("B-A B-A I-A", "B-A I-A I-A", ["wrong boundary", "missed"]),
        ("O B-A O", "B-B O O", ["spurious", "missed"]),
    ],
)
def test_kinds_of_errors(true, predicted, expected):
    found = judge(*(find_entities(tags.split(), strict=False) for tags in (true, predicted)))
    assert sorted(judged.kind for judged in found) == sorted(expected)
    assert [judged.start for judged in found] == sorted(judged.start for judged in found)


@given(st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), max_size=12))
def test_every_entity_counts_once(pairs):
    true, predicted = (find_entities([pair[side] for pair in pairs], strict=False) for side in (0, 1))
    found = judge(true, predicted)
    assert sorted(one.true for one in found if one.true) == sorted(true)
    assert sorted(one.predicted for one in found if one.predicted) == sorted(predicted)
    assert {one.true for one in found if one.kind == "right"} == true & predicted
    for one in found:
        if one.kind == "missed":  # nothing that overlaps it is left over
            assert not any(
                other.kind == "spurious" and other.predicted[1] < one.true[2] and one.true[1] < other.predicted[2]
                for other in found
            )
