import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.config import RunConfig
from trainers.data.tokens.windows import IGNORED_LABEL, TokenWindows
from trainers.tasks import token
from trainers.tasks.entity_scores import ner_metrics
from trainers.tasks.token import CRFTokenClassification, TokenClassification, task

LABELS = ("O", "B-DNA", "I-DNA")
TASK = TokenClassification(LABELS)


def test_loss_is_the_sum_over_labelled_positions():
    logits = torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[-100, 0, 1, 2, -100], [-100, 2, -100, -100, -100], [-100] * 5])
    expected = torch.zeros(())
    for window in range(3):
        for place in range(5):
            if labels[window, place] >= 0:
                expected = expected - F.log_softmax(logits[window, place], dim=0)[labels[window, place]]
    loss = TASK.loss_sum(logits, labels)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).equal(labels >= 0)


def test_no_label_at_all_is_a_loss_of_zero():
    logits = torch.randn(1, 4, 3, requires_grad=True)
    loss = TASK.loss_sum(logits, torch.full((1, 4), IGNORED_LABEL))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loss_of_16_bit_logits_is_computed_in_fp32(dtype):
    logits = torch.randn(2, 400, 3, generator=torch.Generator().manual_seed(1)).to(dtype)
    labels = torch.ones(2, 400, dtype=torch.int64)
    loss = TASK.loss_sum(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, TASK.loss_sum(logits.float(), labels))


def test_predicts_the_best_label_of_every_position():
    logits = torch.randn(2, 4, 3)
    for window, prediction in zip(logits, TASK.predict(logits, torch.zeros(2, 4)), strict=True):
        assert prediction.tolist() == [int(scores.argmax()) for scores in window]


def test_data_that_the_constraints_of_a_crf_forbid():
    labels = np.array([-100, 2, -100, 2, -100, -100, 0, 1, 2, -100, -100, 1, 0, 2, -100])
    data = TokenWindows(np.arange(15, dtype=np.int32), labels, np.arange(15, dtype=np.int32), np.array([0, 5, 10, 15]),
                        np.array([0, 1, 2], dtype=np.int32), pad_token_id=0)  # fmt: skip
    config = RunConfig(head="crf", crf_constraints=True)
    with pytest.raises(ValueError, match=r"IOB2 forbids 1 labels .* in sentence 3, is I-DNA after O"):
        task(LABELS, config, data)
    labels[13] = 0  # a window may begin inside an entity
    assert task(LABELS, config, data) == CRFTokenClassification(LABELS)


def test_metrics_count_each_scored_word_of_a_sentence_once():
    # Sentence 0 lies in two windows, which predict its words 0 to 1 and 2 to 3; its word 1 is not scored.
    data = TokenWindows(
        input_ids=np.arange(15, dtype=np.int32),
        labels=np.array([-100, 1, -100, -100, -100, -100, -100, 2, 0, -100, -100, 1, -100, 2, -100]),
        word_ids=np.array([-1, 0, -1, 1, -1, -1, -1, 2, 3, -1, -1, 0, -1, 1, -1], dtype=np.int32),
        offsets=np.array([0, 5, 10, 15]),
        sentence=np.array([0, 0, 1], dtype=np.int32),
        pad_token_id=0,
    )
    predictions = [
        np.array([2, 1, 2, 2, 2, 9, 9]),  # padded to the longest of its batch
        np.array([1, 1, 2, 2, 1]),
        np.array([1, 1, 0, 0, 1]),
    ]
    assert TASK.metrics(predictions, data) == ner_metrics(
        [["B-DNA", "I-DNA", "O"], ["B-DNA", "I-DNA"]], [["B-DNA", "I-DNA", "I-DNA"], ["B-DNA", "O"]]
    )


def test_a_part_of_the_data(data):
    whole = token.load(RunConfig(data=str(data)))
    count = {split: len(file) for split, file in whole.items()}
    config = RunConfig(data=str(data), train_examples=count["train"] // 2, test_examples=1)
    part, again = token.load(config), token.load(dataclasses.replace(config, seed=7))
    assert len(part["train"]) == count["train"] // 2
    assert len(part["validation"]) == round(count["validation"] * (count["train"] // 2) / count["train"])
    assert len(part["test"]) == 1
    assert part == again
    for split, dataset in part.items():
        sentences = whole[split].in_memory().words
        assert [words for words in sentences if words in dataset.words] == dataset.words
        assert dataset.labels == whole[split].labels
    assert token.load(dataclasses.replace(config, train_examples=10**6, test_examples=None))["test"] == whole["test"]
