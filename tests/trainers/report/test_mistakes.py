import numpy as np
import pytest

from trainers.data.tokens.bio import find_entities
from trainers.finished import FinishedRun
from trainers.report.evidence import Evidence, Options
from trainers.report.mistakes import highlighted, in_turns, labelled, worst


def test_every_confusion_has_its_turn():
    gold = np.array([0, 0, 0, 1, 2, 0, 1])
    predicted = np.array([1, 1, 1, 0, 2, 2, 0])
    assert in_turns(gold, predicted) == [0, 3, 5, 1, 6, 2]
    of_true = np.array([0.3, 0.2, 0.1, 0.4, 1.0, 0.1, 0.0])
    assert in_turns(gold, predicted, of_true) == [2, 6, 5, 1, 3, 0]


@pytest.mark.parametrize(
    ("tags", "others", "expected"),
    [
        ("O O O", "B-X O O", [("a b c", "", "")]),
        ("B-X I-X O", "B-X I-X O", [("a b", "X", "right"), ("c", "", "")]),
        ("B-X I-X O", "B-X O O", [("a b", "X", "wrong"), ("c", "", "")]),
        ("O I-X B-X", "O O B-X", [("a", "", ""), ("b", "X", "wrong"), ("c", "X", "right")]),
        ("B-X I-Y O", "B-X O B-Y", [("a", "X", "right"), ("b", "Y", "wrong"), ("c", "", "")]),
    ],
)
def test_a_sentence_in_parts(tags, others, expected):
    entities, other = (find_entities(one.split(), strict=False) for one in (tags, others))
    found = labelled(["a", "b", "c"], entities, other)
    assert [(part.text, part.label, part.state) for part in found] == expected


def test_words_are_marked_whole_and_whatever_their_case():
    found = highlighted("Oil rises; oily fish. OIL!", ["oil"])
    assert [(part.text, part.state) for part in found] == [
        ("Oil", "speaks"),
        (" rises; oily fish. ", ""),
        ("OIL", "speaks"),
        ("!", ""),
    ]
    assert "".join(part.text for part in highlighted("a (b) [c]*", ["(b)", "[c]*", "zz"])) == "a (b) [c]*"


def test_of_a_confusion_the_example_with_the_least_likely_truth_comes_first(finished_text):
    evidence = Evidence(FinishedRun.open(finished_text), Options())
    predicted, gold = (np.concatenate(ids).astype(int) for ids in evidence.saved)
    of_true = evidence.run.probabilities(evidence.dataset)[np.arange(len(gold)), gold]
    chosen = worst(evidence)
    assert sorted(chosen) == np.flatnonzero(predicted != gold).tolist()
    for pair in {(gold[place], predicted[place]) for place in chosen}:
        own = [place for place in chosen if (gold[place], predicted[place]) == pair]
        assert own[0] == min(own, key=lambda place: of_true[place])
