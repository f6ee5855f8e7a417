"""The words that mattered: equal to leaving them out by hand, bounded in number, refused where they make no sense."""

import pytest

from trainers.data.raw_text import split_text
from trainers.serve import pipeline
from trainers.service.words import MOST_PARTS, parts_of


def test_effects_are_what_the_score_loses_without_the_word(service, exported):
    texts = ["the gene binds il2", "junb", ""]
    found = service.predict("text", texts, words=True)
    assert [one["labels"] for one in found] == service.predict("text", texts)
    classify = pipeline(None, exported["text"] / "model.onnx", top_k=None)
    for text, one in zip(texts, found, strict=True):
        best = classify(text)[0]
        assert one["label"] == best["label"]
        assert [(word["start"], word["end"]) for word in one["words"]] == split_text(text)
        for word in one["words"]:
            left = classify(text[: word["start"]] + text[word["end"] :])
            without = next(each["score"] for each in left if each["label"] == best["label"])
            assert word["effect"] == pytest.approx(best["score"] - without, abs=1e-6)
            assert word["word"] == text[word["start"] : word["end"]]


def test_a_long_text_is_left_out_in_groups():
    text = "gene of il2 " * 100
    parts = parts_of(text)
    assert len(parts) == MOST_PARTS
    assert " ".join(text[start:end] for start, end in parts) == text.strip()
    assert parts_of("") == []


@pytest.mark.parametrize(
    ("model", "inputs", "status", "message"),
    [
        ("text", ["a" * 4001], 413, "with the option words a text has at most 4000"),
        ("text", [{"text": "a", "text_pair": "b"}], 422, "for single texts"),
        ("ner", ["a"], 422, "has no option 'words'"),
    ],
)
def test_refusals(service, model, inputs, status, message):
    answer = service.post(f"/v1/models/{model}:predict", {"inputs": inputs, "options": {"words": True}})
    assert (answer.status, message in answer.json["error"]) == (status, True), answer
