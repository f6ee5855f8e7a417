"""The oracle of the loop is plain training: one big batch, the mean loss over its labels, torch's own AdamW."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from trainers.config import TrainConfig
from trainers.data.batches import epoch_batches
from trainers.data.tokens.windows import IGNORED_LABEL
from trainers.loop import evaluate, fit
from trainers.tasks.token import TokenClassification

# 157 windows in batches of 8: 20 steps, of which the last has 5 windows.
CONFIG = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-3, warmup=0.2, weight_decay=0.1, max_grad_norm=0.5,
                     group_by_length=3, metric="loss", seed=7)  # fmt: skip
STEPS = 20


class Task(TokenClassification):
    """Token classification that lets a test look at, or change, the loss of each training step."""

    def __init__(self, labels, model=None, at_step=None):
        super().__init__(labels)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "at_step", at_step)
        object.__setattr__(self, "step", 0)

    def loss_sum(self, logits, labels):
        loss = super().loss_sum(logits, labels)
        if not self.model.training:
            return loss
        object.__setattr__(self, "step", self.step + 1)
        return self.at_step(self.step, logits, loss)


class ScriptedTask(TokenClassification):
    """Token classification whose validation scores are given; notes the weights at each evaluation."""

    def __init__(self, labels, model, scores):
        super().__init__(labels)
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "scores", scores)
        object.__setattr__(self, "seen", [])

    def metrics(self, predictions, data):
        self.seen.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return self.scores[len(self.seen) - 1]


@pytest.fixture(scope="module")
def train(tiny):
    return tiny.windows(157)


@pytest.fixture(scope="module")
def validation(tiny):
    return tiny.windows(9, seed=1)


@pytest.fixture
def run(tiny, alone, train, validation, tmp_path):
    """Runs fit on a fresh model and returns (model, state)."""

    def run(config, model=None, task=None, train=train):
        model = tiny.build() if model is None else model
        task = TokenClassification(tiny.LABELS) if task is None else task
        return model, fit(model, task, train, validation, config, alone, tmp_path)

    return run


def plain_batch(data, indices):
    """Input ids, mask and labels of windows, padded by hand."""
    longest = max(data.lengths[index] for index in indices)
    ids, mask, labels = [], [], []
    for index in indices:
        part = slice(data.offsets[index], data.offsets[index + 1])
        fill = longest - data.lengths[index]
        ids.append([*data.input_ids[part], *[data.pad_token_id] * fill])
        mask.append([1] * data.lengths[index] + [0] * fill)
        labels.append([*data.labels[part], *[IGNORED_LABEL] * fill])
    return torch.tensor(np.array(ids)).long(), torch.tensor(mask), torch.tensor(np.array(labels))


def train_plainly(model, data, config):
    trainable = [p for p in model.parameters() if p.requires_grad]
    matrices, vectors = [p for p in trainable if p.ndim > 1], [p for p in trainable if p.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": config.weight_decay},
                                   {"params": vectors, "weight_decay": 0.0}], foreach=False)  # fmt: skip
    batches = [
        batch for epoch in range(config.epochs)
        for batch in epoch_batches(data.lengths, config.batch_size, seed=config.seed, epoch=epoch,
                                   group=config.group_by_length)
    ]  # fmt: skip
    warmup = config.warmup * len(batches)
    model.train()
    losses = []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            share = step / warmup if step < warmup else (len(batches) - step) / (len(batches) - warmup)
            group["lr"] = config.learning_rate * share
        ids, mask, labels = plain_batch(data, batch)
        loss = F.cross_entropy(model(ids, mask).flatten(0, 1), labels.flatten(), ignore_index=IGNORED_LABEL)
        optimizer.zero_grad()
        loss.backward()
        if config.max_grad_norm:
            nn.utils.clip_grad_norm_(trainable, config.max_grad_norm)
        optimizer.step()
        losses.append(loss.item())
    model.eval()
    return losses


def largest_difference(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
@pytest.mark.parametrize("lora", [False, True])
def test_equals_plain_training_however_a_batch_is_split(tiny, run, train, lora, micro_batch_size):
    plain = tiny.build(lora=lora)
    losses = train_plainly(plain, train, CONFIG)
    assert len(losses) == STEPS
    config = dataclasses.replace(CONFIG, micro_batch_size=micro_batch_size)
    model, state = run(config, tiny.build(lora=lora))
    assert state.step == STEPS
    assert largest_difference(model, tiny.build(lora=lora)) > 1e-3
    assert largest_difference(model, plain) < 1e-5


def test_every_epoch_has_an_order_of_its_own_and_the_schedule_spans_them_all(tiny, run, train):
    config = dataclasses.replace(CONFIG, epochs=2, batch_size=16, metric="f1")  # 20 steps, 4 of warmup
    plain, model = tiny.build(), tiny.build()
    train_plainly(plain, train, config)
    run(config, model, ScriptedTask(tiny.LABELS, model, [{"f1": 0.1}, {"f1": 0.2}]))
    assert largest_difference(model, plain) < 1e-5


def test_no_clipping(tiny, run, train):
    config = dataclasses.replace(CONFIG, max_grad_norm=0.0)
    plain, clipped = tiny.build(), tiny.build()
    train_plainly(plain, train, config)
    train_plainly(clipped, train, CONFIG)
    model, _ = run(config)
    assert largest_difference(model, plain) < 1e-5
    assert largest_difference(plain, clipped) > 1e-4


def test_only_trainable_parameters_change(tiny, run):
    model = tiny.build(lora=True)
    before = tiny.weights(model)
    run(CONFIG, model)
    changed = {name for name, value in tiny.weights(model).items() if not value.equal(before[name])}
    assert changed == {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert 0 < len(changed) < len(before)


def test_nothing_trainable(tiny, run):
    with pytest.raises(ValueError, match="no trainable parameter"):
        run(CONFIG, tiny.build().requires_grad_(False))


def test_log_holds_the_mean_loss_and_the_position(tiny, run, train, validation, alone, tmp_path):
    plain = tiny.build()
    batches = epoch_batches(train.lengths, 8, seed=7, epoch=0, group=3)
    losses = train_plainly(plain, train, CONFIG)
    labels = [train.label_counts[batch].sum() for batch in batches]
    config = dataclasses.replace(CONFIG, micro_batch_size=3)
    model, _ = run(config)
    (event,) = map(json.loads, (tmp_path / "metrics.jsonl").read_text().splitlines())
    assert (event["event"], event["epoch"], event["step"], event["learning_rate"]) == ("epoch", 1, STEPS, 0)
    assert event["train_loss"] == pytest.approx(np.average(losses, weights=labels), abs=1e-5)
    assert event["tokens_per_second"] == pytest.approx(train.lengths.sum() / event["seconds"])
    assert event["validation"] == evaluate(model, TokenClassification(tiny.LABELS), validation, config, alone)


def test_the_same_seed_gives_the_same_run_and_another_seed_another(tiny, run, train):
    config = dataclasses.replace(CONFIG, batch_size=40)
    first, again, other = (
        run(dataclasses.replace(config, seed=seed), tiny.build(dropout=0.2, lora=True))[0] for seed in (7, 7, 8)
    )
    assert largest_difference(first, again) == 0
    assert largest_difference(first, other) > 0


def test_evaluation_equals_one_window_at_a_time(tiny, alone, train):
    model = tiny.build(seed=5)
    task = TokenClassification(tiny.LABELS)
    losses, predictions = [], []
    for index in range(len(train)):
        ids, mask, labels = plain_batch(train, [index])
        logits = model(ids, mask)
        losses.append(F.cross_entropy(logits[0], labels[0], reduction="sum").item())
        predictions.append(logits[0].argmax(-1).numpy())
    model.train()
    scores = evaluate(model, task, train, CONFIG, alone)
    assert scores.pop("loss") == pytest.approx(sum(losses) / train.label_counts.sum(), abs=1e-5)
    assert scores == task.metrics(predictions, train)
    assert not model.training


# Mixed precision


@pytest.mark.parametrize(
    ("kernels", "precision", "dtype"),
    [("plain", "bf16", torch.bfloat16), ("plain", "fp16", torch.float16), ("fused", "bf16", torch.float32)],
)
def test_mixed_precision_computes_in_16_bits_and_ends_near_fp32(tiny, run, kernels, precision, dtype):
    """Fused layers take the place of autocast, so around them the head, whose dtype is seen here, stays in fp32."""
    model, seen = tiny.build(), set()

    def look(step, logits, loss):
        seen.add((logits.dtype, loss.dtype))
        return loss

    run(dataclasses.replace(CONFIG, kernels=kernels, precision=precision), model, Task(tiny.LABELS, model, look))
    assert seen == {(dtype, torch.float32)}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    exact, _ = run(CONFIG)
    assert 1e-5 < largest_difference(model, exact) < 0.03
    difference = torch.cat([(a - b).flatten() for a, b in zip(model.parameters(), exact.parameters(), strict=True)])
    assert difference.square().mean().sqrt() < 1e-3


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_fp16_skips_a_step_whose_gradient_is_not_finite(tiny, run, bad):
    model, before = tiny.build(), []

    def spoil_the_third(step, logits, loss):
        before.append(tiny.weights(model))
        return loss * bad if step == 3 else loss

    _, state = run(dataclasses.replace(CONFIG, precision="fp16"), model, Task(tiny.LABELS, model, spoil_the_third))
    moved = [any(not a[name].equal(b[name]) for name in a) for a, b in itertools.pairwise(before[1:])]
    assert moved == [step != 3 for step in range(2, STEPS)]
    assert all(value.isfinite().all() for value in tiny.weights(model).values())
    assert state.step == STEPS
    assert state.scheduler.last_epoch == STEPS - 1
    assert {slots["step"].item() for slots in state.optimizer.state.values()} == {STEPS - 1}
    assert state.scaler.get_scale() == 2.0**15


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gradient_that_is_not_finite_ends_the_run_and_names_the_step(tiny, run, precision):
    model, before = tiny.build(), []

    def spoil_the_third(step, logits, loss):
        before.append(tiny.weights(model))
        return loss * float("nan") if step == 3 else loss

    with pytest.raises(FloatingPointError, match=r"not finite in step 3 \(epoch 1\)"):
        run(dataclasses.replace(CONFIG, precision=precision), model, Task(tiny.LABELS, model, spoil_the_third))
    assert all(value.equal(before[2][name]) for name, value in tiny.weights(model).items())


# The best epoch


def test_weights_of_the_best_epoch_are_left_in_the_model(tiny, run):
    model = tiny.build()
    task = ScriptedTask(tiny.LABELS, model, [
        {"f1": 0.1}, {"f1": 0.5, "loss": 0.4}, {"f1": 0.5, "loss": 0.6}, {"f1": 0.2}
    ])  # fmt: skip
    config = dataclasses.replace(CONFIG, epochs=4, batch_size=64, metric="f1")
    _, state = run(config, model, task)
    assert (state.epoch, state.best_epoch, state.best_score) == (4, 2, 0.5)
    assert all(value.equal(task.seen[1][name]) for name, value in tiny.weights(model).items())
    assert not task.seen[1]["classifier.weight"].equal(task.seen[3]["classifier.weight"])


def test_a_lower_loss_is_better(tiny, run):
    model = tiny.build()
    task = ScriptedTask(tiny.LABELS, model, [{"loss": 0.9}, {"loss": 0.3}, {"loss": 0.6}])
    _, state = run(dataclasses.replace(CONFIG, epochs=3, batch_size=64, metric="loss"), model, task)
    assert state.best_epoch == 2
    assert all(value.equal(task.seen[1][name]) for name, value in tiny.weights(model).items())


@pytest.mark.parametrize(("patience", "last"), [(1, 2), (2, 5), (None, 6)])
def test_stops_after_epochs_without_a_better_score(tiny, run, patience, last):
    model = tiny.build()
    task = ScriptedTask(tiny.LABELS, model, [{"f1": f1, "loss": 1.0} for f1 in (0.3, 0.2, 0.4, 0.4, 0.1, 0.9)])
    config = dataclasses.replace(CONFIG, epochs=6, batch_size=80, metric="f1", patience=patience)
    _, state = run(config, model, task)
    assert state.epoch == last
    assert len(task.seen) == last


def test_an_unknown_metric_lists_the_scores(tiny, run):
    with pytest.raises(ValueError, match=r"metric 'F1' is not among .*accuracy, f1, loss, macro_f1") as error:
        run(dataclasses.replace(CONFIG, metric="F1", batch_size=80))
    assert "types" not in str(error.value)
