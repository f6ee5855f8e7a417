"""The oracles are torch's cross_entropy, scikit-learn's class weights, and the focal loss written out."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from trainers.config import RunConfig
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.tasks import image, text, token
from trainers.tasks.classification import Classification
from trainers.tasks.token import TokenClassification
from trainers.training.losses import (
    MultiLabelLoss,
    TrainingLoss,
    balanced_weights,
    multi_label_loss,
    positive_weights,
    training_loss,
)

LOGITS = torch.tensor([[2.0, 0.5, -1.0], [0.0, 0.1, 0.2], [-3.0, 4.0, 1.0], [1.0, 1.0, 1.0]])
LABELS = torch.tensor([0, 2, 0, 1])
WEIGHTS = (0.5, 1.25, 3.0)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_weights_and_smoothing_are_torchs(weights, smoothing):
    weight = None if weights is None else torch.tensor(weights)
    expected = F.cross_entropy(LOGITS, LABELS, weight, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(TrainingLoss(weights, 0.0, smoothing)(LOGITS, LABELS), expected)


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_loss_written_out(gamma):
    expected = 0.0
    for logits, label in zip(LOGITS.tolist(), LABELS.tolist(), strict=True):
        p = math.exp(logits[label]) / sum(map(math.exp, logits))
        expected -= WEIGHTS[label] * (1 - p) ** gamma * math.log(p)
    loss = TrainingLoss(WEIGHTS, gamma)(LOGITS, LABELS)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_unlabelled_positions_do_not_count_and_certainty_has_a_gradient(gamma):
    logits = torch.cat([LOGITS, torch.tensor([[500.0, 0.0, 0.0]])]).repeat(2, 1, 1).requires_grad_()
    labels = torch.cat([LABELS, torch.tensor([0])]).repeat(2, 1)
    labels[1] = IGNORED_LABEL
    loss = TrainingLoss(WEIGHTS, gamma, 0.1)(logits, labels)
    torch.testing.assert_close(loss, TrainingLoss(WEIGHTS, gamma, 0.1)(logits[0], labels[0]))
    loss.backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[0, :-1].abs().min() > 0
    assert not logits.grad[1].any()
    assert TrainingLoss(WEIGHTS, gamma)(logits, torch.full_like(labels, IGNORED_LABEL)) == 0


def test_the_loss_is_computed_in_float32():
    loss = TrainingLoss(WEIGHTS, 1.0, 0.1)
    torch.testing.assert_close(loss(LOGITS.bfloat16(), LABELS), loss(LOGITS.bfloat16().float(), LABELS))


def test_balanced_weights_are_sklearns_and_their_mean_is_1():
    labels = np.random.default_rng(0).choice(5, 1000, p=[0.6, 0.25, 0.1, 0.05, 0.0])
    weights = balanced_weights(np.append(labels, IGNORED_LABEL), 5)
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    assert weights == pytest.approx([*expected, 1.0])
    assert np.array(weights)[labels].mean() == pytest.approx(1)


def test_the_settings_of_a_run_reach_every_task(tiny):
    windows = tiny.windows(5)
    config = RunConfig(class_weights="balanced", focal_gamma=2.0, label_smoothing=0.1)
    weights = balanced_weights(windows.labels, 5)
    assert len(set(weights)) > 3
    loss = TrainingLoss(weights, 2.0, 0.1)
    names = tiny.LABELS
    assert token.task(names, config, windows) == TokenClassification(names, loss)

    @dataclasses.dataclass
    class Labelled:
        targets: np.ndarray

    data = Labelled(windows.labels[windows.labels != IGNORED_LABEL])
    for kind in (text, image):
        assert kind.task(names, config, data) == Classification(names, loss)
        assert kind.task(names, config) == Classification(names)
    assert training_loss(RunConfig(), windows.labels, 5) is None


@pytest.mark.parametrize("task", [Classification(("a", "b", "c")), TokenClassification(("a", "b", "c"))])
def test_evaluation_reports_the_plain_loss(task):
    logits, labels = LOGITS[None], LABELS[None]
    if isinstance(task, Classification):
        logits, labels = LOGITS, LABELS
    plain = F.cross_entropy(LOGITS, LABELS, reduction="sum")
    weighted = dataclasses.replace(task, loss=TrainingLoss(WEIGHTS, 2.0, 0.1))
    assert task.training_loss_sum(logits, labels) == plain
    assert weighted.loss_sum(logits, labels) == plain
    assert weighted.training_loss_sum(logits, labels) == TrainingLoss(WEIGHTS, 2.0, 0.1)(LOGITS, LABELS)


def test_a_run_trains_on_its_loss_and_validates_on_the_plain_one(tiny, checkpoint, data, tmp_path):
    from trainers.experiment import run

    seen = {}
    for name, changes in {"plain": {}, "balanced": {"class_weights": "balanced"}}.items():
        config = RunConfig(model=str(checkpoint), data=str(data), output_dir=tmp_path / name, epochs=1, batch_size=8,
                           learning_rate=1e-12, hidden_dropout=0.0, lora_dropout=0.0, **changes)  # fmt: skip
        run(config)
        seen[name] = json.loads((tmp_path / name / "metrics.jsonl").read_text().splitlines()[0])
    assert seen["plain"]["validation"]["loss"] == pytest.approx(seen["balanced"]["validation"]["loss"], rel=1e-6)
    assert abs(seen["plain"]["train_loss"] - seen["balanced"]["train_loss"]) > 1e-5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"focal_gamma": -1.0}, "focal_gamma must be at least 0, but it is -1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing is a share, at least 0 and below 1, but it is 1.0"),
        ({"class_weights": "inverse"}, "one of none, balanced"),
    ],
)
def test_wrong_settings(setting, message):
    with pytest.raises(ValueError, match=message):
        RunConfig(**setting)


SEVERAL = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 0.0]])


def test_weights_of_several_labels_are_torchs():
    expected = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL, pos_weight=torch.tensor(WEIGHTS), reduction="sum")
    torch.testing.assert_close(MultiLabelLoss(WEIGHTS)(LOGITS, SEVERAL), expected)
    plain = F.binary_cross_entropy_with_logits(LOGITS, SEVERAL, reduction="sum")
    torch.testing.assert_close(MultiLabelLoss()(LOGITS.bfloat16(), SEVERAL), plain, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_focus_and_smoothing_of_several_labels_written_out(gamma, smoothing):
    expected = 0.0
    for logits, targets in zip(LOGITS.tolist(), SEVERAL.tolist(), strict=True):
        for logit, target, weight in zip(logits, targets, WEIGHTS, strict=True):
            p = 1 / (1 + math.exp(-logit))
            smoothed = target * (1 - smoothing) + smoothing / 2
            entropy = -weight * smoothed * math.log(p) - (1 - smoothed) * math.log(1 - p)
            expected += (1 - (p if target else 1 - p)) ** gamma * entropy
    logits = LOGITS.clone().requires_grad_()
    loss = MultiLabelLoss(WEIGHTS, gamma, smoothing)(logits, SEVERAL)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    (certain,) = torch.autograd.grad(MultiLabelLoss(None, gamma)(500 * logits, SEVERAL), logits)
    assert certain.isfinite().all()


def test_balanced_labels_count_as_much_as_their_absence():
    targets = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 1, 1]], np.float32)
    assert positive_weights(targets) == (3.0, 3.0, 1.0)
    config = RunConfig(class_weights="balanced", focal_gamma=1.0)
    assert multi_label_loss(config, targets) == MultiLabelLoss((3.0, 3.0, 1.0), 1.0)
    assert multi_label_loss(RunConfig(), targets) is None
