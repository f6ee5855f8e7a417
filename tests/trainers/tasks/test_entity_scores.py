"""seqeval is the oracle."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2

from trainers.tasks.entity_scores import ner_metrics

TAGS = ["O", "B-protein", "I-protein", "B-cell-line", "I-cell-line", "B", "I"]
NO_ENTITY = {"precision": 0.0, "recall": 0.0, "f1": 0.0, "macro_f1": 0.0}


@st.composite
def tagged_sentences(draw):
    pairs = st.lists(st.tuples(st.sampled_from(TAGS), st.sampled_from(TAGS)), max_size=12)
    sentences = draw(st.lists(pairs, min_size=1, max_size=6))
    return [[gold for gold, _ in pair] for pair in sentences], [[guess for _, guess in pair] for pair in sentences]


@given(tagged_sentences())
def test_equals_seqeval(sentences):
    gold, predicted = sentences
    ours = ner_metrics(gold, predicted)
    for prefix, mode in (("", {}), ("strict_", {"mode": "strict", "scheme": IOB2})):
        check_against_seqeval(ours, prefix, gold, predicted, mode)
    if any(gold):
        assert ours["accuracy"] == pytest.approx(seqeval.accuracy_score(gold, predicted))


def check_against_seqeval(ours, prefix, gold, predicted, mode):
    report = (
        seqeval.classification_report(gold, predicted, output_dict=True, zero_division=0, **mode)
        if (ours[f"{prefix}types"])
        else {}
    )
    averages = {name: report.pop(name, None) for name in ("micro avg", "macro avg", "weighted avg")}
    assert set(ours[f"{prefix}types"]) == set(report)
    for name, theirs in report.items():
        scores = ours[f"{prefix}types"][name]
        assert scores["precision"] == pytest.approx(theirs["precision"])
        assert scores["recall"] == pytest.approx(theirs["recall"])
        assert scores["f1"] == pytest.approx(theirs["f1-score"])
        assert scores["support"] == theirs["support"]
    if report:
        assert ours[f"{prefix}precision"] == pytest.approx(averages["micro avg"]["precision"])
        assert ours[f"{prefix}recall"] == pytest.approx(averages["micro avg"]["recall"])
        assert ours[f"{prefix}f1"] == pytest.approx(averages["micro avg"]["f1-score"])
        assert ours[f"{prefix}macro_f1"] == pytest.approx(averages["macro avg"]["f1-score"])
    else:
        assert {name: ours[prefix + name] for name in NO_ENTITY} == NO_ENTITY


def test_stray_inside_tag_counts_only_leniently():
    scores = ner_metrics([["B-P", "I-P"]], [["I-P", "I-P"]])
    assert (scores["f1"], scores["strict_f1"]) == (1.0, 0.0)


def test_worked_example():
    gold = [["B-DNA", "I-DNA", "O"], ["B-RNA", "O", "B-DNA"]]
    predicted = [["B-DNA", "O", "O"], ["B-RNA", "O", "B-DNA"]]
    scores = ner_metrics(gold, predicted)
    assert scores["precision"] == scores["recall"] == scores["f1"] == pytest.approx(2 / 3)
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 1) / 2)
    assert scores["accuracy"] == pytest.approx(5 / 6)
    assert scores["types"]["DNA"] == {"precision": 0.5, "recall": 0.5, "f1": 0.5, "support": 2}


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [([], []), ([[]], [[]]), ([["O"]], [["O"]]), ([["O"]], [["B-P"]]), ([["B-P"]], [["O"]])],
)
def test_undefined_ratios_are_zero_without_warning(gold, predicted):
    scores = ner_metrics(gold, predicted)
    assert {name: scores[name] for name in NO_ENTITY} == NO_ENTITY
    json.dumps(scores, allow_nan=False)


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="2 gold sentences but 1 predicted"):
        ner_metrics([["O"], ["O"]], [["O"]])
    with pytest.raises(ValueError, match="Sentence 1 has 2 gold tags but 1 predicted"):
        ner_metrics([["O"], ["O", "O"]], [["O"], ["O"]])


@pytest.mark.parametrize("tag", ["S-P", "protein", "", "B-", "o"])
def test_other_schemes_are_refused(tag):
    with pytest.raises(ValueError, match=f"Sentence 1 has the tag '{tag}'.*BIO"):
        ner_metrics([["O"], ["O"]], [["O"], [tag]])
