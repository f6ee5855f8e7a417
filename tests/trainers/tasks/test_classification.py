import numpy as np
import pytest
import torch
from torch.nn import functional as F

from trainers.data.images.batches import ImageBatches, ImageDataset
from trainers.data.images.processing import ImageProcessing
from trainers.tasks.classification import Classification

TASK = Classification(("a", "b", "c"))


def test_the_loss_is_a_sum_in_float32():
    logits, labels = torch.randn(7, 3).to(torch.bfloat16), torch.randint(3, (7,))
    expected = F.cross_entropy(logits.float(), labels) * 7
    assert torch.allclose(TASK.loss_sum(logits, labels), expected)
    assert TASK.loss_sum(logits, labels).dtype == torch.float32


def test_predictions_scores_and_what_is_saved():
    logits = torch.tensor([[0.1, 0.9, 0.0], [2.0, 1.0, 0.0], [0.0, 0.0, 3.0], [0.0, 1.0, 0.5]])
    predictions = TASK.predict(logits, labels=torch.zeros(len(logits)))
    assert [prediction.tolist() for prediction in predictions] == [[1], [0], [2], [1]]
    targets = np.array([1, 0, 0, 1])
    data = ImageBatches(ImageDataset(np.zeros((4, 2, 2), np.uint8), targets, TASK.labels, ""), ImageProcessing())
    scores = TASK.metrics(predictions, data)
    assert scores["accuracy"] == 0.75
    assert scores["confusion"] == [[1, 0, 1], [0, 2, 0], [0, 0, 0]]
    assert scores["f1"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    predicted, gold = TASK.examples(predictions, data)
    assert np.concatenate(predicted).tolist() == [1, 0, 2, 1]
    assert np.concatenate(gold).tolist() == targets.tolist()
