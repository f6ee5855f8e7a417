"""What the model says of words, against the model itself, one sentence at a time."""

import numpy as np
import pytest
import torch

from trainers.finished import FinishedRun
from trainers.report.evidence import Evidence, Options


def test_probabilities_of_words_are_those_of_the_model(finished):
    evidence = Evidence(FinishedRun.open(finished["full"]), Options())
    assert [scores.shape[0] for scores in evidence.word_probabilities] == [len(ids) for ids in evidence.saved[1]]
    for place, scores in enumerate(evidence.word_probabilities):
        assert scores.sum(1) == pytest.approx(1, abs=1e-5)
        assert np.array_equal(scores.argmax(1), evidence.saved[0][place]), "the saved predictions are its best labels"
    data = evidence.run.encode(evidence.dataset)
    (alone,) = np.flatnonzero(data.sentence == 0)[:1]
    inputs, labels = data.collate([alone])
    with torch.inference_mode():
        own = evidence.run.model(**inputs).softmax(-1)[0][labels[0] != -100]
    assert evidence.word_probabilities[0][: len(own)] == pytest.approx(own.numpy(), abs=1e-5)


def test_vectors_are_those_of_the_words_that_begin_an_entity(finished):
    evidence = Evidence(FinishedRun.open(finished["full"]), Options())
    begins = sum(int(tag.startswith("B")) for ids in evidence.saved[1] for tag in evidence.tags(ids))
    assert evidence.word_vectors.shape == (begins, 16)
    layer = evidence.run.model.get_submodule(evidence.run.model.label_layers[-1])
    logits = torch.from_numpy(evidence.word_vectors) @ layer.weight.T + layer.bias
    scores = np.concatenate(
        [
            own[[tag.startswith("B") for tag in evidence.tags(ids)]]
            for own, ids in zip(evidence.word_probabilities, evidence.saved[1], strict=True)
        ]
    )
    assert logits.softmax(-1).detach().numpy() == pytest.approx(scores, abs=1e-5)


def test_no_more_examples_are_asked_about_than_allowed(finished_text):
    evidence = Evidence(FinishedRun.open(finished_text), Options(examples=5))
    assert len(evidence.asked) == 5
    assert evidence.probabilities == pytest.approx(
        evidence.run.probabilities(evidence.dataset)[evidence.asked], abs=1e-6
    )
    assert len(Evidence(evidence.run, Options()).asked) == len(evidence.dataset)
