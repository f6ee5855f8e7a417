"""The oracle of the average is the sum of all weights that were taken in, each times its share, in float64."""

import json

import pytest
import torch
from safetensors.torch import load_file

from trainers.config import TrainConfig
from trainers.loop import evaluate, fit
from trainers.tasks.token import TokenClassification
from trainers.training.averaging import EVERY, WeightAverage

CONFIG = TrainConfig(epochs=3, batch_size=8, learning_rate=0.02, metric="loss", seed=5, ema_decay=0.7,
                     checkpoint_steps=5, keep_checkpoints=100)  # fmt: skip


@pytest.fixture
def train(tiny, alone, tmp_path):
    """Trains a fresh model with adapters and dropout; returns (model, state)."""

    def train(name="run", config=CONFIG, resume_from=None, **more):
        model = tiny.build(dropout=0.2, lora=True)
        task = TokenClassification(tiny.LABELS)
        data = tiny.windows(77), tiny.windows(19, seed=1)  # 10 steps an epoch
        return model, fit(model, task, *data, config, alone, tmp_path / name, resume_from, **more)

    return train


def shares(steps, decay):
    """What the start and every ``EVERY``-th step count in the average after so many steps."""
    kept = [min(decay, (1 + step) / (10 + step)) ** EVERY for step in range(EVERY, steps + 1, EVERY)]
    found = [1.0]
    for share in kept:
        found = [one * share for one in found] + [1 - share]
    return found


def test_the_average_is_the_sum_of_shares_and_is_scored_and_kept(train, tiny, alone, tmp_path, monkeypatch):
    taken = {}
    update = WeightAverage.update

    def note(self, step):
        taken[step] = {name: p.detach().double() for name, p in self._trained.items()}
        update(self, step)

    monkeypatch.setattr(WeightAverage, "update", note)
    start = {name: p.double() for name, p in tiny.weights(tiny.build(dropout=0.2, lora=True)).items()}
    model, state = train()
    assert list(taken) == list(range(1, 31))
    terms = [start, *(taken[step] for step in range(EVERY, 10 * state.best_epoch + 1, EVERY))]
    parts = shares(10 * state.best_epoch, CONFIG.ema_decay)
    assert sum(parts) == pytest.approx(1)
    last, furthest = taken[10 * state.best_epoch], 0.0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            expected = sum(part * term[name] for part, term in zip(parts, terms, strict=True))
            torch.testing.assert_close(parameter.double(), expected, rtol=1e-5, atol=1e-6)
            furthest = max(furthest, (parameter - last[name]).abs().max().item())
    assert furthest > 1e-3
    best = load_file(tmp_path / "run" / "checkpoints" / f"best-{state.best_epoch}" / "tensors.safetensors")
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert all(best[name].equal(parameter) for name, parameter in trained.items())
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    scores = evaluate(model, TokenClassification(tiny.LABELS), tiny.windows(19, seed=1), CONFIG, alone)
    assert rows[state.best_epoch - 1]["validation"]["loss"] == scores["loss"]


@pytest.mark.parametrize("step", [5, 10, 15])
def test_a_run_that_goes_on_has_every_bit_of_the_average(train, tmp_path, step):
    straight, state = train("straight")
    torch.rand(3)
    again, resumed = train("again", resume_from=tmp_path / "straight" / "checkpoints" / f"step-{step}")
    assert all(a.equal(b) for a, b in zip(straight.parameters(), again.parameters(), strict=True))
    assert all(resumed.average.tensors[name].equal(tensor) for name, tensor in state.average.tensors.items())


def test_training_itself_is_the_same_with_an_average(train):
    with_it, without = (train(f"{decay}", TrainConfig(**{**vars(CONFIG), "ema_decay": decay}))[1] for decay in (0.7, 0))
    with_it.average.exchange()  # at the end the model has the best average, here are the weights of the last step
    average = dict(with_it.average.tensors)
    assert average
    assert not without.average.tensors
    moments = [list(state.optimizer.state.values()) for state in (with_it, without)]
    assert all(a["exp_avg"].equal(b["exp_avg"]) for a, b in zip(*moments, strict=True))


def test_a_run_that_ends_before_an_epoch_was_scored_keeps_the_average(train, tmp_path):
    train("straight")
    checkpoint = tmp_path / "straight" / "checkpoints" / "step-5"
    model, state = train("ended", resume_from=checkpoint, ends=True)
    stored = load_file(checkpoint / "tensors.safetensors")
    assert state.step == 5
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert all(dict(model.named_parameters())[name].equal(stored[f"average.{name}"]) for name in trained)
    assert not all(stored[f"average.{name}"].equal(stored[f"model.{name}"]) for name in trained)


def test_the_best_weights_that_a_checkpoint_holds_itself_are_its_average(train, tmp_path):
    """A best-N that is damaged is written again from the checkpoint of its epoch."""
    _, state = train("straight")
    checkpoints = tmp_path / "straight" / "checkpoints"
    best = checkpoints / f"best-{state.best_epoch}" / "tensors.safetensors"
    whole = {name: tensor.clone() for name, tensor in load_file(best).items()}  # else parts of the file
    best.write_bytes(b"damaged")
    train("straight", resume_from=checkpoints / f"step-{10 * state.best_epoch}", ends=True)
    assert all(load_file(best)[name].equal(tensor) for name, tensor in whole.items())


def test_a_step_that_fp16_skips_is_not_taken_in(train, monkeypatch):
    taken = []
    monkeypatch.setattr(WeightAverage, "update", lambda self, step: taken.append(step))
    _, state = train(config=TrainConfig(**{**vars(CONFIG), "precision": "fp16", "epochs": 1, "checkpoint_steps": None}))
    assert taken == list(range(1, state.scheduler.last_epoch + 1))
    assert state.scheduler.last_epoch <= state.step == 10
